"""An operator and two syncs at work, each behind a fault proxy of its own: where the API server's faults are tried.

Owns their start and end, and what a test deletes behind their backs. Agents are played, as the real ones are in the
end-to-end tests; what is wrong with the API server, and what must come of it, is the tests'.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.operatorworld import Operator, World, log_of, shares, until
from cluster.syncing import ACCOUNT, SyncedNode, speaking, wait_for
from lab.faultproxy import FaultProxy
from lab.installation import NAMESPACE

RIGHT_SECONDS = 80.0
"""Promised: so long after a watch went wrong, whatever happened meanwhile has taken effect."""


@dataclass
class Scene:
    """ClusterIP `stays` is shared by nodes a and b; `goes` and node b are what a test deletes while nobody sees it."""

    world: World
    program: Operator
    operator: subprocess.Popen[bytes]
    before_operator: FaultProxy
    syncs: dict[str, SyncedNode]
    before_syncs: dict[str, FaultProxy]
    a: str
    b: str

    @property
    def proxies(self) -> dict[str, FaultProxy]:
        """All of them, by the program behind."""
        return {"operator": self.before_operator, **self.before_syncs}

    def restart_operator(self) -> subprocess.Popen[bytes]:
        """Start another operator in the place of the one that has ended."""
        self.operator = self.program.start_behind(self.before_operator)
        return self.operator

    def assignment(self) -> tuple[int, Any]:
        """Epoch of `stays`, and who has what."""
        status = self.world.get("stays")["status"]
        return status["epoch"], status["assignments"]

    def delete(self) -> None:
        """Delete node b and ClusterIP `goes`, as administrator."""
        self.world.control_plane.delete_node(self.b)
        self.world.agents.remove(self.b)
        self.world.delete("goes")

    def times_until_right(self, since: float) -> dict[str, float]:
        """Seconds since `since` until each program has made right what was deleted."""
        wanted: dict[str, Callable[[], bool]] = {
            "operator": lambda: shares(self.world.get("stays")) == {self.a: 16}
        }
        for name, sync in self.syncs.items():
            wanted[name] = lambda sync=sync: set(sync.desired) == {"stays"}  # type: ignore[misc]
        took: dict[str, float] = {}

        def all_right() -> bool:
            took.update(
                {n: time.monotonic() - since for n, right in wanted.items() if n not in took and right()}
            )
            return len(took) == len(wanted)

        try:
            until("all to be right", all_right, RIGHT_SECONDS + 40)
        finally:
            print(f"right again after: { ({n: round(s, 1) for n, s in took.items()}) } s")
        return took


@contextmanager
def at_work(world: World, program: Operator, directory: Path) -> Iterator[Scene]:
    """Have all of it at work in the block; what was logged is printed, and must tell of no defect."""
    control_plane = world.control_plane
    with ExitStack() as stack:

        def started() -> FaultProxy:
            return stack.enter_context(FaultProxy(control_plane, control_plane.host))

        before_operator = started()
        before_syncs = {name: started() for name in ("sync", "second sync")}
        stack.callback(program.close)  # before its proxy; healed, so that it can release its Lease
        for proxy in (before_operator, *before_syncs.values()):
            stack.callback(proxy.heal)
        a, b = world.nodes("a", "b")
        world.clusterip("stays")
        world.clusterip("goes", ip=world.beside(1))
        operator = program.start_behind(before_operator)
        syncs = {}
        for number, (name, before) in enumerate(before_syncs.items()):
            node = f"{world.namespace}-synced-{number}"
            control_plane.make_node(node, f"10.80.250.{number + 1}")
            stack.callback(control_plane.delete_node, node)
            kubeconfig = control_plane.kubeconfig_for_service_account(
                NAMESPACE, ACCOUNT, node, server=before.outside_url
            )
            own = directory / node
            own.mkdir()
            syncs[name] = stack.enter_context(SyncedNode(control_plane, node, own, kubeconfig))
            syncs[name].observe({})
            syncs[name].start()
            stack.enter_context(speaking(syncs[name]))
        world.wait_shares({a: 8, b: 8}, "stays")
        for name in ("stays", "goes"):
            world.wait_condition("Programmed", "True", "Programmed", name)
        for name, sync in syncs.items():
            wait_for(f"the files of {name}", lambda sync=sync: set(sync.desired) == {"stays", "goes"})
            wait_for(f"the Lease and the report of {name}", lambda sync=sync: sync.lease and sync.ready)
        scene = Scene(world, program, operator, before_operator, syncs, before_syncs, a, b)
        yield scene
        operators = [log_of(one) for one in dict.fromkeys((operator, scene.operator))]
        for log in (*operators, *(sync.log for sync in syncs.values())):
            print(log)
        assert not any("defect" in log for log in operators)
