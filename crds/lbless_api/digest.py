"""One short word for everything a node has applied, so that a report stays small at any number of objects."""

from collections.abc import Mapping
from hashlib import sha256


def applied_digest(applied: Mapping[str, int]) -> str:
    """Return 32 hexadecimal digits over all (uid, epoch) of `applied`; the order does not matter.

    A node leaves out what it lists as pending or failed, and so does the operator when it computes what
    it expects: equal digests mean that everything else is applied exactly as planned.
    """
    text = "".join(f"{uid} {epoch}\n" for uid, epoch in sorted(applied.items()))
    return sha256(text.encode()).hexdigest()[:32]
