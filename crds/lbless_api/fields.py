"""Reading untyped data (API objects, JSON files) field by field, each fault one sentence.

Owns the checks of type and range at the edge. What a field means is its reader's.
"""

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address

MAX_INTEGER = 2**63 - 1
"""The largest integer of the API, an int64."""


class Invalid(ValueError):
    """Outside data that breaks the contract; the message is one sentence fit for a condition.

    `reason` is the condition's reason: `Invalid`, or `NotSupported` for what a later version may do.
    """

    def __init__(self, message: str, reason: str = "Invalid") -> None:
        super().__init__(message)
        self.reason = reason


def mapping(value: object, where: str) -> Mapping[str, object]:
    """A JSON object; raises Invalid naming the field `where`."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise Invalid(f"{where} must be an object, not {_kind(value)}.")
    return value


def items(value: object, where: str) -> Sequence[object]:
    """A JSON array."""
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise Invalid(f"{where} must be a list, not {_kind(value)}.")
    return value


def text(value: object, where: str, *, limit: int = 4096) -> str:
    """A string of at most `limit` characters."""
    if not isinstance(value, str):
        raise Invalid(f"{where} must be a string, not {_kind(value)}.")
    if len(value) > limit:
        raise Invalid(f"{where} is {len(value)} characters long: at most {limit} are allowed.")
    return value


def integer(value: object, where: str, low: int, high: int) -> int:
    """An integer from `low` to `high`; true and false are none."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise Invalid(f"{where} must be an integer, not {_kind(value)}.")
    if not low <= value <= high:
        raise Invalid(f"{where} is {value}: use {low} to {high}.")
    return value


def boolean(value: object, where: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise Invalid(f"{where} must be true or false, not {_kind(value)}.")
    return value


def ipv4(value: object, where: str) -> IPv4Address:
    """An IPv4 address in dotted decimal."""
    written = text(value, where)
    if ":" in written:
        raise Invalid(
            f"{where} {written[:60]!r} is not an IPv4 address: IPv6 is not supported yet.", "NotSupported"
        )
    try:
        return IPv4Address(written)
    except ValueError:
        raise Invalid(f"{where} {written[:60]!r} is not an IPv4 address: write it as 192.0.2.10.") from None


def _kind(value: object) -> str:
    names = {type(None): "absent", bool: "a boolean", int: "a number", float: "a number", str: "a string"}
    return names.get(type(value)) or ("a list" if isinstance(value, Sequence) else "an object")
