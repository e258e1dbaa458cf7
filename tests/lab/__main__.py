"""`python -m lab up|down|status`: a LAN with a control plane that stays, for looking around by hand."""

import argparse
import sys
from collections.abc import Callable

from lab import claim
from lab.controlplane import ControlPlane
from lab.errors import exit_code
from lab.lan import Lan


def main() -> int:
    """Do what the command line says and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lab", description=__doc__)
    parser.add_argument("command", choices=["up", "down", "status"])
    parser.add_argument("--prefix", default="lab", help="beginning of all names (default: lab)")
    parser.add_argument("--nodes", type=int, default=3, help="number of nodes (default: 3)")
    arguments = parser.parse_args()
    commands: dict[str, Callable[[], None]] = {
        "up": lambda: _up(arguments.prefix, arguments.nodes),
        "down": lambda: claim.remove(arguments.prefix),
        "status": lambda: _status(arguments.prefix),
    }
    return exit_code(commands[arguments.command], "nothing is left")


def _up(prefix: str, nodes: int) -> None:
    with Lan(prefix, nodes) as lan, ControlPlane(lan) as control_plane:
        for node in lan.nodes:
            control_plane.make_node(node.name, node.address)
        lan.keep()
        print(f"kubectl:  kubectl --kubeconfig {control_plane.kubeconfig} get nodes")
        print(
            f"a host:   {' '.join(lan.client.enter)} bash   (any of `python -m lab status --prefix {prefix}`)"
        )
        print(f"the end:  python -m lab down --prefix {prefix}")


def _status(prefix: str) -> None:
    namespaces = claim.namespaces(prefix)
    for namespace in namespaces:
        print(namespace)
    print(f"{len(namespaces)} namespaces, {len(claim.processes(prefix))} processes")


if __name__ == "__main__":
    sys.exit(main())
