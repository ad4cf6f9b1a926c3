"""What tests of several modules need.

Where pytest runs several processes (``-n``) they divide the processors among them.
"""

import gc
import os
from collections.abc import Iterator

import pytest

if (
    "PYTEST_XDIST_WORKER_COUNT" in os.environ
):  # before torch is imported, and for processes that a test starts
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

import torch

from graphremat.ledger import LEDGER

collect_ignore = ["fake_cuda"]
"""It is run as a process: its shim has to be loaded before torch is."""


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Nothing is compiled before the test, and nothing of it stays."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def fresh_ledger() -> Iterator[None]:
    """Nothing is compiled and no step has been divided before the test; no call waits and no step is open after it."""
    torch.compiler.reset()
    LEDGER.rounds.clear()
    yield
    gc.collect()
    assert not LEDGER.waiting
    assert not LEDGER.step
