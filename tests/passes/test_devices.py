"""The table of GPUs: lookup by any spelling, refusal of what only looks alike, and round trips."""

import subprocess
import sys

import pytest

from graphremat.passes.devices import DEVICES, Device, UnknownDevice, find_device


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA A100 80GB PCIe", "A100-80GB-PCIe"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        ("rtx4090", "RTX-4090"),
        ("NVIDIA L4", "L4"),
        ("AMD Instinct MI300X", "MI300X"),
        ("a100-40gb", "A100-40GB"),
    ],
)
def test_finds_torchs_names_and_short_names(name: str, expected: str) -> None:
    assert find_device(name).name == expected


@pytest.mark.parametrize("name", list(DEVICES))
def test_every_device_is_found_by_its_name_and_is_sane(name: str) -> None:
    device = find_device(name)
    assert device is DEVICES[name]
    assert 16 * 2**30 < device.memory_bytes < 512 * 2**30
    assert device.flops_per_second["bfloat16"] >= device.flops_per_second["tf32"]
    assert device.flops_per_second["tf32"] >= device.flops_per_second["float32"]
    assert 1e11 < device.bandwidth_bytes_per_second < 1e13
    assert device.source


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("A10G", "A10"),
        ("NVIDIA GeForce RTX 3090 Ti", "RTX-3090"),
        ("H100 NVL", "H100"),
        ("A100", "A100-40GB, A100-80GB"),
    ],
)
def test_a_similar_card_is_refused_with_the_nearest_names(name: str, nearest: str) -> None:
    with pytest.raises(UnknownDevice, match=nearest):
        find_device(name)


def test_a_strange_name_lists_what_is_known() -> None:
    with pytest.raises(UnknownDevice, match="known: RTX-3090"):
        find_device("toaster")


def test_json_round_trip_and_tf32() -> None:
    device = find_device("A100-40GB")
    assert Device.from_json(device.to_json()) == device
    faster = device.with_tf32()
    assert faster.flops_per_second["float32"] == device.flops_per_second["tf32"]
    assert faster.to_json() != device.to_json()


@pytest.mark.parametrize("text", ["", "{}", "[]", "nonsense", '{"name": "x"}'])
def test_what_is_no_device_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Device.from_json(text)


def test_impossible_rates_are_refused() -> None:
    text = find_device("L4").to_json().replace('"kernel_seconds": 4e-06', '"kernel_seconds": -1')
    with pytest.raises(ValueError, match="positive"):
        Device.from_json(text)


def test_needs_no_torch() -> None:
    code = "import sys, graphremat.passes.devices; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
