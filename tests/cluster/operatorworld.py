"""What the operator's tests share: the program itself, and agents that only report, without any node behind them.

The real agents are in the end-to-end tests; these confirm at once whatever they are told to.
"""

from __future__ import annotations

import datetime
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.controlplane import ControlPlane
from lab.errors import LabError
from lab.faultproxy import FaultProxy
from lab.installation import LEASES, NAMESPACE
from lab.progress import Silence
from lab.rest import APPLY_PATCH, ApiError
from lbless_api.digest import applied_digest
from lbless_api.node import EngineReport, render_engines
from lbless_api.segment import SegmentReport, render_segment

WITH_ROUNDS = """
from lbless_operator import __main__, agenda, reconciler
agenda.ROUND_SECONDS = {round_seconds}
agenda.BLIND_SECONDS = reconciler.BLIND_SECONDS = 3 * {round_seconds}
raise SystemExit(__main__.main())
"""
"""The program with other rounds of LISTs than each minute."""
WITH_ANSWERS = """
from lbless_operator import __main__, seating
seating.ANSWER_SECONDS = {answer_seconds}
raise SystemExit(__main__.main())
"""
"""The program that gives nodes another time to answer that they count as dead."""
CLUSTERIPS = "/apis/lbless.dev/v1alpha1/clusterips"
AGENTS = "/apis/lbless.dev/v1alpha1/clusteripnodes"


@dataclass
class Agent:
    """What one node's agent says. `confirms` False: it never applies a thing; `failing`: it refuses these UIDs;
    `draining`: so many connections it still finishes of these."""

    node: str
    address: str
    interface: str = "eth0"
    incarnation: int = 1
    gateways: tuple[str, ...] = ()
    engines: tuple[EngineReport, ...] = ()
    segment: SegmentReport | None = None
    confirms: bool = True
    failing: dict[str, str] = field(default_factory=dict)
    draining: dict[str, int] = field(default_factory=dict)
    renews: bool = True
    reports: bool = True
    written: dict[str, Any] | None = None
    lease_at: float = 0.0


class Agents:
    """All agents, in one thread: each 50 ms it looks at the ClusterIPs and reports what changed."""

    def __init__(self, control_plane: ControlPlane) -> None:
        self._control_plane = control_plane
        self._agents: dict[str, Agent] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def add(self, node: str, address: str, *, lease_age_seconds: float = 0.0, **options: Any) -> Agent:
        """Let a node have an agent, with a Lease that says that it was renewed `lease_age_seconds` ago."""
        agent = Agent(node, address, **options)
        if agent.reports:
            self._control_plane.api("POST", AGENTS, {**_kind("ClusterIPNode"), "metadata": {"name": node}})
        self._renew(agent, lease_age_seconds)
        with self._lock:
            self._agents[node] = agent
        return agent

    def remove(self, node: str) -> None:
        """Let an agent be gone, with its report and its Lease, as the garbage collector has it."""
        with self._lock:
            self._agents.pop(node, None)
        for path in (f"{AGENTS}/{node}", f"{LEASES}/lbless-node-{node}"):
            try:
                self._control_plane.api("DELETE", path)
            except ApiError as error:
                if error.status != 404:
                    raise

    def get(self, node: str) -> Agent:
        """A node's agent; what is changed in it is reported soon."""
        with self._lock:
            return self._agents[node]

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            try:
                with self._lock:
                    self._look()
            except ApiError:
                continue  # an object that a test deletes just now; the next look sees it

    def _look(self) -> None:
        clusterips = self._control_plane.api("GET", CLUSTERIPS)["items"]
        expected = {
            c["metadata"]["uid"]: (
                c["status"]["epoch"],
                f"{c['metadata']['namespace']}/{c['metadata']['name']}",
            )
            for c in clusterips
            if c.get("status", {}).get("epoch", 0) > 0
        }
        for agent in self._agents.values():
            if agent.renews and time.monotonic() - agent.lease_at > 5:
                self._renew(agent)
            status = _status(agent, expected)
            if agent.reports and agent.confirms and status != agent.written:
                body = {**_kind("ClusterIPNode"), "metadata": {"name": agent.node}, "status": status}
                path = f"{AGENTS}/{agent.node}/status?fieldManager=lbless-sync&force=true"
                self._control_plane.api("PATCH", path, body, content_type=APPLY_PATCH)
                agent.written = status

    def _renew(self, agent: Agent, age_seconds: float = 0.0) -> None:
        name = f"lbless-node-{agent.node}"
        renewed = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=age_seconds)
        body = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": name},
            "spec": {"holderIdentity": agent.node, "renewTime": renewed.strftime("%Y-%m-%dT%H:%M:%S.%fZ")},
        }
        path = f"{LEASES}/{name}?fieldManager=lbless-sync&force=true"
        self._control_plane.api("PATCH", path, body, content_type=APPLY_PATCH)
        agent.lease_at = time.monotonic()


def _status(agent: Agent, expected: Mapping[str, tuple[int, str]]) -> dict[str, Any]:
    return {
        "kernel": "6.1.0",
        "engines": render_engines(agent.engines),
        "interfaces": [
            {
                "name": agent.interface,
                "mac": "02:00:00:00:00:01",
                "addresses": [agent.address],
                "gateways": list(agent.gateways),
                "carrier": True,
                "incarnation": agent.incarnation,
                **render_segment(agent.segment),
            }
        ],
        "appliedDigest": applied_digest(
            {uid: epoch for uid, (epoch, _) in expected.items() if uid not in agent.failing}
        ),
        "failures": [
            {
                "uid": uid,
                "clusterIP": expected[uid][1],
                "epoch": expected[uid][0],
                "reason": "Failed",
                "message": why,
            }
            for uid, why in agent.failing.items()
            if uid in expected
        ],
        "drains": [
            {"uid": uid, "clusterIP": expected[uid][1], "buckets": "0-3", "flows": flows}
            for uid, flows in agent.draining.items()
            if uid in expected
        ],
    }


def _kind(kind: str) -> dict[str, str]:
    return {"apiVersion": "lbless.dev/v1alpha1", "kind": kind}


class Operator:
    """The program lbless-operator on this machine, under its service account."""

    def __init__(self, control_plane: ControlPlane, directory: Path) -> None:
        self._control_plane = control_plane
        self._directory = directory
        self._count = 0
        self._started: list[subprocess.Popen[bytes]] = []

    def close(self) -> None:
        """End what still runs; the Lease is free afterwards, also if that had to be killed: who finds it held has to
        wait longer than most tests do."""
        try:
            for process in self._started:
                if process.poll() is None:
                    process.send_signal(signal.SIGCONT)
                    end(process)
        finally:
            self._free_lease()

    def start(
        self,
        *arguments: str,
        kubeconfig: Path | None = None,
        round_seconds: float | None = None,
        answer_seconds: float | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a replica; `log` of it is what it says. `round_seconds`: how far its rounds of LISTs are apart,
        if a test cannot wait for those of the program. `answer_seconds`: likewise for answers, if a test must
        not be too late for them.
        """
        kubeconfig = kubeconfig or self._control_plane.kubeconfig_for_service_account(
            NAMESPACE, "lbless-operator", outside=True
        )
        self._count += 1
        log = (self._directory / f"operator-{self._count}.log").open("wb")
        environment = {**os.environ, "KUBECONFIG": str(kubeconfig)}
        program = ["-m", "lbless_operator"]
        if round_seconds is not None:
            program = ["-c", WITH_ROUNDS.format(round_seconds=round_seconds)]
        if answer_seconds is not None:
            program = ["-c", WITH_ANSWERS.format(answer_seconds=answer_seconds)]
        command = [sys.executable, *program, "--namespace", NAMESPACE, *arguments]
        process = subprocess.Popen(command, env=environment, stderr=log, stdout=log)
        process.log_path = Path(log.name)  # type: ignore[attr-defined] # carried along, as Popen has no place for it
        log.close()
        self._started.append(process)
        return process

    def _free_lease(self) -> None:
        try:
            self._control_plane.api("DELETE", f"{LEASES}/lbless-operator")
        except ApiError as error:
            if error.status != 404:
                raise

    def start_behind(self, proxy: FaultProxy, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a replica that knows the API server as `proxy`."""
        kubeconfig = self._control_plane.kubeconfig_for_service_account(
            NAMESPACE, "lbless-operator", server=proxy.outside_url
        )
        return self.start(*arguments, kubeconfig=kubeconfig)


def log_of(process: subprocess.Popen[bytes]) -> str:
    """All that a program has said so far."""
    path: Path = process.log_path  # type: ignore[attr-defined] # set by Operator.start
    return path.read_text()


def await_log(process: subprocess.Popen[bytes], text: str, timeout_seconds: float = 20) -> str:
    """Return the first line of the log that contains a text, once there is one."""

    def said() -> str | None:
        return next((line for line in log_of(process).splitlines() if text in line), None)

    return str(until(f"the operator to say {text!r}", said, timeout_seconds))


def end(process: subprocess.Popen[bytes], number: int = signal.SIGTERM, timeout_seconds: float = 10) -> int:
    """Signal a program and return its exit status. Of one that does not end it is printed what its threads do."""
    if process.poll() is None:
        process.send_signal(number)
    try:
        return process.wait(timeout_seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)
        try:
            process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        print(log_of(process))
        raise


def conditions(clusterip: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The conditions by type."""
    return {c["type"]: c for c in clusterip.get("status", {}).get("conditions", [])}


def shares(clusterip: Mapping[str, Any]) -> dict[str, int]:
    """The share of every node that is named."""
    return {a["node"]: a["share"] for a in clusterip.get("status", {}).get("assignments", [])}


def until(what: str, condition: Any, timeout_seconds: float = 15) -> Any:
    """Return the first true value of `condition()`."""
    return Silence().until(what, condition, timeout_seconds=timeout_seconds, interval_seconds=0.02)


class World:
    """Nodes, pods and ClusterIPs of one test, in a namespace of its own, so that tests do not see each other's."""

    _numbers = itertools.count(1)

    def __init__(self, control_plane: ControlPlane, agents: Agents) -> None:
        number = next(self._numbers)
        self.control_plane = control_plane
        self.agents = agents
        self.namespace = f"world-{number}"
        self._number = number
        self._nodes: list[str] = []
        self.ip = f"10.80.{200 + number // 200}.{number % 200 + 1}"
        control_plane.make_namespace(self.namespace)

    def node(self, short: str, *, agent: bool = True, lease_age_seconds: float = 0.0, **options: Any) -> str:
        """Make a Node of this test, by default with a living agent; return its name."""
        name = f"{self.namespace}-{short}"
        address = f"10.80.{10 + self._number % 180}.{len(self._nodes) + 1}"
        labels = {"test": self.namespace, **options.pop("labels", {})}
        agent_options = {k: options.pop(k) for k in list(options) if k in Agent.__dataclass_fields__}
        self.control_plane.make_node(name, address, labels=labels, **options)
        self._nodes.append(name)
        if agent:
            self.agents.add(name, f"{address}/16", lease_age_seconds=lease_age_seconds, **agent_options)
        return name

    def beside(self, number: int) -> str:
        """Another address that no other test has."""
        return f"10.80.{220 + number}.{self.ip.rpartition('.')[2]}"

    def nodes(self, *shorts: str) -> list[str]:
        """Several Nodes with living agents."""
        return [self.node(short) for short in shorts]

    def clusterip(self, name: str = "web", **spec: Any) -> None:
        """Create a ClusterIP that selects this test's Nodes."""
        spec = {"ip": self.ip, "nodeSelector": {"test": self.namespace}, "buckets": 16, **spec}
        self.control_plane.make_clusterip(name, spec, self.namespace)

    def get(self, name: str = "web") -> dict[str, Any]:
        """A ClusterIP as it is now."""
        return self.control_plane.api("GET", self._path(name))

    def patch(self, patch: Mapping[str, Any], name: str = "web") -> None:
        """Merge into a ClusterIP."""
        self.control_plane.api("PATCH", self._path(name), patch)

    def delete(self, name: str = "web") -> None:
        """Delete a ClusterIP."""
        self.control_plane.api("DELETE", self._path(name))

    def wait_shares(self, expected: Mapping[str, int], name: str = "web", timeout_seconds: float = 15) -> Any:
        """Wait until the assignment is this one; return the ClusterIP."""
        got: dict[str, Any] = {}

        def same() -> bool:
            got.update(self.get(name))
            return shares(got) == expected

        try:
            until(f"{name} to have {expected}", same, timeout_seconds)
        except LabError as error:
            raise AssertionError(f"{error}: it is {json.dumps(got.get('status', {}), indent=1)}") from None
        return got

    def wait_condition(
        self, kind: str, status: str, reason: str, name: str = "web", timeout_seconds: float = 15
    ) -> dict[str, Any]:
        """Wait until a condition is so; return it."""
        got: dict[str, Any] = {}

        def so() -> bool:
            got.update(self.get(name))
            condition = conditions(got).get(kind, {})
            return (condition.get("status"), condition.get("reason")) == (status, reason)

        try:
            until(f"{name} to be {kind}={status} ({reason})", so, timeout_seconds)
        except LabError as error:
            raise AssertionError(f"{error}: it is {json.dumps(got.get('status', {}), indent=1)}") from None
        return conditions(got)[kind]

    def events(self, name: str = "web", namespace: str | None = None) -> list[dict[str, Any]]:
        """The Events about an object of this test."""
        namespace = namespace or self.namespace
        path = f"/apis/events.k8s.io/v1/namespaces/{namespace}/events"
        return [e for e in self.control_plane.api("GET", path)["items"] if e["regarding"]["name"] == name]

    def wait_event(
        self, reason: str, name: str = "web", namespace: str | None = None, containing: str = ""
    ) -> str:
        """Wait for an Event whose note contains a text; return the note."""

        def found() -> str | None:
            notes = (e["note"] for e in self.events(name, namespace) if e["reason"] == reason)
            return next((note for note in notes if containing in note), None)

        return str(until(f"an Event {reason} about {name} with {containing!r}", found))

    def close(self) -> None:
        """Delete what other tests would see."""
        for clusterip in self.control_plane.api("GET", self._path())["items"]:
            self.delete(clusterip["metadata"]["name"])
        for node in self._nodes:
            self.agents.remove(node)
            try:
                self.control_plane.delete_node(node)
            except ApiError as error:
                if error.status != 404:
                    raise

    def _path(self, name: str = "") -> str:
        path = f"/apis/lbless.dev/v1alpha1/namespaces/{self.namespace}/clusterips"
        return f"{path}/{name}" if name else path
