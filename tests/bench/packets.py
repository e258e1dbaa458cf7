"""What a packet costs a node, foreign or owned: lbless's nftables rules beside plain xt_cluster.

CPU is that of the thread that puts a frame on the wire, in whose softirq the other end receives it; see
`packets_inside`. All filters take turns in each round, and a ratio is one of two samples of the same round,
so that what disturbs the machine for longer than a round disturbs both.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench.measure import Row
from lab.errors import LabError
from lab.host import complaint

MANY, ROUNDS = 1000, 25
OF_XT_CLUSTER = {"foreign": 0.65, "owned": 1.4}
"""An owned packet meets conntrack with both, and with nftables' sets besides all that xt_cluster has no rules for."""
OF_ONE_ADDRESS = 1.5


def rows() -> Iterator[Row]:
    """Nanoseconds with xt_cluster's as their limit, then the ratios that are promised."""
    if os.geteuid() != 0:
        raise LabError("packets needs root and network namespaces: run make bench as root")
    if not shutil.which("iptables-legacy-restore"):
        raise LabError("packets compares with iptables-legacy: run make system, which installs it")
    found = _measured()
    for kind in ("foreign", "owned"):
        one, many = found[f"nftables 1 {kind}"], found[f"nftables {MANY} {kind}"]
        xt_one, xt_many = found[f"xt_cluster 1 {kind}"], found[f"xt_cluster {MANY} {kind}"]
        what = f"packets: {kind}"
        most = OF_XT_CLUSTER[kind] * statistics.median(xt_one)
        yield Row(f"{what}, 1 address", "ns", most, one)
        yield Row(f"{what}, 1 address, with a lease", "ns", most, found[f"leased 1 {kind}"])
        yield Row(f"{what}, 1 address, of xt_cluster", "x", OF_XT_CLUSTER[kind], _ratios(one, xt_one))
        # There is no set of addresses for xt_cluster: each has its own two rules, and they are tried in turn.
        beside = f"{MANY} addresses, beside xt_cluster's {2 * MANY} rules"
        yield Row(f"{what}, {beside}", "ns", statistics.median(xt_many), many)
        yield Row(f"{what}, {MANY} addresses, of 1 address", "x", OF_ONE_ADDRESS, _ratios(many, one))
    xt_one, none = found["xt_cluster 1 owned"], found["unfiltered 1 owned"]
    what = "packets: conntrack and delivery alone, beside xt_cluster"
    yield Row(what, "ns", statistics.median(xt_one), none)


def _ratios(these: Sequence[float], those: Sequence[float]) -> tuple[float, ...]:
    """Round by round."""
    return tuple(this / that for this, that in zip(these, those, strict=True))


def _measured() -> Mapping[str, tuple[float, ...]]:
    """CPU in ns per packet, by filter, number of addresses and kind, without what sending alone takes."""
    command = [sys.executable, str(Path(__file__).parent / "packets_inside.py"), str(MANY), str(ROUNDS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        raise LabError(f"the packets could not be measured: {complaint(done.stderr)}")
    return {name: tuple(samples) for name, samples in json.loads(done.stdout).items()}
