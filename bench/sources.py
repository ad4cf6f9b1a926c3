"""What a kept measurement depends on, as a digest: rows of other sources are measured again. Needs no torch."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parent.parent


def digest_of(patterns: Iterable[str]) -> str:
    """Twelve hex digits over the files that match glob patterns, relative to the project's root."""
    files = {path for pattern in patterns for path in ROOT.glob(pattern)}
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]
