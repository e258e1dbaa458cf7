from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import pytest

from lbless_edge.process import Fatal, argument_parser, object_name, run, serve_metrics
from lbless_edge.workers import Workers

STOPPABLE = """
import sys
from lbless_edge.process import argument_parser, configure_logging, run, stop_event
options = argument_parser("p", "d").parse_args()
configure_logging(options.log_format, options.log_level)
def program():
    import logging
    stop = stop_event()
    logging.getLogger("lbless.test").info("ready %s", "now")
    stop.wait()
sys.exit(run(program))
"""


def started(*options: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPABLE, *options], stderr=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stderr is not None
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_ends_a_program_with_status_0_at_once(number: signal.Signals) -> None:
    with started() as process:
        assert process.stderr is not None
        assert "ready now" in process.stderr.readline()
        began = time.monotonic()
        process.send_signal(number)
        assert process.wait(5) == 0
        assert time.monotonic() - began < 1


def test_a_signal_that_comes_while_the_program_holds_the_events_lock_stops_it_all_the_same() -> None:
    program = (
        "import signal, threading\n"
        "from lbless_edge.process import stop_event\n"
        "stop, wait = stop_event(), threading.Condition.wait\n"
        "def interrupted_wait(self, timeout=None):\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    return wait(self, timeout)\n"
        "threading.Condition.wait = interrupted_wait\n"
        "stop.wait()\n"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=10, check=False).returncode == 0


def test_a_log_line_is_one_json_object_where_json_is_asked_for() -> None:
    with started("--log-format", "json") as process:
        assert process.stderr is not None
        line = json.loads(process.stderr.readline())
        process.terminate()
        assert process.wait(5) == 0
    assert (line["level"], line["logger"], line["message"]) == ("INFO", "lbless.test", "ready now")
    assert line["time"]


def test_a_fatal_fault_is_one_line_and_status_1(caplog: pytest.LogCaptureFixture) -> None:
    def program() -> None:
        raise Fatal("The thing is missing: fetch it.")

    assert run(program) == 1
    assert [r.getMessage() for r in caplog.records] == ["The thing is missing: fetch it."]
    assert caplog.records[0].exc_info is None


@pytest.mark.parametrize("bad", ["", "../node", "Node", "a/b", "a b", "-a", "a\n", "a" * 254])
def test_a_name_that_is_none_never_gets_past_the_command_line(
    bad: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argument_parser("p", "d")
    parser.add_argument("--node", type=object_name)
    with pytest.raises(SystemExit) as ended:
        parser.parse_args([f"--node={bad}"])
    assert ended.value.code == 2
    assert "is not a Kubernetes name" in capsys.readouterr().err


def test_names_of_nodes_pass_the_command_line() -> None:
    assert object_name("ip-10-0-0-1.eu.internal") == "ip-10-0-0-1.eu.internal"


@pytest.mark.parametrize("bad", ["-1", "65536", "http"])
def test_a_metrics_port_that_is_none_is_refused(bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        argument_parser("p", "d").parse_args([f"--metrics-port={bad}"])
    assert "is no port" in capsys.readouterr().err


def test_metrics_are_served_on_the_loopback_address_only() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve_metrics(port)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        assert b"python_info" in answer.read()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.2", port), timeout=5)
    with pytest.raises(
        Fatal, match=f"127.0.0.1:{port} .Address already in use.: choose another --metrics-port"
    ):
        serve_metrics(port)


def test_a_worker_that_fails_ends_the_program_with_its_sentence() -> None:
    stop = threading.Event()
    workers = Workers(stop)

    def fail() -> None:
        raise Fatal("The disk is full: make room.")

    workers.start("patient", stop.wait)
    workers.start("failing", fail)
    with pytest.raises(Fatal, match="The disk is full: make room"):
        workers.wait()
    workers.join()
    assert not [t for t in threading.enumerate() if t.name == "patient"]


def test_a_defect_in_a_worker_ends_the_program_and_leaves_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    workers = Workers(threading.Event())
    workers.start("broken", lambda: os.stat("/nonexistent/file"))  # type: ignore[arg-type,return-value]  # it raises
    with pytest.raises(Fatal, match=r"Worker broken failed \(FileNotFoundError\)"):
        workers.wait()
    assert caplog.records[0].exc_info is not None


def test_a_worker_that_ends_by_itself_is_not_overlooked() -> None:
    workers = Workers(threading.Event())
    workers.start("idle", lambda: None)
    with pytest.raises(Fatal, match="Worker idle ended by itself"):
        workers.wait()


def test_a_worker_that_hangs_does_not_keep_the_program() -> None:
    stop, never = threading.Event(), threading.Event()
    workers = Workers(stop)
    workers.start("hanging", lambda: never.wait(30) and None)
    stop.set()
    workers.wait()
    began = time.monotonic()
    workers.join(0.2)
    assert time.monotonic() - began < 1
    never.set()
