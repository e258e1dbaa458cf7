"""`make demo`: the main job shown from beginning to end. Decides nothing: all it uses is the lab's."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab import claim, programs, servers, verdict
from lab.controlplane import ControlPlane
from lab.errors import LabError
from lab.installation import NAMESPACE, Installation
from lab.kernelstate import traces
from lab.lan import Lan
from lab.progress import Progress, Silence
from lbless_api.clusterip import ClusterIP

PREFIX = "lbdemo"
NODES = 3
CONNECTIONS = 400
BAR = 40
EXAMPLE = Path(__file__).parents[2] / "docs/examples/web.yaml"
LABELS = {"app": "web"}


class Shown(Exception):
    """What was shown is not what lbless promises; the message says what was seen instead."""


def main() -> int:
    """Run the demonstration and return the exit status."""
    parser = argparse.ArgumentParser(prog="make demo", description="One address on three nodes.")
    parser.add_argument("--keep", action="store_true", help="leave the lab up and say how to enter it")
    parser.add_argument(
        "--down", action="store_true", help="remove a lab that was left up, and do nothing else"
    )
    arguments = parser.parse_args()
    progress = Progress(sys.stdout)
    if os.geteuid() != 0:
        print("The demonstration needs root, for network namespaces: run it as root.", file=sys.stderr)
        return 1
    try:
        if arguments.down:
            claim.remove(PREFIX)
            return 0
        if claim.is_kept(PREFIX):
            progress.say("removing the lab that was left up before")
        with _lab(progress) as lbless:
            show(lbless, progress)
            if arguments.keep:
                lbless.lan.keep()
                print(_how_to_enter(lbless))
            else:
                finish(lbless, progress)
    except (LabError, Shown) as error:
        print(f"The demonstration failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped; everything that was made is removed.", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


@contextmanager
def _lab(progress: Progress) -> Iterator[Installation]:
    found = programs.find(progress)
    progress.say(f"making a LAN of namespaces: {NODES} nodes, a router, clients on both sides of it")
    with Lan(PREFIX, nodes=NODES) as lan:
        for node in lan.nodes:
            servers.await_ready(node, servers.start(node, tcp=[servers.TCP_PORT], udp=[servers.UDP_PORT]))
        with (
            ControlPlane(lan, found, progress=progress) as control_plane,
            Installation(lan, control_plane, progress) as lbless,
        ):
            yield lbless


def show(lbless: Installation, progress: Progress) -> None:
    """Apply the example, drive connections, take a node's pod away, drive connections again."""
    for node in lbless.lan.nodes:
        lbless.control_plane.make_pod("default", f"web-{node.name}", node.name, labels=LABELS)
    heading(f"kubectl apply -f {EXAMPLE.relative_to(Path(__file__).parents[2])}")
    print(EXAMPLE.read_text().strip())
    lbless.control_plane.apply(EXAMPLE)
    web = lbless.wait_ready("web")

    heading("kubectl get cip")
    print(lbless.control_plane.kubectl("get", "cip").stdout.rstrip())
    heading("kubectl describe cip web")
    print(lbless.control_plane.kubectl("describe", "cip", "web").stdout.rstrip())

    heading(f"{CONNECTIONS} connections, half of them through a router")
    drive(lbless, web)

    heading("the pod on n2 turns unready")
    progress.say("kubectl: pod web-n2 Ready=False")
    lbless.control_plane.set_pod_ready("default", "web-n2", False)
    moved = lbless.wait_ready("web", after_epoch=web.epoch)
    progress.say(f"its share is on the others, in their kernels too (epoch {web.epoch} to {moved.epoch})")
    for before in web.assignments:
        after = moved.assigned_to(before.node)
        print(f"  {before.node}: {len(before.buckets)} buckets -> {len(after.buckets) if after else 0}")
    drive(lbless, moved)


def drive(lbless: Installation, clusterip: ClusterIP) -> None:
    """Make the connections, print who answered, and insist on exactly one right answer each."""
    found = verdict.tcp(lbless.lan, clusterip, CONNECTIONS)
    for node in lbless.lan.nodes:
        count = found.by_node.get(node.name, 0)
        print(f"  {node.name}  {'█' * round(BAR * count / found.attempts):<{BAR}} {count}")
    if found.faults:
        raise Shown(f"{len(found.faults)} of {found.attempts} connections were not right: {found.faults[0]}")
    print(
        f"  {found.attempts} connections from {found.sources} addresses: each answered exactly once "
        f"(SYN-ACKs counted on the wire), by the node that the assignment names; {found.resets} RST."
    )


def finish(lbless: Installation, progress: Progress) -> None:
    """Delete the ClusterIP and insist that no node keeps anything of it."""
    heading("kubectl delete cip web")
    web = lbless.get("web")
    lbless.delete("web")

    def clean() -> bool:
        return not any(traces(n, web["spec"]["ip"], web["status"]["mac"]) for n in lbless.lan.nodes)

    progress.until("the nodes to let go of the address", clean, timeout_seconds=10)
    progress.say("nothing of it is left on any node; cleaning up")


def heading(text: str) -> None:
    """Set a step off from the one before."""
    print(f"\n--- {text}", flush=True)


def _how_to_enter(lbless: Installation) -> str:
    lan = lbless.lan
    return f"""
The lab stays up.
  a node        nsenter --net=/run/netns/{lan.nodes[0].namespace} bash     (then: nft list table ip lbless)
  a client      nsenter --net=/run/netns/{lan.client.namespace} bash
  Kubernetes    export PATH={programs.find(Silence()).kubectl.parent}:$PATH KUBECONFIG={lbless.control_plane.kubeconfig}
  logs, state   {lan.directory}   (namespace of the operator's objects: {NAMESPACE})
Remove it with: make down"""


if __name__ == "__main__":
    sys.exit(main())
