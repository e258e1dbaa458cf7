"""The picture of a move is what its record gives."""

from pathlib import Path

import pytest

from lab import movepicture
from unit.segment import onemove

ROOT = Path(__file__).parents[2]


def test_the_picture_in_the_docs_is_drawn_from_the_record_in_the_tree():
    shown = movepicture.from_json((ROOT / "tests/vectors/move.json").read_text())
    assert (ROOT / "docs/moves.svg").read_text() == movepicture.svg(shown)


def test_a_move_goes_through_every_state_in_the_order_of_the_docs_and_is_kept_as_it_was():
    made = onemove.record()
    assert movepicture.from_json(movepicture.to_json(made)) == made
    states = {node: [s.state for s in made.spans if s.node == node] for node in ("n0", "n1")}
    assert states["n0"] == ["owned", "drain, sends on", "drain", "ending", ""]
    assert states["n1"] == ["", "standby", "fresh", "owned"]
    begins = {(s.node, s.state): s.from_ms for s in made.spans}
    assert (
        begins["n1", "standby"]
        < begins["n0", "drain, sends on"]
        < begins["n1", "fresh"]
        < begins["n0", "drain"]
    )
    assert begins["n0", "ending"] < begins["n1", "owned"]


def test_a_text_that_is_no_record_is_refused():
    with pytest.raises(KeyError):
        movepicture.from_json("{}")
