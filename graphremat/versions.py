"""The versions of torch that graphremat works with. This module needs no torch.

The project leans on private parts of torch (all of them are named in :mod:`graphremat.passes.torch_private`), so a
version that nobody tried may break it in ways that only show as a wrong peak.
"""

import re

SUPPORTED_TORCH = ((2, 13), (2, 14))
"""``(major, minor)`` of every supported torch, oldest first."""


def torch_release(version: str) -> tuple[int, int]:
    """``(major, minor)`` of a version of torch.

    Raises:
        ValueError: ``version`` does not begin with two numbers.

    >>> torch_release("2.13.0+cpu")
    (2, 13)
    """
    match = re.match(r"([0-9]+)\.([0-9]+)", version)
    if match is None:
        raise ValueError(f"not a version of torch: {version!r}")
    return int(match[1]), int(match[2])


def is_supported_torch(version: str) -> bool:
    """Whether this version of torch is one that graphremat was tried with.

    >>> is_supported_torch("2.13.0+cpu"), is_supported_torch("2.12.1"), is_supported_torch("3.0.0")
    (True, False, False)
    """
    return torch_release(version) in SUPPORTED_TORCH


def supported_torch_text() -> str:
    """The supported versions in words.

    >>> supported_torch_text()
    '2.13, 2.14'
    """
    return ", ".join(f"{major}.{minor}" for major, minor in SUPPORTED_TORCH)
