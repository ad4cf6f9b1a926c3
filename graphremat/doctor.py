"""Whether this machine can run graphremat: versions, devices, compilers and caches. Torch is imported only to be asked.

:func:`examine` gathers, :meth:`Health.problems` judges, and the command line prints.
"""

import getpass
import os
import platform
import shutil
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from stat import S_ISREG

import graphremat
from graphremat.versions import is_supported_torch, supported_torch_text

COMPILER_TIMEOUT_SECONDS = 20


@dataclass(frozen=True)
class Device:
    """One device that a step can run on; ``memory_bytes`` is all of its memory."""

    name: str
    description: str
    memory_bytes: int


@dataclass(frozen=True)
class Health:
    """What :func:`examine` found; ``None`` stands for what is not there."""

    graphremat: str
    python: str
    platform: str
    torch: str | None
    torch_supported: bool
    triton: str | None
    backend_registered: bool
    compiler: str | None
    devices: tuple[Device, ...]
    inductor_cache_dir: str
    inductor_cache_bytes: int

    def problems(self) -> tuple[str, ...]:
        """What is in the way of ``torch.compile(..., backend="graphremat")``, each with what helps."""
        found = []
        if self.torch is None:
            found.append("torch is not installed: the planner works without it, the backend does not")
        elif not self.torch_supported:
            found.append(
                f"torch {self.torch} was never tried: the supported versions are {supported_torch_text()}"
            )
        if not self.backend_registered:
            found.append("torch does not know the backend by its name: install graphremat with pip")
        if self.compiler is None:
            found.append("Inductor needs a C++ compiler: install g++, or name one in CXX")
        if self.triton is None and any(device.name.startswith("cuda") for device in self.devices):
            found.append("Inductor needs triton for the CUDA device: pip install triton")
        return tuple(found)


def examine() -> Health:
    """Look at this machine. Imports torch if it is installed, compiles nothing."""
    torch_version = _version("torch")
    cache_dir = _inductor_cache_dir()
    return Health(
        graphremat=graphremat.__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        torch=torch_version,
        torch_supported=torch_version is not None and is_supported_torch(torch_version),
        triton=_version("triton"),
        backend_registered=bool(metadata.entry_points(group="torch_dynamo_backends", name="graphremat")),
        compiler=_compiler(),
        devices=(_cpu(), *(_cuda_devices() if torch_version is not None else ())),
        inductor_cache_dir=str(cache_dir),
        inductor_cache_bytes=_folder_bytes(cache_dir),
    )


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _compiler() -> str | None:
    """The path and version of the compiler that Inductor calls for CPU code."""
    path = shutil.which(os.environ.get("CXX", "g++"))
    if path is None:
        return None
    asked = subprocess.run(
        [path, "--version"], capture_output=True, text=True, timeout=COMPILER_TIMEOUT_SECONDS, check=False
    )
    lines = asked.stdout.splitlines()
    return f"{path} ({lines[0]})" if asked.returncode == 0 and lines else None


def _cpu() -> Device:
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Device("cpu", f"{platform.machine()}, {cores} cores", memory_bytes)


def _cuda_devices() -> tuple[Device, ...]:
    cuda = import_module("torch").cuda
    if not cuda.is_available():
        return ()
    found = [cuda.get_device_properties(index) for index in range(cuda.device_count())]
    return tuple(Device(f"cuda:{i}", each.name, each.total_memory) for i, each in enumerate(found))


def _inductor_cache_dir() -> Path:
    named = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    return Path(named) if named else Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"


def _folder_bytes(folder: Path) -> int:
    """The bytes of the files below ``folder``; a file that another process removes meanwhile counts as none."""
    total_bytes = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            status = path.lstat()
            total_bytes += status.st_size if S_ISREG(status.st_mode) else 0
    return total_bytes
