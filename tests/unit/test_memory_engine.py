"""The engine of memory, which tests of dataplane fail on demand, keeps the contract of the real ones."""

import pytest

from lbless_nodeagent.dataplane.engine import NOTHING, Wanted
from unit.engine_contract import EngineContract, Kernel
from unit.memory_engine import MemoryEngine


class Shared(MemoryEngine):
    """One of several processes with one kernel; an engine whose rules are gone says that there are none."""

    def __init__(self, held: list[Wanted]) -> None:
        self._held = held
        super().__init__(held[0])

    @property
    def kernel(self) -> Wanted:
        return self._held[0]

    @kernel.setter
    def kernel(self, wanted: Wanted) -> None:
        self._held[0] = wanted

    def installed(self) -> Wanted | None:
        return None if self.kernel == NOTHING else self.kernel


class TestMemoryEngine(EngineContract):
    @pytest.fixture
    def held(self) -> list[Wanted]:
        return [NOTHING]

    @pytest.fixture
    def engine(self, held: list[Wanted]) -> MemoryEngine:
        return Shared(held)

    @pytest.fixture
    def kernel(self, held: list[Wanted]) -> Kernel:
        return Kernel(content=lambda: held[0], successor=lambda: Shared(held))
