from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from unit.fakeapi import FakeApi

PROGRAM = [sys.executable, "-m", "lbless_nodeagent.sync"]


def kubeconfig(directory: Path, server: str) -> Path:
    path = directory / "kubeconfig"
    text = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }
    path.write_text(yaml.safe_dump(text))
    return path


def environment(kubeconfig: Path | None) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in {"KUBECONFIG", "KUBERNETES_SERVICE_HOST"}}
    return kept | ({"KUBECONFIG": str(kubeconfig)} if kubeconfig else {})


def run(kubeconfig: Path | None, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *options],
        env=environment(kubeconfig),
        stderr=subprocess.PIPE,
        text=True,
        timeout=20,
        check=False,
    )


@contextmanager
def running(kubeconfig: Path, state: Path, log: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    with log.open("w") as stream:
        process = subprocess.Popen(
            [*PROGRAM, "--node", "n1", "--state-dir", str(state), *options],
            env=environment(kubeconfig),
            stderr=stream,
            text=True,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for_line(log: Path, words: str) -> None:
    deadline = time.monotonic() + 15
    while words not in log.read_text():
        assert time.monotonic() < deadline, f"never logged: {words}; but: {log.read_text()}"
        time.sleep(0.02)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_without_credentials_it_ends_with_one_sentence_and_status_1(tmp_path: Path) -> None:
    done = run(None, "--node", "n1", "--state-dir", str(tmp_path))
    assert done.returncode == 1
    assert last_line(done).endswith(
        "There are no Kubernetes credentials: set $KUBECONFIG, or run in a pod with a service account."
    )


def test_with_a_wrong_kubeconfig_it_ends_with_one_sentence_and_status_1(tmp_path: Path) -> None:
    wrong = tmp_path / "kubeconfig"
    wrong.write_text("apiVersion: v1\nkind: Config\n")
    done = run(wrong, "--node", "n1", "--state-dir", str(tmp_path))
    assert done.returncode == 1
    assert f"The kubeconfig {wrong} cannot be used (" in last_line(done)


def test_a_state_directory_that_is_none_ends_it_with_one_sentence_and_status_1(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = kubeconfig(tmp_path, "http://127.0.0.1:1")
    done = run(config, "--node", "n1", "--state-dir", str(tmp_path / "file"))
    assert done.returncode == 1
    assert last_line(done).endswith(f"{tmp_path}/file is not a directory: name another --state-dir.")


def test_a_file_that_cannot_be_written_is_said_and_written_as_soon_as_it_can_be(tmp_path: Path) -> None:
    fake = FakeApi()
    log, desired = tmp_path / "log", tmp_path / "state" / "desired"
    with (
        fake.serve() as url,
        running(kubeconfig(tmp_path, url), tmp_path / "state", log) as process,
    ):
        wait_for_line(log, "Node n1 does not exist")
        # A directory where the file is to be is refused by every file system, also to root.
        stuck, good = "11111111-aaaa", "22222222-bbbb"
        (desired / f"{stuck}.json").mkdir()
        for name, uid in (("a", stuck), ("b", good)):
            fake.put(
                name,
                metadata={"name": name, "namespace": "ns", "uid": uid, "creationTimestamp": "t"},
                spec={},
            )
        wait_for_line(log, f"desired/{stuck}.json cannot be written (Is a directory)")
        assert json.loads((desired / f"{good}.json").read_text())["metadata"]["name"] == "b"
        (desired / f"{stuck}.json").rmdir()
        wait_for_line(log, "The state directory is as it should be again.")
        assert json.loads((desired / f"{stuck}.json").read_text())["metadata"]["name"] == "a"
        assert process.poll() is None
    assert "Traceback" not in log.read_text()
    assert log.read_text().count("cannot be written") == 1


def test_a_node_name_that_is_none_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    done = run(None, "--node", "../n1", "--state-dir", str(tmp_path / "state"))
    assert done.returncode == 2
    assert "is not a Kubernetes name" in done.stderr
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_waits_for_an_api_server_that_is_away_says_so_once_and_stops_at_once(
    tmp_path: Path, number: signal.Signals
) -> None:
    log, state = tmp_path / "log", tmp_path / "state"
    with running(kubeconfig(tmp_path, "http://127.0.0.1:1"), state, log) as process:
        wait_for_line(log, "cannot be reached: Connection refused")
        assert sorted(os.listdir(state / "desired")) == [".intent"]
        began = time.monotonic()
        process.send_signal(number)
        assert process.wait(5) == 0
        assert time.monotonic() - began < 1
    assert log.read_text().count("cannot be reached") == 2, "once for each of the two collections"


def test_metrics_are_served_where_they_are_asked_for(tmp_path: Path, unused_port: int) -> None:
    log = tmp_path / "log"
    config = kubeconfig(tmp_path, "http://127.0.0.1:1")
    with running(config, tmp_path / "state", log, "--metrics-port", str(unused_port)):
        wait_for_line(log, "cannot be reached")
        with urllib.request.urlopen(f"http://127.0.0.1:{unused_port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    assert "lbless_sync_dataplane_silent 1.0" in text
    assert "lbless_sync_status_writes 0.0" in text


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
