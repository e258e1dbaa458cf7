"""Bucket sets behave as sets and print as ranges."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbless_api.buckets import BucketSet

members = st.sets(st.integers(0, 4095), max_size=200)


@given(members)
def test_what_is_printed_is_parsed_back(some):
    made = BucketSet(some)
    assert BucketSet.parse(str(made)) == made
    assert set(made) == some
    assert len(made) == len(some)


@given(members, members)
def test_the_algebra_is_that_of_sets(one, two):
    a, b = BucketSet(one), BucketSet(two)
    assert set(a | b) == one | two
    assert set(a & b) == one & two
    assert set(a - b) == one - two
    assert set(a ^ b) == one ^ two
    assert a.isdisjoint(b) == one.isdisjoint(two)
    assert a.issubset(b) == one.issubset(two)
    assert (a == b) == (one == two)


def test_ranges_are_as_few_as_possible():
    assert str(BucketSet([0, 1, 2, 90, 92, 93])) == "0-2,90,92-93"
    assert str(BucketSet()) == ""
    assert str(BucketSet.full(4096)) == "0-4095"
    assert list(BucketSet.parse("3,5-7").ranges()) == [(3, 3), (5, 7)]


def test_membership():
    some = BucketSet.parse("0-84,90")
    assert 84 in some
    assert 85 not in some
    assert -1 not in some
    assert "84" not in some


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a", "malformed"),
        ("0-", "malformed"),
        ("-3", "malformed"),
        ("1, 2", "malformed"),
        ("01", "malformed"),
        ("1,,2", "malformed"),
        ("٣", "malformed"),
        ("5-3", "not in ascending order"),
        ("5,5", "not in ascending order"),
        ("0-9,4", "not in ascending order"),
        ("256", "there are 256 buckets"),
        ("0-256", "there are 256 buckets"),
        ("9999", "there are 256 buckets"),
    ],
)
def test_anything_else_is_refused_with_one_sentence(text, sentence):
    with pytest.raises(ValueError, match=sentence):
        BucketSet.parse(text, buckets=256)


def test_a_member_out_of_range_is_refused():
    with pytest.raises(ValueError, match="4096 is out of range"):
        BucketSet([4096])
