"""Tables of Markdown."""

from collections.abc import Sequence


def table_of(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table whose first column is text and whose others are numbers."""
    shown = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return [shown[0], "| --- |" + " ---: |" * (len(head) - 1), *shown[1:]]
