"""The picture of a takeover is made from its record alone, and any record makes a well-formed one."""

from pathlib import Path
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from lab import timeline
from lab.timeline import Attempt, Mark, Record

SVG = "{http://www.w3.org/2000/svg}"

times = st.floats(-300, 1500).map(lambda value: round(value, 1))
names = st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=30)
records = st.builds(
    Record,
    title=names,
    struck=st.just("n1"),
    from_ms=st.just(-300.0),
    to_ms=st.floats(100, 3000),
    marks=st.lists(st.builds(Mark, at_ms=times, what=names), max_size=6).map(tuple),
    attempts=st.lists(
        st.builds(
            Attempt,
            at_ms=times,
            bucket=st.integers(0, 31),
            node=st.sampled_from(["n1", "n2", "n3", timeline.NOBODY]),
        ),
        max_size=50,
    ).map(tuple),
)


@given(records)
def test_a_record_that_is_kept_and_read_again_draws_the_same_picture(record):
    again = timeline.from_json(timeline.to_json(record))
    assert again == record
    assert timeline.svg(again) == timeline.svg(record)


@given(records)
def test_a_picture_has_a_dot_for_each_attempt_and_says_each_mark(record):
    picture = ElementTree.fromstring(timeline.svg(record))  # noqa: S314 - of our own making
    assert len(picture.findall(f"{SVG}circle")) == len(record.attempts)
    said = [text.text or "" for text in picture.iter(f"{SVG}text")]
    for mark in record.marks:
        assert any(mark.what in one for one in said)


def test_the_picture_of_the_documentation_is_that_of_its_record() -> None:
    root = Path(__file__).parents[2]
    shown = timeline.from_json((root / "tests/vectors/failover-takeover.json").read_text())
    assert (root / "docs/failover.svg").read_text() == timeline.svg(shown)
