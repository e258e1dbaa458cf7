"""Every generated fault is one to the types as well, and is named in one sentence."""

import random
from itertools import islice

import pytest

from e2e.malformed import specs
from lbless_api.clusterip import parse_spec
from lbless_api.fields import Invalid


def test_each_of_3000_malformed_specs_is_refused_in_one_sentence_that_names_its_field() -> None:
    for field, spec in islice(specs(random.Random(1)), 3000):
        with pytest.raises(Invalid) as refused:
            parse_spec(spec)
        sentence = str(refused.value)
        assert "\n" not in sentence, spec
        assert sentence.endswith("."), sentence
        assert len(sentence) < 400, sentence
        assert f"spec.{field}" in sentence or field in {"spec"}, (spec, sentence)
