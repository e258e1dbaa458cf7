"""Ready pods and endpoints by node: always the same as counting all of them anew."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from lbless_api.clusterip import PodWorkload, ServiceWorkload
from lbless_api.selectors import LabelSelector
from lbless_operator.eligibility import Readiness
from lbless_operator.facts import Kind, PodFact, SliceFact
from lbless_operator.workloads import Workloads
from unit import operatorobjects as objects

WEB = PodWorkload(LabelSelector.parse({"matchLabels": {"app": "web"}}, "selector"))
ALL = PodWorkload(LabelSelector())

pods = st.builds(
    PodFact,
    labels=st.sampled_from([{"app": "web"}, {"app": "db"}, {}]),
    node=st.sampled_from(["n1", "n2"]),
    ready=st.booleans(),
)


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(["p", "q", "r"]), st.none() | pods)),
    st.integers(0, 5),
)
def test_counting_pod_by_pod_equals_counting_anew_and_names_whom_it_matters(history, late):
    workloads = Workloads()
    workloads.follow("a/web", "a", WEB)
    kept: dict[tuple[str, str], PodFact] = {}
    for step, (namespace, name, fact) in enumerate(history):
        if step == late:
            workloads.follow("a/all", "a", ALL)
        before = {key: workloads.readiness(key) for key in ("a/web", "a/all", "b/none")}
        affected = workloads.pod(namespace, name, fact)
        kept.pop((namespace, name), None)
        if fact:
            kept[namespace, name] = fact
        for key, old in before.items():
            assert (workloads.readiness(key) != old) == (key in affected), key
    matching = [f for (namespace, _), f in kept.items() if namespace == "a" and f.labels.get("app") == "web"]
    expected = Counter(f.node for f in matching if f.ready)
    assert workloads.readiness("a/web") == Readiness(dict(expected), bool(matching))


def slice_of(service: str, *endpoints: tuple[str, str]) -> SliceFact:
    return SliceFact(service, frozenset(endpoints))


def test_an_endpoint_in_two_slices_of_a_dual_stack_service_counts_once():
    workloads = Workloads()
    workloads.follow("a/web", "a", ServiceWorkload("web"))
    workloads.slice("a", "web-v4", slice_of("web", ("n1", "pod-1"), ("n1", "pod-2")))
    workloads.slice("a", "web-v6", slice_of("web", ("n1", "pod-1"), ("n2", "pod-3")))
    assert workloads.readiness("a/web") == Readiness({"n1": 2, "n2": 1}, True)


def test_a_slice_that_changes_its_service_concerns_both():
    workloads = Workloads()
    workloads.follow("a/one", "a", ServiceWorkload("one"))
    workloads.follow("a/two", "a", ServiceWorkload("two"))
    assert workloads.slice("a", "s", slice_of("one", ("n1", "p"))) == {"a/one"}
    assert workloads.slice("a", "s", slice_of("one", ("n1", "p"))) == set()
    assert workloads.slice("a", "s", slice_of("two", ("n1", "p"))) == {"a/one", "a/two"}
    assert workloads.slice("a", "s", None) == {"a/two"}


def test_a_changed_workload_is_counted_anew_and_a_deleted_one_no_longer():
    workloads = Workloads()
    workloads.pod("a", "p", objects.pod("p", "n1").fact)  # type: ignore[arg-type] # a pod's fact is a PodFact
    workloads.follow("a/web", "a", WEB)
    assert workloads.readiness("a/web") == Readiness({"n1": 1}, True)
    workloads.follow("a/web", "a", ServiceWorkload("web"))
    assert workloads.readiness("a/web") == Readiness({}, False)
    workloads.follow("a/web", "a", None)
    assert workloads.pod("a", "p", None) == set()


def test_a_namespace_nobody_asks_for_is_forgotten():
    workloads = Workloads()
    workloads.slice("a", "s", slice_of("web", ("n1", "p")))
    workloads.drop_namespace(Kind.SLICE, "a")
    workloads.follow("a/web", "a", ServiceWorkload("web"))
    assert not workloads.readiness("a/web").exists


def test_endpoints_that_end_and_still_serve_count_only_where_none_is_ready():
    workloads = Workloads()
    workloads.follow("shop/web", "shop", ServiceWorkload("web"))

    def ready(ending: str, **nodes: bool) -> dict[str, int]:
        workloads.slice("shop", "s", objects.endpoints("s", nodes, ending=ending).fact)  # type: ignore[arg-type]  # a slice's fact is a SliceFact
        return dict(workloads.readiness("shop/web").ready)

    assert ready("", a=True, b=True) == {"a": 1, "b": 1}
    assert ready("b", a=True, b=False) == {"a": 1}
    assert ready("b", a=False, b=False) == {"b": 1}
    assert ready("ab", a=False, b=False) == {"a": 1, "b": 1}
    workloads.slice("shop", "other", objects.endpoints("other", {"c": True}).fact)  # type: ignore[arg-type]  # the same
    assert ready("ab", a=False, b=False) == {"c": 1}
    workloads.slice("shop", "other", None)
    assert ready("", a=False, b=False) == {}
