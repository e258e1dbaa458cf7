"""Helm, as the environment of the tests has it.

Owns running it; what a chart is to come to is the callers' to know.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from lab.errors import LabError

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm/lbless"
PROGRAM = Path(sys.executable).parent / "helm"
WAIT_SECONDS = 120


class HelmError(LabError):
    """It refused; the message is all that it said."""


def helm(*arguments: str | Path, kubeconfig: Path | None = None) -> str:
    """Run `helm` with a kubeconfig, or without any cluster, and return what it printed. Raises HelmError."""
    reached = [f"--kubeconfig={kubeconfig}"] if kubeconfig else []
    done = subprocess.run(
        [PROGRAM, *reached, *arguments],
        # Nothing of the user's own: neither a cluster nor plugins.
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "KUBECONFIG": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    if done.returncode:
        raise HelmError(done.stderr.strip())
    return done.stdout
