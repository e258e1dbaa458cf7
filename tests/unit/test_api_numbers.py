"""Epochs and incarnations: wherever one is read, it is no larger than a heartbeat's frame can say."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lbless_api.clusterip import parse_clusterip
from lbless_api.fields import Invalid
from lbless_api.heartbeat import MAX_NUMBER
from lbless_api.node import parse_node_status
from lbless_api.state import parse_observed
from lbless_nodeagent.dataplane.identity import parse_identity
from lbless_operator.status import parse_epoch, parse_status

CRDS = sorted((Path(__file__).parents[2] / "crds").glob("*.yaml"))
IDENTITY = {"namespace": "shop", "name": "web", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"}


def clusterip(status: dict[str, Any]) -> object:
    return parse_clusterip({"metadata": IDENTITY, "spec": {"ip": "192.0.2.10"}, "status": status})


def observed(**said: Any) -> object:
    return parse_observed({"bootID": "b", "boottimeSeconds": 1.0, **said})


def interface(number: int) -> dict[str, Any]:
    return {"name": "eth0", "mac": "02:00:00:00:00:01", "incarnation": number}


def assigned(number: int) -> dict[str, Any]:
    return {"assignments": [{"node": "n1", "incarnation": number, "buckets": "0"}]}


READERS: dict[str, Callable[[int], object]] = {
    "a ClusterIP's epoch": lambda n: clusterip({"epoch": n}),
    "a ClusterIP's incarnation": lambda n: clusterip(assigned(n)),
    "a status's epoch": lambda n: parse_status({"epoch": n}),
    "an epoch alone": lambda n: parse_epoch({"epoch": n}),
    "a status's incarnation": lambda n: parse_status(assigned(n)),
    "an interface in observed.json": lambda n: observed(interfaces=[interface(n)]),
    "applied in observed.json": lambda n: observed(applied={"u": n}),
    "a failure in observed.json": lambda n: observed(failures=[{"uid": "u", "epoch": n}]),
    "an interface in a ClusterIPNode": lambda n: parse_node_status({"interfaces": [interface(n)]}),
    "a pending one in a ClusterIPNode": lambda n: parse_node_status({"pending": [{"uid": "u", "epoch": n}]}),
    "a failure in a ClusterIPNode": lambda n: parse_node_status({"failures": [{"uid": "u", "epoch": n}]}),
    "identity.json": lambda n: parse_identity({"interfaces": {"eth0": {"incarnation": n, "bootID": "b"}}}),
}


@pytest.mark.parametrize("reader", READERS)
def test_an_epoch_or_incarnation_that_no_frame_can_say_is_refused_with_a_sentence_where_it_is_read(
    reader: str,
) -> None:
    READERS[reader](MAX_NUMBER)
    sentence = rf"^\S+ is {MAX_NUMBER + 1}: use 0 to {MAX_NUMBER}\.$"
    with pytest.raises(Invalid, match=sentence):
        READERS[reader](MAX_NUMBER + 1)


def test_counters_may_be_larger() -> None:
    observed(counters={"packets": MAX_NUMBER + 1})


@pytest.mark.parametrize("path", CRDS, ids=lambda path: path.name)
def test_the_api_server_refuses_it_before(path: Path) -> None:
    fields = list(numbers(yaml.safe_load(path.read_text())))
    assert fields
    for field in fields:
        assert (field["minimum"], field["maximum"]) == (0, MAX_NUMBER)


def numbers(schema: object) -> Iterator[dict[str, Any]]:
    """The schemas of all fields named epoch or incarnation."""
    if isinstance(schema, list):
        for one in schema:
            yield from numbers(one)
    elif isinstance(schema, dict):
        for name, inner in schema.items():
            if name in {"epoch", "incarnation"} and isinstance(inner, dict):
                yield inner
            yield from numbers(inner)
