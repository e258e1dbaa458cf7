"""lbless_api.hashing against what kernels answered (tests/vectors)."""

import pytest

from lbless_api.hashing import HashFunction, HashMode, bucket
from vectors import cases


@pytest.fixture(scope="module")
def answers() -> dict[cases.Case, tuple[int, ...]]:
    return cases.read()


def test_every_case_is_on_file(answers):
    assert set(answers) == set(cases.nft_cases())
    assert len(set(cases.tuples())) == cases.TUPLES == 5000


@pytest.mark.parametrize("mode", list(HashMode), ids=str)
@pytest.mark.parametrize("function", list(HashFunction), ids=str)
def test_every_bucket_is_what_the_kernels_answered(function, mode, answers):
    own = [case for case in answers if (case.function, case.mode) == (function, mode)]
    assert len(own) >= len(cases.PROTOCOLS) * 4
    for case in own:
        computed = tuple(
            bucket(
                function,
                mode,
                one.source,
                one.source_port,
                one.destination_port,
                buckets=case.buckets,
                seed=case.seed,
                protocol=cases.PROTOCOLS[case.protocol],
            )
            for one in cases.tuples()
        )
        assert computed == answers[case], case


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda line: line.replace(" 23 ", " 24 "), "seed 24 and 5000 buckets"),
        (lambda line: line.strip()[:-1], "seed 23 and 4999 buckets"),
    ],
)
def test_answers_to_other_questions_are_refused(spoil, sentence, monkeypatch):
    monkeypatch.setitem(cases.SEEDS, 7, 23)
    (line,) = cases.render({cases.Case("JHash", "SourceIP", "tcp", 7): (3,) * 5000})
    assert dict(cases.parse([line]))
    with pytest.raises(ValueError, match=sentence):
        dict(cases.parse([spoil(line)]))
