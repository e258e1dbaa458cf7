"""1,000 malformed ClusterIPs against the real API server: the CRD refuses what the types refuse, in a sentence."""

import random
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import pytest

from e2e.malformed import specs
from lab.controlplane import ControlPlane
from lab.rest import ApiError

pytestmark = [pytest.mark.root, pytest.mark.apiserver]

COUNT = 1000
PATH = "/apis/lbless.dev/v1alpha1/namespaces/default/clusterips?dryRun=All"


def test_none_of_1000_malformed_objects_is_accepted_and_each_is_refused_by_name(
    control_plane: ControlPlane,
) -> None:
    def create(numbered: tuple[int, tuple[str, Any]]) -> tuple[str, Any, ApiError | None]:
        number, (field, spec) = numbered
        body = {
            "apiVersion": "lbless.dev/v1alpha1",
            "kind": "ClusterIP",
            "metadata": {"name": f"malformed-{number}"},
            "spec": spec,
        }
        try:
            control_plane.api("POST", PATH, body)
        except ApiError as error:
            return field, spec, error
        return field, spec, None

    generated = islice(specs(random.Random(4)), COUNT)
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(create, enumerate(generated)))
    accepted = {(field, repr(spec.get(field))) for field, spec, error in outcomes if error is None}
    assert accepted == set()
    for field, spec, error in outcomes:
        if error is not None:
            assert error.status in {400, 422}, error
            assert field in str(error) or field == "spec", (spec, error)
