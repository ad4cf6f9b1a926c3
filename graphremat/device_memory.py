"""How much memory a device has left."""

import os
import re

import torch

from graphremat.errors import OptionError

CUBLAS_WORKSPACE_BYTES = (2 * 4096 + 8 * 16) << 10
CUBLAS_WORKSPACE_BYTES_SM90 = 32 << 20
"""What torch allocates for cuBLAS at the first matrix product of a thread on a stream, and keeps, where
``CUBLAS_WORKSPACE_CONFIG`` is not set. From ``parseChosenWorkspaceSize`` in aten/src/ATen/cuda/CublasHandlePool.cpp."""
CUBLAS_WORKSPACES = 2
"""A step has two: products of the forward run in the thread that calls it, those of the backward in autograd's. Seen on
an H100: 64 MiB more were allocated after a first step than before, and stayed."""


def free_bytes(device: torch.device) -> int:
    """Bytes that a step could still allocate on ``device`` now.

    On a GPU the workspaces of cuBLAS are left out, also where they are allocated already: this is not told.

    Raises:
        OptionError: it cannot be found out for that device.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return max(0, int(free + cached) - CUBLAS_WORKSPACES * cublas_workspace_bytes(device))
    if device.type == "cpu":
        try:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError) as error:
            raise OptionError(
                f"memory_budget='auto': free memory is not known here ({error}); give bytes"
            ) from error
    raise OptionError(f"memory_budget='auto' is not known for device type {device.type!r}; give bytes")


def cublas_workspace_bytes(device: torch.device) -> int:
    """The bytes of one workspace: as ``CUBLAS_WORKSPACE_CONFIG`` says (``:KiB:count``, repeated), else by the card."""
    blocks = re.findall(r":(\d+):(\d+)", os.environ.get("CUBLAS_WORKSPACE_CONFIG", ""))
    if blocks:
        return sum(int(kibibytes) * int(count) << 10 for kibibytes, count in blocks)
    is_sm90 = torch.cuda.get_device_capability(device) == (9, 0)
    return CUBLAS_WORKSPACE_BYTES_SM90 if is_sm90 else CUBLAS_WORKSPACE_BYTES
