"""libnftables: running texts as transactions, and its errors as sentences. Knows no rule.

Texts come from `rules` and `transactions` only, which build them from validated values.
"""

import ctypes
import re

from lbless_nodeagent.dataplane.engine import EngineError

LIBRARY = "libnftables.so.1"
_ERROR = re.compile(r"Error: (.*)")
_PERMISSION = "Operation not permitted"


class Library:
    """One context of libnftables. Calls let other threads run."""

    def __init__(self) -> None:
        """Raises EngineError where the library or its Python binding is missing."""
        try:
            self._shared = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise EngineError(
                f"nftables is missing: {LIBRARY} cannot be loaded ({error}); "
                f"install libnftables1 (Debian, Ubuntu) or nftables (others)."
            ) from None
        # Only now: the binding's own complaint about a missing library is a traceback from its destructor.
        try:
            from nftables import Nftables  # noqa: PLC0415
        except ImportError:
            raise EngineError(
                "The Python binding of libnftables is missing: install pip-nftables, "
                "or lbless with its extra `nodeagent`."
            ) from None
        self._nft = Nftables(LIBRARY)

    def run(self, text: str) -> None:
        """Run a text as one transaction; raises EngineError, and then nothing of it took effect."""
        error = self._command(text)
        if error is not None:
            raise EngineError(sentence(error, text))

    def refused(self, text: str) -> str | None:
        """Try a text without doing it: libnftables and the kernel check all but the commit. Return
        libnftables' message, or None if it would do."""
        # The binding has no function for this, and keeps the context to itself.
        context = ctypes.c_void_p(self._nft._Nftables__ctx)
        self._shared.nft_ctx_set_dry_run(context, ctypes.c_bool(True))
        try:
            return self._command(text)
        finally:
            self._shared.nft_ctx_set_dry_run(context, ctypes.c_bool(False))

    def _command(self, text: str) -> str | None:
        status, _, error = self._nft.cmd(text)
        return None if status == 0 else str(error) or f"status {status} without a message"


def sentence(error: str, text: str) -> str:
    """One sentence for libnftables' message about `text`."""
    cause = brief(error)
    if _PERMISSION in error:
        return "No permission to change nftables: run as root, or with the capability CAP_NET_ADMIN."
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return (
        f"nftables refused a change of lbless's tables ({cause}; it begins {line[:80]!r}): "
        f"look for another program that edits them."
    )


def brief(error: str) -> str:
    """What libnftables says is wrong, without the place in the text."""
    match = _ERROR.search(error)
    return (match[1] if match else " ".join(error.split()))[:200].rstrip(".")
