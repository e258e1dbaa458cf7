"""One short word for everything a node has applied, so that a report stays small at any number of objects.

Owns the word, and the still shorter ones for what is left out of it without being listed.
"""

from base64 import b64decode, b64encode
from collections.abc import Mapping, Set
from hashlib import sha256

from lbless_api.fields import Invalid, text

MARK_BYTES = 4
MAX_MARKS = 1024
MAX_MARKS_LENGTH = 5464
"""Characters of base64 that as many marks take: a report has room for them."""


def applied_digest(applied: Mapping[str, int]) -> str:
    """Return 32 hexadecimal digits over all (uid, epoch) of `applied`; the order does not matter.

    A node leaves out what it reports as pending or failed, be it listed or marked, and so does the operator
    when it computes what it expects: equal digests mean that everything else is applied exactly as planned.
    """
    lines = "".join(f"{uid} {epoch}\n" for uid, epoch in sorted(applied.items()))
    return sha256(lines.encode()).hexdigest()[:32]


def mark(uid: str) -> bytes:
    """The four bytes that stand for a UID where there is no room for it.

    Another UID may have the same: both sides leave out every ClusterIP whose mark is in a report, so that
    the worst of it is a ClusterIP that is confirmed only after the one it is mistaken for.
    """
    return sha256(uid.encode()).digest()[:MARK_BYTES]


def render_marks(marks: Set[bytes]) -> str:
    """Marks in base64, ordered, so that equal sets make equal texts."""
    return b64encode(b"".join(sorted(marks))).decode()


def parse_marks(value: object, where: str) -> frozenset[bytes]:
    """Read what `render_marks` wrote; raises Invalid."""
    try:
        packed = b64decode(text(value, where, limit=MAX_MARKS_LENGTH), validate=True)
    except ValueError:
        raise Invalid(f"{where} is not base64.") from None
    if len(packed) % MARK_BYTES:
        raise Invalid(f"{where} has {len(packed)} bytes, which are not {MARK_BYTES} for each ClusterIP.")
    return frozenset(packed[i : i + MARK_BYTES] for i in range(0, len(packed), MARK_BYTES))
