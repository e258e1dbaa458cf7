"""Choosing among engines, and removing what another one left."""

from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Network

import pytest

from lbless_nodeagent.dataplane.engine import NOTHING, EngineError, Wanted
from lbless_nodeagent.dataplane.engines import AUTO, ENGINES, Leftovers, choose
from unit.memory_engine import MemoryEngine

SOMETHING = Wanted({}, frozenset({IPv4Network("10.244.1.0/24")}))


class Known(MemoryEngine):
    """An engine that remembers whether it was closed, and may be unable to remove."""

    def __init__(self, name: str, *, available: bool = True) -> None:
        super().__init__(SOMETHING)
        self.name = name
        self.available = available
        self.open = True
        self.stuck = False

    def remove(self) -> None:
        if self.stuck:
            raise EngineError("The kernel says no.")
        super().remove()

    def close(self) -> None:
        self.open = False


def registry(*engines: Known) -> dict[str, Callable[[], Known]]:
    return {engine.name: (lambda engine=engine: engine) for engine in engines}


@pytest.mark.parametrize(
    ("wanted", "works", "chosen", "passed_over"),
    [
        (AUTO, (True, True), "first", ()),
        (AUTO, (False, True), "second", ("first",)),
        (AUTO, (False, False), "first", ("second",)),
        ("second", (True, True), "second", ()),
        ("second", (True, False), "second", ()),
    ],
)
def test_the_first_engine_that_works_is_used_unless_one_is_named(wanted, works, chosen, passed_over):
    engines = [Known(name, available=works) for name, works in zip(("first", "second"), works, strict=True)]
    choice = choose(wanted, registry(*engines))
    assert choice.engine.name == choice.report.name == chosen
    assert choice.report == replace(choice.engine.probe(), active=True)
    assert [(r.name, r.active, r.available) for r in choice.passed_over] == [
        (name, False, False) for name in passed_over
    ]
    assert all(engine.open for engine in engines if engine.name == chosen)
    assert not any(engine.open for engine in engines if engine.name in passed_over)


def test_what_the_others_left_goes_and_what_the_chosen_one_holds_stays():
    first, second, third = (Known(name) for name in ("first", "second", "third"))
    choice = choose("second", registry(first, second, third))
    assert choice.leftovers
    assert choice.leftovers.remove() == ()
    assert not choice.leftovers
    assert [engine.kernel for engine in (first, second, third)] == [NOTHING, SOMETHING, NOTHING]
    assert [engine.open for engine in (first, second, third)] == [False, True, False]


def test_what_cannot_be_removed_is_said_and_tried_again():
    first, second = Known("first"), Known("second")
    first.stuck = True
    leftovers = Leftovers(registry(first, second))
    (sentence,) = leftovers.remove()
    assert sentence == "The rules that the first engine left here cannot be removed: The kernel says no."
    assert second.kernel is NOTHING
    first.stuck = False
    assert leftovers
    assert leftovers.remove() == ()
    assert first.kernel is NOTHING
    assert not leftovers


def test_an_engine_that_does_not_work_here_left_nothing_to_complain_about():
    first = Known("first", available=False)
    first.stuck = True
    leftovers = Leftovers(registry(first))
    assert leftovers.remove() == ()
    assert not leftovers


def test_no_constructor_of_an_engine_needs_anything_of_this_machine():
    for name, construct in ENGINES.items():
        engine = construct()
        assert engine.name == name
        assert engine.capabilities()
        engine.close()
