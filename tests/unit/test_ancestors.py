"""docs/ancestors.md promises a test for whatever lbless has of its ancestors: each of them is in the tree."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "ancestors.md"
WORDS = {"yes", "partly", "being built", "not yet", "no"}
SHOWN = {"yes", "partly"}
ANCESTORS = 6


def complaints(page: str) -> Iterator[str]:
    """What is wrong with the tables of ancestors, one sentence each."""
    for row in rows(page):
        feature, word, how, shown_by = row
        if word not in WORDS:
            yield f"{feature}: {word!r} is none of the page's words"
        if not how:
            yield f"{feature}: nothing is said about it"
        if word in SHOWN and not named_tests(shown_by):
            yield f"{feature}: it says {word} and names no test"
        if word == "being built" and shown_by:
            yield f"{feature}: it is being built and names a test"
    for path, name in named_tests(page):
        if name not in defined_in(TESTS / path):
            yield f"there is no test {path}::{name}"
    for text in re.findall(r"`[^`]*::[^`]*`", page):
        if text != "`folder/file.py::name`" and not named_tests(text):
            yield f"{text} is not the name of a test"


def rows(page: str) -> list[list[str]]:
    """The cells of each row of each table of four columns, without heads and rules."""
    lines = [line for line in page.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [row for row in cells if len(row) == 4 and row[1] not in {"in lbless", "---"}]


def named_tests(text: str) -> list[tuple[str, str]]:
    """Path below tests/ and name of each test that a text names."""
    return re.findall(r"`(\w+/\w+\.py)::(test_\w+)`", text)


def defined_in(path: Path) -> set[str]:
    """Names of all functions of a file, methods included; none if it is not there."""
    if not path.exists():
        return set()
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_this_page_names_a_test_for_each_yes_and_every_test_that_it_names_exists():
    page = PAGE.read_text()
    sections = page.split("\n## ")[1 : ANCESTORS + 1]
    assert all(len(rows(section)) > 9 for section in sections), "an ancestor's table is not read"
    assert list(complaints(page)) == []


HERE = "`unit/test_ancestors.py::test_what_is_not_there_is_noticed`"


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("| a | yes | so | |", "a: it says yes and names no test"),
        ("| a | partly | so | by hand |", "a: it says partly and names no test"),
        ("| a | maybe | so | |", "a: 'maybe' is none of the page's words"),
        (f"| a | yes | | {HERE} |", "a: nothing is said about it"),
        (f"| a | being built | so | {HERE} |", "a: it is being built and names a test"),
        (
            "| a | yes | so | `unit/test_ancestors.py::test_of_another_name` |",
            "there is no test unit/test_ancestors.py::test_of_another_name",
        ),
        (
            "| a | no | so | `unit/test_nowhere.py::test_a` |",
            "there is no test unit/test_nowhere.py::test_a",
        ),
        (f"| a | yes | so | {HERE}, `unit::test_b` |", "`unit::test_b` is not the name of a test"),
    ],
)
def test_what_is_not_there_is_noticed(row: str, complaint: str):
    assert list(complaints(row)) == [complaint]


def test_a_good_row_is_no_complaint():
    assert list(complaints(f"| a | yes | so | {HERE} |\n| b | no | why | |")) == []
