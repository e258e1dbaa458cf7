"""What sync does to desired/: each change in its order, so that .complete names every ClusterIP there is.

A file that only goes is none of these: it is lost.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from lbless_api.clusterip import is_uid
from lbless_api.state import COMPLETE, render_complete
from lbless_nodeagent import files


def put(desired: Path, uid: str, value: object) -> None:
    """Write a ClusterIP: its file, then its name."""
    files.write_json(_file(desired, uid), value)
    _name(desired, lambda uids: {*uids, uid})


def delete(desired: Path, uid: str) -> None:
    """Delete a ClusterIP: its name, then its file."""
    _name(desired, lambda uids: {*uids} - {uid})
    _file(desired, uid).unlink()


def complete(desired: Path, boot_id: str | None = None) -> None:
    """Say that what has a file is all that was listed in that boot, by default this one."""
    uids = {path.stem for path in desired.glob("*.json")}
    _write(desired, boot_id or files.boot_id(), filter(is_uid, uids))


def _name(desired: Path, change: Callable[[list[str]], Iterable[str]]) -> None:
    """Change the names in .complete, once there is one."""
    try:
        boot_id, *uids = files.read_text(desired / COMPLETE).split()
    except FileNotFoundError:
        return
    _write(desired, boot_id, change(uids))


def _write(desired: Path, boot_id: str, uids: Iterable[str]) -> None:
    files.write_bytes(desired / COMPLETE, render_complete(boot_id, uids).encode(), durable=False)


def _file(desired: Path, uid: str) -> Path:
    return desired / f"{uid}.json"
