"""What tests of several modules need."""

import gc
from collections.abc import Iterator

import pytest
import torch

from graphremat.ledger import LEDGER


@pytest.fixture
def fresh_ledger() -> Iterator[None]:
    """Nothing is compiled and no step has been divided before the test; no call waits and no step is open after it."""
    torch.compiler.reset()
    LEDGER.rounds.clear()
    yield
    gc.collect()
    assert not LEDGER.waiting
    assert not LEDGER.step
