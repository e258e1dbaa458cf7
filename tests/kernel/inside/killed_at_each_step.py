"""A program: dataplane's passes, each killed before every single one of its steps and then made up for.

Runs in a node's network: `killed_at_each_step.py DIRECTORY ADDRESS ADDRESS-ON-ETH1`. Ends with status 0 and
the number of kills, or with the assertion that failed and the step that it was killed at.
"""

import os
import signal
import sys
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[2]
sys.path.insert(0, str(TESTS))

from kernel import synced  # noqa: E402 - only now on the path
from kernel.dataplane import interface, tables  # noqa: E402
from lab.host import Host  # noqa: E402
from lab.kernelstate import owned_buckets  # noqa: E402
from lbless_api.mac import default_mac  # noqa: E402
from lbless_api.node import EngineReport  # noqa: E402
from lbless_nodeagent import files  # noqa: E402
from lbless_nodeagent.dataplane.nftables.batch import Batch  # noqa: E402
from lbless_nodeagent.dataplane.nftables.engine import NftablesEngine  # noqa: E402
from lbless_nodeagent.dataplane.nftables.library import Library  # noqa: E402
from lbless_nodeagent.dataplane.reconcile import Reconciler  # noqa: E402
from lbless_nodeagent.dataplane.rtnetlink import Rtnetlink  # noqa: E402
from unit.stateobjects import desired_json  # noqa: E402

STEPS: tuple[tuple[Any, str], ...] = (
    (files, "write_bytes"),
    (files, "remove"),
    (Library, "run"),
    (Batch, "run"),
    (Rtnetlink, "add_address"),
    (Rtnetlink, "remove_address"),
    (Rtnetlink, "join_group"),
    (Rtnetlink, "leave_group"),
    (Rtnetlink, "set_arp_announce"),
)

Shares = dict[str, str]
"""What is desired: buckets by address."""


class Here(Host):
    """The network that this program runs in."""

    @property
    def enter(self) -> list[str]:
        return []


class QuickEngine(NftablesEngine):
    """Spares itself the probe, which has tests of its own."""

    def probe(self) -> EngineReport:
        return EngineReport(self.name, True)


def kill_before(step: int) -> None:
    """Make this process die before its step of that number, from 0."""
    left = step

    def dying(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return original(*arguments, **named)

        return call

    for owner, name in STEPS:
        setattr(owner, name, dying(getattr(owner, name)))


def run(directory: Path, *, remove: bool, step: int | None = None) -> bool:
    """Make one pass in a process of its own; return whether it came to its end."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            engine = QuickEngine()
            reconciler = Reconciler("n1", directory, engine, files.boot_id())
            if step is not None:
                kill_before(step)
            if remove:
                assert reconciler.remove() == ()
            else:
                outcome = reconciler.run_pass()
                assert not outcome.failures, outcome
                assert not outcome.problems, outcome
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return False
    assert os.WEXITSTATUS(status) == 0, "a pass failed"
    return True


def desire(directory: Path, shares: Shares) -> None:
    """Make exactly these ClusterIPs desired."""
    for path in (directory / "desired").glob("*.json"):
        synced.delete(path.parent, path.stem)
    for ip, buckets in shares.items():
        uid = ip.replace(".", "-")
        synced.put(directory / "desired", uid, desired_json(uid, ip, {"n1": buckets}))


def check_filtered(host: Host, addresses: tuple[str, ...]) -> None:
    """No address is on a link without rules that know it there: it would answer what others answer too."""
    for name in ("eth0", "eth1"):
        for ip in addresses:
            if f"{ip}/32" in interface(host, name).addresses:
                element = f"{{ {name} . {ip} }}"
                known = host.run(["nft", "get", "element", "ip", "lbless", "vips", element], check=False)
                assert known.returncode == 0, f"{ip} is on {name} without rules"


def check(host: Host, shares: Shares, addresses: tuple[str, ...]) -> None:
    """The kernel holds exactly this."""
    for name in ("eth0", "eth1"):
        on_it = [ip for ip in shares if ip.startswith("10.83.") == (name == "eth1")]
        held = interface(host, name)
        assert {a for a in held.addresses if a.endswith("/32")} == {f"{ip}/32" for ip in on_it}, held
        assert held.groups == {default_mac(IPv4Address(ip)) for ip in on_it}, held
        assert held.arp_announce == (2 if on_it else 0), held
    for ip in addresses:
        owned = str(owned_buckets(host, ip))
        assert owned == shares.get(ip, ""), f"{ip} has buckets {owned}"


def main(directory: Path, near: str, far: str) -> None:
    host = Here("here", "", [], directory)
    for name in ("desired", "applied"):
        files.make_directory(directory / name)
    synced.complete(directory / "desired")
    addresses = (near, far)
    kills = 0
    for former, wanted in (
        ({}, {near: "0-3"}),
        ({near: "0-3"}, {far: "0-5"}),
        ({near: "0-3", far: "0-5"}, {near: "4-9", far: ""}),
        ({near: "0-3", far: "0-5"}, {}),
        ({near: "0-3", far: "0-5"}, None),
    ):
        step, ended = 0, False
        while not ended:
            desire(directory, former)
            assert run(directory, remove=False)
            check(host, former, addresses)
            desire(directory, wanted or {})
            ended = run(directory, remove=wanted is None, step=step)
            where = f"{former} to {wanted}, killed before step {step}"
            try:
                check_filtered(host, addresses)
                assert run(directory, remove=wanted is None)
                check(host, wanted or {}, addresses)
                assert run(directory, remove=True)
                check(host, {}, addresses)
                assert not tables(host)
                assert not (directory / "journal.json").exists()
            except AssertionError as error:
                raise AssertionError(f"{where}: {error}") from error
            kills += not ended
            step += 1
    print(kills)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
