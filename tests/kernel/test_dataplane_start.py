"""What lbless-dataplane needs before it starts: each thing that is missing is one sentence and status 1."""

import subprocess
import sys
from pathlib import Path

import pytest

from kernel.dataplane import DATAPLANE, Dataplane, interface, tables, wait_for
from lab.lan import Lan
from lbless_nodeagent import files

pytestmark = pytest.mark.root


def said(done: subprocess.CompletedProcess[str], status: int = 1) -> str:
    """The one line that it said."""
    assert done.returncode == status, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.mark.parametrize(
    ("privilege", "lacks"),
    [
        (["--reuid=65534", "--clear-groups"], "CAP_NET_ADMIN and CAP_NET_RAW"),
        (["--inh-caps=-net_admin", "--bounding-set=-net_admin"], "CAP_NET_ADMIN,"),
        (["--inh-caps=-net_raw", "--bounding-set=-net_raw"], "CAP_NET_RAW,"),
    ],
    ids=["no root", "no NET_ADMIN", "no NET_RAW"],
)
def test_without_its_capabilities_it_says_which_and_how_to_get_them(
    dataplane: Dataplane, privilege: list[str], lacks: str, tmp_path: Path
) -> None:
    tmp_path.chmod(0o777)
    # The interpreter by itself: the virtual environment may be out of another user's reach.
    command = ["setpriv", *privilege, *DATAPLANE, "--node", "n1", "--state-dir", str(dataplane.directory)]
    line = said(dataplane.host.run(command, check=False))
    assert f"lacks {lacks}" in line
    assert "run it as root" in line


def test_a_second_one_on_the_same_directory_is_told_and_the_first_goes_on(dataplane: Dataplane) -> None:
    dataplane.desire("a", Lan.vip())
    dataplane.start()
    line = said(dataplane.run())
    assert f"Another lbless-dataplane uses {dataplane.directory}" in line
    dataplane.wait_applied("a")
    assert dataplane.stop() == 0


def test_a_directory_that_cannot_be_one_is_named(dataplane: Dataplane, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    dataplane.directory = tmp_path / "file"
    line = said(dataplane.run())
    assert f"Directory {tmp_path / 'file'}" in line
    assert "--state-dir" in line


def test_without_a_good_key_file_it_says_why_and_touches_nothing(
    dataplane: Dataplane, tmp_path: Path
) -> None:
    path, secret = tmp_path / "key", "5e" * 15
    dataplane.desired.rmdir()
    dataplane.directory.rmdir()
    for content, why in (
        (None, f"Key file {path} does not exist"),
        ("", f"Key file {path} holds no key"),
        ("# none\n", f"Key file {path} holds no key"),
        (f"{secret}\n", f"Line 1 of key file {path} has 15 bytes"),
        (f"{secret}!\n", f"Line 1 of key file {path} is neither hexadecimal digits nor base64"),
    ):
        if content is not None:
            path.write_text(content)
        line = said(dataplane.run("--key-file", str(path)))
        assert why in line
        assert secret not in line
        assert not dataplane.directory.exists()
        assert tables(dataplane.host) == set()


@pytest.mark.parametrize(
    "arguments",
    [["--node", "../etc"], ["--engine", "ebpf"], ["--metrics-port", "70000"], ["--unknown"]],
    ids=" ".join,
)
def test_wrong_usage_ends_with_status_2(dataplane: Dataplane, arguments: list[str]) -> None:
    done = dataplane.run(*arguments)
    assert done.returncode == 2
    assert "usage: lbless-dataplane" in done.stderr


def test_without_libnftables_it_says_what_to_install_and_leaves_word_for_sync(
    dataplane: Dataplane, tmp_path: Path
) -> None:
    hidden = tmp_path / "hide.py"
    # As where the library is not installed: it cannot be loaded by anybody.
    hidden.write_text(
        "import ctypes, runpy, sys\n"
        "class Missing(ctypes.CDLL):\n"
        "    def __init__(self, name, *a, **k):\n"
        "        if name and 'nftables' in str(name):\n"
        "            raise OSError('cannot open shared object file')\n"
        "        super().__init__(name, *a, **k)\n"
        "ctypes.CDLL = Missing\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_module('lbless_nodeagent.dataplane', run_name='__main__', alter_sys=True)\n"
    )
    command = [sys.executable, str(hidden), "x", "--node", "n1", "--state-dir", str(dataplane.directory)]
    line = said(dataplane.host.run(command, check=False))
    assert "nftables is missing" in line
    assert "install libnftables1" in line
    engine = dataplane.observed().engines[0]
    assert (engine.name, engine.available) == ("nftables", False)
    assert "nftables is missing" in engine.message


def test_the_two_capabilities_are_enough_also_where_proc_is_read_only(dataplane: Dataplane, lan: Lan) -> None:
    only = "-all,+net_admin,+net_raw"
    confined = ["setpriv", "--no-new-privs", f"--bounding-set={only}", f"--inh-caps={only}"]
    read_only = ["unshare", "--mount", "sh", "-c", 'mount -o bind,ro /proc/sys /proc/sys && exec "$@"', "sh"]
    command = [*read_only, *confined, *DATAPLANE, "--node", "n1", "--state-dir", str(dataplane.directory)]
    dataplane.process = dataplane.host.popen(command, log="dataplane")
    dataplane.desire("a", Lan.vip())
    dataplane.wait_applied("a")
    assert dataplane.serves(Lan.vip())
    assert interface(dataplane.host, "eth0").arp_announce == 2
    capabilities = Path(f"/proc/{dataplane.process.pid}/status").read_text()
    assert "CapEff:\t0000000000003000" in capabilities
    dataplane.intend("remove")
    assert dataplane.stop() == 0
    assert interface(dataplane.host, "eth0").arp_announce == 0


def test_metrics_are_served_where_asked_for(dataplane: Dataplane, lan: Lan) -> None:
    process = lan.nodes[0].popen(
        [*DATAPLANE, "--node", "n1", "--state-dir", str(dataplane.directory), "--metrics-port", "9099"],
        log="dataplane",
    )
    dataplane.process = process
    dataplane.desire("a", Lan.vip())
    dataplane.wait_applied("a")
    fetch = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9099/metrics', timeout=5).read().decode())"
    metrics = lan.nodes[0].run([sys.executable, "-c", fetch]).stdout
    assert "lbless_clusterips_applied 1.0" in metrics
    assert 'lbless_packets_total{end="kept"}' in metrics


def test_logs_are_json_where_asked_for(dataplane: Dataplane) -> None:
    done = dataplane.run("--log-format", "json", "--key-file", "/nonexistent")
    assert done.stderr.startswith('{"time": ')


def test_its_first_start_on_an_empty_directory_touches_no_kernel(dataplane: Dataplane) -> None:
    dataplane.desired.rmdir()
    dataplane.directory.rmdir()
    dataplane.start()
    wait_for(lambda: dataplane.observed().engines)
    assert dataplane.observed().problems == ()
    assert dataplane.stop() == 0
    assert tables(dataplane.host) <= {"ip lbless", "arp lbless", "netdev lbless"}
    assert files.read_json(dataplane.directory / "identity.json")
