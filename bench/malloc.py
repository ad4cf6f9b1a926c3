"""The C library's allocator, told to be the same in every step that is timed.

By itself glibc gives the top of its heap back to the system and gets it again page by page, in some steps and not in
others; what a process allocated before decides it. Of ``resnet`` (large) at one budget that was 260 MiB and 130 of
the 750 ms of a step, at another nothing, in one process. Of a Llama with adapters one and the same code, of 333 MiB,
took 0.97 of the step of ``torch.compile`` in one process and 1.14 in another.
"""

import ctypes
import sys


def keep_freed_memory() -> None:
    """Have glibc's malloc return nothing to the system, and take no block from it that it returns when it is freed."""
    if sys.platform == "linux":
        mallopt = ctypes.CDLL(None).mallopt
        trim_threshold, mmap_max = -1, -4  # names of malloc.h
        mallopt(trim_threshold, -1)
        mallopt(mmap_max, 0)
