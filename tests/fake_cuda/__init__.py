"""A CUDA device that is not there: graphs are traced, planned and lowered for it, and Triton's kernels compiled.

Nothing is allocated and nothing runs. ``python -m tests.fake_cuda.lower`` is the command; it must load its shim before
torch is imported, so a test calls it as a process. It needs a C++ compiler and ``triton``.
"""
