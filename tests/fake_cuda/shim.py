"""Build and load the shim. Imports no torch: it has to come first."""

import ctypes
import importlib.util
import os
import subprocess
import sys
import tempfile
from functools import cache
from hashlib import sha256
from importlib import metadata
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.cpp")


@cache
def load() -> None:
    """Build the shim, once a source and a torch, and load it, once a process.

    Raises:
        RuntimeError: torch is imported already.
        subprocess.CalledProcessError: there is no compiler, or it fails.
    """
    if "torch" in sys.modules:
        raise RuntimeError("the shim has to be loaded before torch is imported")
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    torch = Path(spec.origin).parent
    ctypes.CDLL(str(torch / "lib" / "libtorch_global_deps.so"), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(_built(torch))).register_fake_cuda()


def _built(torch: Path) -> Path:
    key = sha256(SOURCE.read_bytes() + metadata.version("torch").encode() + str(torch).encode()).hexdigest()
    library = Path(tempfile.gettempdir()) / f"graphremat-fake-cuda-{os.getuid()}-{key[:16]}.so"
    if not library.exists():
        unfinished = library.with_suffix(f".{os.getpid()}")
        command = ["g++", "-O1", "-shared", "-fPIC", "-std=c++20", f"-I{torch / 'include'}", str(SOURCE)]
        command += [f"-L{torch / 'lib'}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{torch / 'lib'}"]
        subprocess.run([*command, "-o", str(unfinished)], check=True)
        unfinished.replace(library)
    return library
