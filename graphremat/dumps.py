"""Numbered dumps of every stage of one compiled graph. Needs no torch.

Names are stable and hold no address and no random part. Every file is written beside its place and then moved there,
so that an interrupted run leaves no half file.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from graphremat.errors import DumpError


class Dumps:
    """Writes into the folder of a graph; with none it writes nothing.

    Texts are given as functions, so that nothing is rendered when nothing is written.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    @staticmethod
    def of_graph(root: Path | None, graph: int) -> "Dumps":
        """Writes into ``root/graph-NNN``."""
        return Dumps(None if root is None else root / f"graph-{graph:03d}")

    def write(self, name: str, text: Callable[[], str]) -> None:
        """Write ``text()`` under ``name``.

        Raises:
            DumpError: the folder cannot be written; it names the option.
        """
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=self.folder)
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    file.write(text())
                Path(temporary).replace(self.folder / name)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise DumpError(
                f"cannot write the dump {self.folder / name} (option dump_dir): {error}"
            ) from error

    def __str__(self) -> str:
        return "none (set the option dump_dir)" if self.folder is None else str(self.folder)
