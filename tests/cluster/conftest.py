"""One real control plane, without nodes of its own, shared by all tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.operatorworld import Agents, Operator, World
from cluster.scene import Scene, at_work
from lab import claim
from lab.controlplane import ControlPlane
from lab.installation import RBAC, install_crds
from lab.lan import Lan
from lab.progress import Silence


@pytest.fixture(scope="session")
def bare_control_plane() -> Iterator[ControlPlane]:
    """etcd, kube-apiserver and kube-controller-manager, nothing of lbless in them."""
    with (
        Lan(claim.unique("lbcluster"), nodes=0) as lan,
        ControlPlane(lan, progress=Silence()) as control_plane,
    ):
        yield control_plane


@pytest.fixture(scope="session")
def control_plane(bare_control_plane: ControlPlane) -> ControlPlane:
    """The same with lbless's CRDs, served."""
    install_crds(bare_control_plane)
    return bare_control_plane


@pytest.fixture(scope="module")
def agents(control_plane: ControlPlane) -> Iterator[Agents]:
    """Agents of nodes that a module's tests make; they confirm whatever is assigned."""
    control_plane.apply(RBAC)
    agents = Agents(control_plane)
    yield agents
    agents.close()


@pytest.fixture
def world(control_plane: ControlPlane, agents: Agents) -> Iterator[World]:
    """Nodes, pods and ClusterIPs of one test."""
    world = World(control_plane, agents)
    yield world
    world.close()


@pytest.fixture
def program(control_plane: ControlPlane, agents: Agents, tmp_path: Path) -> Iterator[Operator]:
    """lbless-operator, to be started by the test."""
    program = Operator(control_plane, tmp_path)
    yield program
    program.close()


@pytest.fixture
def scene(world: World, program: Operator, tmp_path: Path) -> Iterator[Scene]:
    """An operator and two syncs at work, each behind a fault proxy."""
    with at_work(world, program, tmp_path) as scene:
        yield scene
