"""What a device can do: memory, bandwidth and throughput of known GPUs. This module needs no torch.

A :class:`Device` is the only thing about the machine that a price depends on (:mod:`graphremat.passes.costs`).
GPUs come from the table below; each entry names the vendor's document to hold it against, which has not been done yet.
A CPU has no datasheet that predicts it and is measured (:mod:`graphremat.passes.measure_device`).

>>> find_device("NVIDIA A100-SXM4-40GB").name
'A100-40GB'
>>> find_device("rtx 4090").memory_bytes // 2**20
24564
>>> find_device("A1000")
Traceback (most recent call last):
    ...
graphremat.passes.devices.UnknownDevice: device 'A1000' is not in the table; nearest: A10, A100-80GB, A100-40GB
"""

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

GIB = 2**30
MIB = 2**20

BLOCK_BYTES = {"cuda": 512}
"""Granularity of the allocator by kind of device: CUDA's caching allocator hands out blocks of 512 bytes
(``kMinBlockSize`` of ``c10/cuda/CUDACachingAllocator.cpp``)."""

MATMUL_EFFICIENCY = 0.75
"""Share of the dense peak that large library matmuls reach on GPUs. Published bf16 measurements with torch: A100 247
of 312 TFLOP/s (0.79), B200 1,696 of 2,250 (0.75); the lower is taken. Not measured by us."""

BANDWIDTH_EFFICIENCY = 0.85
"""Share of the datasheet's bandwidth that a streaming kernel reaches on GPUs (BabelStream's triad on A100-40GB: 1.35 to
1.40 of 1.555 TB/s). Not measured by us."""

KERNEL_SECONDS = 4e-6
"""Time that one more kernel adds to a GPU's stream, launch included, when the host keeps ahead. Not measured by us;
a planner only needs it to be about right, since it matters for tiny kernels alone."""


def block_bytes(device_type: str) -> int:
    """What the bytes of a storage are a multiple of on devices of torch's type ``"cuda"``, ``"cpu"``, ..."""
    return BLOCK_BYTES.get(device_type, 1)


class UnknownDevice(ValueError):
    """A device name is in no table; the message names the nearest known ones."""


@dataclass(frozen=True)
class Device:
    """One device, as far as prices depend on it.

    Attributes:
        name: the short name, unique in the table.
        kind: torch's device type: ``"cuda"`` (NVIDIA and AMD alike) or ``"cpu"``.
        memory_bytes: all the memory the device has, before any context or allocator took its part.
        bandwidth_bytes_per_second: streaming bandwidth of the main memory, peak.
        flops_per_second: dense matmul peak by dtype name (``"float32"``, ``"bfloat16"``, ...; a multiply-add is two).
            ``"tf32"`` is what ``float32`` becomes with :meth:`with_tf32`.
        kernel_seconds: what one more kernel costs, however small it is.
        simple_ops_per_second: elementwise float32 additions (or the like) per second with operands in registers.
        matmul_efficiency, bandwidth_efficiency: share of the two peaks that good kernels reach.
        cache_bytes: working sets up to this size are read at ``cache_bytes_per_second``; 0 where that is not modelled.
        cache_bytes_per_second: bandwidth of the cache; unused where ``cache_bytes`` is 0.
        large_block_bytes: fresh blocks from this size on come from the operating system, page by page; 0 for never.
        first_touch_bytes_per_second: speed of writing such a block for the first time.
        source: where the numbers are from, in words.
    """

    name: str
    kind: str
    memory_bytes: int
    bandwidth_bytes_per_second: float
    flops_per_second: Mapping[str, float]
    kernel_seconds: float
    simple_ops_per_second: float
    matmul_efficiency: float = 1.0
    bandwidth_efficiency: float = 1.0
    cache_bytes: int = 0
    cache_bytes_per_second: float = 0.0
    large_block_bytes: int = 0
    first_touch_bytes_per_second: float = 0.0
    source: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "flops_per_second", MappingProxyType(dict(self.flops_per_second)))

    @property
    def block_bytes(self) -> int:
        """What the bytes of a storage are a multiple of."""
        return block_bytes(self.kind)

    def matmul_flops_per_second(self, dtype: str) -> float:
        """FLOP/s that large matmuls of this dtype name reach; an unlisted dtype runs as float32."""
        peak = self.flops_per_second.get(dtype, self.flops_per_second["float32"])
        return peak * self.matmul_efficiency

    def with_tf32(self) -> "Device":
        """The same device, float32 matmuls on TF32 cores (``torch.set_float32_matmul_precision("high")``)."""
        if "tf32" not in self.flops_per_second:
            return self
        flops = {**self.flops_per_second, "float32": self.flops_per_second["tf32"]}
        return replace(self, flops_per_second=flops)

    def to_json(self) -> str:
        """One line of JSON, equal for equal devices: goes into cache keys and dumps."""
        values = {**{f: getattr(self, f) for f in self.__dataclass_fields__}}
        values["flops_per_second"] = dict(sorted(self.flops_per_second.items()))
        return json.dumps(values, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Device":
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: the text is not JSON of a device, or a number in it cannot be one.
        """
        values: Any = json.loads(text)
        if not isinstance(values, dict) or set(values) != set(cls.__dataclass_fields__):
            raise ValueError("not the JSON of a Device")
        flops = values["flops_per_second"]
        if not isinstance(flops, dict) or "float32" not in flops:
            raise ValueError("flops_per_second must map dtype names to FLOP/s and hold float32")
        positive = [*flops.values(), *(values[name] for name in _POSITIVE_FIELDS)]
        if not all(isinstance(number, (int, float)) and 0 < number < float("inf") for number in positive):
            raise ValueError("a Device's rates must be positive and finite")
        return cls(**values)


_POSITIVE_FIELDS = ("memory_bytes", "bandwidth_bytes_per_second", "kernel_seconds", "simple_ops_per_second")


def _gpu(
    name: str,
    memory_mib: int,
    gigabytes_per_second: float,
    source: str,
    *,
    vector_tflops: float,
    **tflops: float,
) -> Device:
    """One GPU of the table: memory in MiB, bandwidth in GB/s, dense TFLOP/s by dtype name.

    ``vector_tflops`` is the float32 rate outside the tensor cores, which pointwise kernels use.
    """
    return Device(
        name=name,
        kind="cuda",
        memory_bytes=memory_mib * MIB,
        bandwidth_bytes_per_second=gigabytes_per_second * 1e9,
        flops_per_second={dtype: value * 1e12 for dtype, value in tflops.items()},
        kernel_seconds=KERNEL_SECONDS,
        simple_ops_per_second=vector_tflops * 1e12 / 2,
        matmul_efficiency=MATMUL_EFFICIENCY,
        bandwidth_efficiency=BANDWIDTH_EFFICIENCY,
        source=source,
    )


_GA102 = "NVIDIA Ampere GA102 GPU Architecture whitepaper (fp16 and bf16 with fp32 accumulation)"
_ADA = "NVIDIA Ada GPU Architecture whitepaper (fp16 and bf16 with fp32 accumulation)"
_RTX_BLACKWELL = "NVIDIA RTX Blackwell GPU Architecture whitepaper (fp16 and bf16 with fp32 accumulation)"
_L4 = "NVIDIA L4 Tensor Core GPU datasheet (its sparse tensor rates halved)"
_A10 = "NVIDIA A10 Tensor Core GPU datasheet"
_A100 = "NVIDIA A100 Tensor Core GPU datasheet (float64 on tensor cores)"
_H100 = "NVIDIA H100 Tensor Core GPU datasheet (its sparse tensor rates halved; float64 on tensor cores)"
_H200 = "NVIDIA H200 Tensor Core GPU datasheet (its sparse tensor rates halved; float64 on tensor cores)"
_B200 = "NVIDIA Blackwell Architecture technical brief and DGX B200 datasheet, one of eight GPUs at 1,000 W, dense"
_MI300X = "AMD Instinct MI300X accelerator datasheet, dense"

# Dense peaks, no sparsity. float32 is the IEEE rate; tf32 is taken only by Device.with_tf32. Memory is the total that
# nvidia-smi (or rocm-smi) reports, a little under the nominal size where the device keeps some for itself.
DEVICES: Mapping[str, Device] = MappingProxyType(
    {
        device.name: device
        for device in (
            _gpu("RTX-3090", 24576, 936, _GA102, vector_tflops=35.6,
                 float64=0.556, float32=35.6, tf32=35.6, float16=71.2, bfloat16=71.2),
            _gpu("RTX-4090", 24564, 1008, _ADA, vector_tflops=82.6,
                 float64=1.29, float32=82.6, tf32=82.6, float16=165.2, bfloat16=165.2, float8=330.3),
            _gpu("RTX-5090", 32607, 1792, _RTX_BLACKWELL, vector_tflops=104.8,
                 float64=1.64, float32=104.8, tf32=104.8, float16=209.5, bfloat16=209.5, float8=419.0),
            _gpu("L4", 23034, 300, _L4, vector_tflops=30.3,
                 float64=0.49, float32=30.3, tf32=60.0, float16=121.0, bfloat16=121.0, float8=242.5),
            _gpu("A10", 23028, 600, _A10, vector_tflops=31.2,
                 float64=0.976, float32=31.2, tf32=62.5, float16=125.0, bfloat16=125.0),
            _gpu("A100-40GB", 40960, 1555, _A100, vector_tflops=19.5,
                 float64=19.5, float32=19.5, tf32=156.0, float16=312.0, bfloat16=312.0),
            _gpu("A100-80GB", 81920, 2039, _A100, vector_tflops=19.5,
                 float64=19.5, float32=19.5, tf32=156.0, float16=312.0, bfloat16=312.0),
            _gpu("A100-80GB-PCIe", 81920, 1935, _A100, vector_tflops=19.5,
                 float64=19.5, float32=19.5, tf32=156.0, float16=312.0, bfloat16=312.0),
            _gpu("H100", 81559, 3350, _H100 + ", SXM", vector_tflops=67.0,
                 float64=67.0, float32=67.0, tf32=494.5, float16=989.5, bfloat16=989.5, float8=1979.0),
            _gpu("H100-PCIe", 81559, 2000, _H100 + ", PCIe", vector_tflops=51.0,
                 float64=51.0, float32=51.0, tf32=378.0, float16=756.5, bfloat16=756.5, float8=1513.0),
            _gpu("H200", 143771, 4800, _H200 + ", SXM", vector_tflops=67.0,
                 float64=67.0, float32=67.0, tf32=494.5, float16=989.5, bfloat16=989.5, float8=1979.0),
            _gpu("B200", 183359, 8000, _B200, vector_tflops=80.0,
                 float64=40.0, float32=80.0, tf32=1100.0, float16=2250.0, bfloat16=2250.0, float8=4500.0),
            _gpu("MI300X", 196592, 5300, _MI300X, vector_tflops=163.4,
                 float64=163.4, float32=163.4, tf32=653.7, float16=1307.4, bfloat16=1307.4, float8=2614.9),
        )
    }
)  # fmt: skip

# What torch.cuda.get_device_name() says, where normalising does not already give the short name.
_ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "a100 sxm4 40gb": "A100-40GB",
        "a100 pcie 40gb": "A100-40GB",
        "a100 sxm 40gb": "A100-40GB",
        "a100 sxm4 80gb": "A100-80GB",
        "a100 sxm 80gb": "A100-80GB",
        "a100 pcie 80gb": "A100-80GB-PCIe",
        "h100 80gb hbm3": "H100",
        "h100 80gb": "H100",
        "h100 sxm": "H100",
        "h100 sxm5": "H100",
        "h100 sxm5 80gb": "H100",
        "h100 80gb pcie": "H100-PCIe",
        "h200 sxm": "H200",
        "h200 141gb": "H200",
        "b200 180gb": "B200",
        "b200 192gb": "B200",
        "mi300x oam": "MI300X",
        "3090": "RTX-3090",
        "4090": "RTX-4090",
        "5090": "RTX-5090",
    }
)

_VENDOR_WORDS = frozenset({"nvidia", "amd", "geforce", "instinct", "tesla", "radeon"})


def _normalise(name: str) -> str:
    """Lower-case words without the vendor's, e.g. ``"NVIDIA A100-SXM4-40GB"`` -> ``"a100 sxm4 40gb"``."""
    words = re.sub(r"(rtx)(?=\d)", r"\1 ", name.lower())
    return " ".join(word for word in re.split(r"[^a-z0-9]+", words) if word and word not in _VENDOR_WORDS)


_BY_NORMAL_NAME: Mapping[str, str] = MappingProxyType(
    {**{_normalise(name): name for name in DEVICES}, **dict(_ALIASES)}
)


def find_device(name: str) -> Device:
    """The device of that name: a short name of :data:`DEVICES` in any spelling, or torch's own name of the device.

    Raises:
        UnknownDevice: no entry has that name. A card that is only similar (A10G, RTX 3090 Ti) is not taken for it.
    """
    normal = _normalise(name)
    if normal in _BY_NORMAL_NAME:
        return DEVICES[_BY_NORMAL_NAME[normal]]
    close = difflib.get_close_matches(normal, list(_BY_NORMAL_NAME), n=8, cutoff=0.5)
    begin = [known for known in _BY_NORMAL_NAME if normal and known.startswith(normal)]
    nearest = list(dict.fromkeys(_BY_NORMAL_NAME[match] for match in [*begin, *close]))[:3]
    hint = f"nearest: {', '.join(nearest)}" if nearest else f"known: {', '.join(DEVICES)}"
    raise UnknownDevice(f"device {name!r} is not in the table; {hint}")
