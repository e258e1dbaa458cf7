from __future__ import annotations

import logging

import pytest

from lbless_operator import said as module
from lbless_operator.said import Said


def test_causes_that_take_turns_are_each_said_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    said = Said(logging.getLogger("said"))
    with caplog.at_level(logging.INFO):
        for _ in range(5):
            said.warn("refused")
            said.warn("silent")
        assert caplog.messages == ["refused", "silent"]
        now[0] = module.REPEAT_SECONDS
        said.warn("silent")
        said.settled("well")
        said.settled("well")
        said.warn("silent")
    assert caplog.messages == ["refused", "silent", "silent", "well", "silent"]
