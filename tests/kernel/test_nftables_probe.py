"""The engine says in one sentence why it cannot work here."""

import ctypes
import os
import stat
import subprocess
import sys
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from kernel.segment import nft, ruleset
from lbless_api.buckets import BucketSet
from lbless_api.clusterip import HashParameters
from lbless_api.hashing import HashFunction, HashMode
from lbless_api.node import EngineReport
from lbless_nodeagent.dataplane.engine import Vip, Wanted
from lbless_nodeagent.dataplane.moving import Moving
from lbless_nodeagent.dataplane.nftables import probe
from lbless_nodeagent.dataplane.nftables.engine import NftablesEngine
from lbless_nodeagent.dataplane.nftables.layout import Layout
from lbless_nodeagent.dataplane.nftables.library import LIBRARY, Library
from lbless_nodeagent.dataplane.nftables.netlink import Reader
from lbless_nodeagent.dataplane.nftables.probe import (
    FEATURES,
    REDIRECT,
    WHOLE,
    Feature,
    Trial,
    layout,
    missing,
)

pytestmark = pytest.mark.root

PROBE = """
from lbless_nodeagent.dataplane.nftables.engine import NftablesEngine
print(NftablesEngine().probe().message)
"""
APPLY = """
from lbless_nodeagent.dataplane.engine import NOTHING, EngineError
from lbless_nodeagent.dataplane.nftables.engine import NftablesEngine
engine = NftablesEngine()
try:
    engine.apply(NOTHING)
except EngineError as error:
    print(error)
print(engine.fileno())
"""


def outcome(*command: str) -> list[str]:
    """The lines that a program prints; it must not fail."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_here_everything_is_there_and_trying_it_leaves_nothing(engine: NftablesEngine):
    nft("table ip mine { }\ntable ip lbless_probe { chain theirs { }\n }")
    reader = Reader()
    before, generation = ruleset(), reader.generation()
    assert engine.probe() == EngineReport("nftables", True, capabilities=engine.capabilities())
    assert (ruleset(), reader.generation()) == (before, generation)
    reader.close()


@pytest.mark.parametrize("feature", [*FEATURES, WHOLE, REDIRECT], ids=lambda feature: feature.name)
def test_each_feature_that_is_tried_is_one_that_this_kernel_has(feature: Feature, namespace: None):
    assert missing(Library(), [feature]) is None


def test_where_packets_cannot_be_sent_on_the_engine_works_without_and_says_so(
    engine: NftablesEngine, monkeypatch: pytest.MonkeyPatch
):
    assert layout(Library()) == Layout(redirect=True)
    assert engine.probe().capabilities[0].redirect
    monkeypatch.setattr(probe, "REDIRECT", replace(REDIRECT, text=REDIRECT.text.replace("dup", "unheard_of")))
    assert layout(Library()) == Layout(redirect=False)
    monkeypatch.setattr(probe, "trial", lambda: Trial(None, redirect=False))
    (able,) = engine.probe().capabilities
    assert able.moves
    assert not able.redirect
    moving = Moving(drain=BucketSet([0]), redirect=((IPv4Address("10.8.0.2"), BucketSet([0])),))
    group = HashParameters(HashFunction.JHASH, HashMode.SOURCE_IP, 0, 2, 32)
    vip = Vip(IPv4Address("10.8.0.1"), "lo", "03:bf:0a:08:00:01", group, None, BucketSet([1]), moving=moving)
    engine.apply(Wanted({vip.ip: vip}, frozenset()))
    assert engine.audit()
    unable = replace(vip, moving=replace(moving, redirect=()))
    assert engine.installed() == Wanted({vip.ip: unable}, frozenset())
    assert "dup to" not in ruleset()


@pytest.mark.parametrize("program", [PROBE, APPLY], ids=["probe", "apply"])
def test_without_the_capability_it_asks_for_it(program: str, namespace: None):
    without = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-all")
    first, *rest = outcome(*without, sys.executable, "-c", program)
    assert first == "No permission to use nftables: run as root, or with the capability CAP_NET_ADMIN."
    assert rest in ([], ["None"])


@pytest.mark.parametrize("program", [PROBE, APPLY], ids=["probe", "apply"])
def test_without_libnftables_it_says_what_to_install(program: str, namespace: None):
    hidden = 'mount --bind /dev/null "$1" && exec "$2" -c "$3"'
    shell = ("unshare", "--mount", "sh", "-c", hidden, "sh", library_path())
    first, *_ = outcome(*shell, sys.executable, program)
    assert first.startswith(f"nftables is missing: {LIBRARY} cannot be loaded (")
    assert first.endswith("); install libnftables1 (Debian, Ubuntu) or nftables (others).")


def library_path() -> str:
    """The file that this process has loaded as libnftables."""
    ctypes.CDLL(LIBRARY)
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line}
    (path,) = [path for path in mapped if os.path.basename(path).startswith("libnftables.so")]
    return path


def test_what_the_kernel_refuses_is_named_with_the_kernel_that_could(namespace: None):
    # No kernel has this type of chain for ARP.
    impossible = Feature(
        "translating ARP", "CONFIG_MAGIC", "table arp t { chain c { type nat hook input priority 0; }\n }"
    )
    assert missing(Library(), [impossible]) == (
        "This kernel cannot do translating ARP (Could not process rule: No such file or directory): "
        "Linux 5.16 or newer with CONFIG_MAGIC is needed."
    )


@pytest.mark.parametrize(
    "text", ["frobnicate", "jhash ip saddr mod 2 frob 1 accept", "meta frob 1", "ip frob 1", "th frob 1"]
)
def test_what_libnftables_does_not_know_is_named_with_the_version_that_does(text: str, namespace: None):
    unheard_of = Feature("frobnication", "CONFIG_NOTHING", f"table ip t {{ chain c {{ {text}\n }}\n }}")
    sentence = missing(Library(), [unheard_of])
    assert sentence is not None
    assert sentence.startswith("libnftables.so.1 does not know frobnication (")
    assert sentence.endswith("): nftables 1.0.2 or newer is needed.")


def test_a_libnftables_that_crashes_takes_the_probe_along_and_not_the_engine(
    engine: NftablesEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    crashing = tmp_path / "python"
    crashing.write_text("#!/bin/sh\necho 'Assertion failed' >&2\nkill -ABRT $$\n")
    crashing.chmod(stat.S_IRWXU)
    monkeypatch.setattr(sys, "executable", str(crashing))
    assert engine.probe() == EngineReport(
        "nftables",
        False,
        "Trying nftables ended with status -6 (Assertion failed): use another version of libnftables.",
    )
