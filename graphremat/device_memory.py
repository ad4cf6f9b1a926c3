"""How much memory a device has left."""

import os

import torch

from graphremat.errors import OptionError


def free_bytes(device: torch.device) -> int:
    """Bytes that could still be allocated on ``device`` now.

    Raises:
        OptionError: it cannot be found out for that device.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + cached)
    if device.type == "cpu":
        try:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError) as error:
            raise OptionError(
                f"memory_budget='auto': free memory is not known here ({error}); give bytes"
            ) from error
    raise OptionError(f"memory_budget='auto' is not known for device type {device.type!r}; give bytes")
