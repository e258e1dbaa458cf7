"""Asking the kernel of a host of the lab, a namespace's or a guest's; the questions are `kernels`'."""

import sys

from lab.host import Host
from vectors.cases import Case, parse

# A guest, whose processor is emulated, takes a minute for the cases of CLUSTERIP.
SECONDS = 280


def ask(host: Host, kernel: str) -> dict[Case, tuple[int, ...]]:
    """Return what "nft", "xt_cluster" or "clusterip" of a host's kernel answers. Raises LabError where it cannot."""
    done = host.run(
        [sys.executable, "-m", "vectors.kernels", kernel],
        timeout=SECONDS,
        environment={"PYTHONPATH": ":".join(path for path in sys.path if path)},
    )
    return dict(parse(done.stdout.splitlines()))
