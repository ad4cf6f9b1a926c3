"""What a device has left, on a stand-in for a card."""

import pytest
import torch

from graphremat.device_memory import cublas_workspace_bytes, free_bytes
from graphremat.errors import OptionError

CARD = torch.device("cuda", 0)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A Hopper with 10 GiB free, of whose allocated blocks 1 GiB are unused."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10 << 30, 80 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 3 << 30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 2 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    return monkeypatch


def test_unused_blocks_count_and_the_workspaces_of_both_threads_do_not(card: pytest.MonkeyPatch) -> None:
    assert free_bytes(CARD) == (11 << 30) - (64 << 20)
    card.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert free_bytes(CARD) == (11 << 30) - 2 * 8_519_680


def test_a_full_card_has_nothing_left(card: pytest.MonkeyPatch) -> None:
    card.setattr(torch.cuda, "mem_get_info", lambda _: (0, 80 << 30))
    card.setattr(torch.cuda, "memory_reserved", lambda _: 2 << 30)
    assert free_bytes(CARD) == 0


def test_a_workspace_is_as_large_as_the_environment_says(card: pytest.MonkeyPatch) -> None:
    card.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    assert cublas_workspace_bytes(CARD) == 32 << 20
    card.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:2:16:8")
    assert cublas_workspace_bytes(CARD) == 8_519_680


def test_other_devices_are_refused() -> None:
    with pytest.raises(OptionError, match="not known for device type 'meta'"):
        free_bytes(torch.device("meta"))
