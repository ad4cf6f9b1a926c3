"""What was measured on a machine, kept in files that several processes may read and write at once. Free of torch."""

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a POSIX system: processes may measure at the same time there
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)


def default_cache_dir() -> Path:
    """``$GRAPHREMAT_CACHE``, else ``graphremat`` under ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    own = os.environ.get("GRAPHREMAT_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "graphremat"


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Keep other processes from measuring at the same time: they would disturb each other, and get other numbers."""
    if fcntl is None:
        yield
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.with_suffix(".lock").open("w")
    except OSError as error:
        logger.debug("no lock for %s: %s", path, error)
        yield
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
        yield


def write_whole(path: Path, text: str) -> None:
    """Put the file there whole or not at all; a folder that cannot be written to is warned of."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
            file.write(text)
        temporary = Path(file.name)
    except OSError as error:
        logger.warning("what was measured cannot be kept (%s); every process will measure again", error)
        return
    temporary.replace(path)
