"""``python -m bench.correctness``: every training script under Inductor, by us and by what torch offers.

Each script of :mod:`bench.training_scripts` runs in eager and under three compilers: ``backend="inductor"``, the same
with ``activation_memory_budget=0.3``, and graphremat at its lowest peak. All results (losses, gradients, buffers) are
held against eager's. Scripts that draw random numbers run twice: with ``fallback_random``, which draws eager's numbers,
and with Inductor's own, where plain Inductor is the reference. One JSON line a run in ``--out``; a second call skips
what the same sources have measured; ``--page`` writes all as a page. The exit code is 1 if graphremat fails where plain
Inductor does not, or is off.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from bench.sources import digest_of
from bench.training_scripts import DRAWS, NEEDS, SCRIPTS, THEMES, Compile
from graphremat.measure import MeasurementError, gradient_error
from graphremat.passes import torch_private as private

RESULTS = Path(__file__).parent / "results" / "training_scripts.jsonl"
CLOSE, CLOSE_IN_HALF = 1e-4, 3e-2
"""Relative error that other rounding explains: in fp32, and where a script computes in half precision."""
PLAIN, BUDGET, OURS = "inductor", "inductor, activation_memory_budget=0.3", "graphremat, memory_budget=0.0"


def _with(backend: str, **more: Any) -> Compile:
    return lambda model, **options: torch.compile(model, backend=backend, **more, **options)


COMPILERS: Mapping[str, Compile] = {
    "eager": lambda model, **_: model,
    PLAIN: _with("inductor"),
    BUDGET: _with("inductor"),
    OURS: _with("graphremat", options={"memory_budget": 0.0, "on_failure": "error"}),
}


@dataclass(frozen=True)
class Row:
    """One script under one compiler. ``error`` is relative to the reference's norm; None where it raised ``raised``."""

    script: str
    numbers: str
    compiler: str
    sources: str
    error: float | None
    raised: str = ""

    @property
    def state(self) -> str:
        """In a word, for the table."""
        if self.error is None:
            return f"raises {self.raised}"
        return "same" if self.error <= _tolerance(self.script) else f"off by {self.error:.0e}"


def _tolerance(script: str) -> float:
    half = SCRIPTS[script].__module__.endswith("precision") or "autocast" in script
    return CLOSE_IN_HALF if half else CLOSE


def run(script: str, compiler: str, *, eagers_numbers: bool) -> list[Tensor] | str:
    """What the script returns, or the class of what it raises."""
    torch.compiler.reset()
    torch.manual_seed(0)
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(private.inductor_config(fallback_random=eagers_numbers))
        stack.enter_context(private.activation_memory_budget(0.3 if compiler == BUDGET else 1.0))
        try:
            return [t.detach().clone() for t in SCRIPTS[script](COMPILERS[compiler])]
        except Exception as error:  # noqa: BLE001 (the table says what was raised)
            return type(error).__name__


def measure(script: str, numbers: str, sources: str) -> list[Row]:
    """The rows of one script: the compilers against the reference."""
    eagers = numbers == "eager's"
    results = {
        name: run(script, name, eagers_numbers=eagers) for name in COMPILERS if eagers or name != "eager"
    }
    reference = results["eager" if eagers else PLAIN]
    rows = []
    for name in (PLAIN, BUDGET, OURS):
        found = results[name]
        if isinstance(found, str) or isinstance(reference, str):
            raised = found if isinstance(found, str) else f"nothing, but the reference raises {reference}"
            rows.append(Row(script, numbers, name, sources, None, raised))
            continue
        try:
            error = gradient_error(_floats(reference), _floats(found))
        except MeasurementError as problem:
            rows.append(Row(script, numbers, name, sources, None, str(problem)))
            continue
        rows.append(Row(script, numbers, name, sources, min(error, 1e300)))
    return rows


def _floats(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [torch.view_as_real(t) if t.is_complex() else t for t in tensors]


HEAD = ("theme", "script", "random numbers", PLAIN, BUDGET, OURS)


def lines_of(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """A line a script and kind of random numbers, by theme; the columns are those of :data:`HEAD`."""
    found = {(row.script, row.numbers, row.compiler): row.state for row in rows}
    lines = []
    for theme in THEMES:
        for name in (n for n, s in SCRIPTS.items() if s.__module__ == theme.__name__):
            for numbers in dict.fromkeys(r.numbers for r in rows if r.script == name):
                states = (found[name, numbers, compiler] for compiler in (PLAIN, BUDGET, OURS))
                shown = numbers if name in DRAWS else ""
                lines.append((theme.__name__.rpartition(".")[2].replace("_", " "), name, shown, *states))
    return lines


def is_good(lines: Sequence[tuple[str, ...]]) -> bool:
    """Whether graphremat is right wherever plain Inductor is, and raises nothing that it does not."""
    return all(ours in ("same", plain) for *_, plain, _, ours in lines)


def page_of(lines: Sequence[tuple[str, ...]]) -> str:
    """The lines as a page of Markdown."""
    table = ["| " + " | ".join(line) + " |" for line in (HEAD, ("---",) * len(HEAD), *lines)]
    off = sum(line[4].startswith("off") for line in lines)
    wrong = sum(line[3].startswith("off") for line in lines)
    return "\n".join(
        [
            "# Training scripts",
            "",
            f"{len(lines)} runs; `python -m bench.correctness --page docs/training_scripts.md` makes this page.",
            "Each script of `bench/training_scripts` trains a little; losses, gradients and buffers are held against",
            "eager's, or, where Inductor draws numbers of its own, against plain Inductor's. *off by* is the relative",
            "error of all of them; nothing warned of it.",
            "",
            f"Plain Inductor is off in {wrong}, `activation_memory_budget=0.3` in {off}, graphremat in "
            f"{sum(line[5].startswith('off') for line in lines)}.",
            "",
            *table,
            "",
        ]
    )


def read_rows(path: Path) -> list[Row]:
    """The rows of a file of JSON lines; none if there is no such file."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [Row(**json.loads(line)) for line in lines]


def latest(rows: Sequence[Row]) -> list[Row]:
    """The last row of each script, kind of numbers and compiler."""
    return list({(row.script, row.numbers, row.compiler): row for row in rows}.values())


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures what is missing and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.correctness", description=__doc__)
    here = [name for name in SCRIPTS if name not in NEEDS or find_spec(NEEDS[name])]
    parser.add_argument(
        "--scripts",
        default=",".join(here),
        help="comma-separated (default: all whose libraries are installed)",
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON lines (default: %(default)s)")
    parser.add_argument("--page", type=Path, help="where to write the table as a page of Markdown")
    chosen = parser.parse_args(arguments)
    sources = digest_of(("graphremat/*.py", "passes/**/*.py", "bench/training_scripts/*.py"))
    rows = [row for row in read_rows(chosen.out) if row.sources == sources]
    done = {(row.script, row.numbers) for row in rows}
    wanted = [(name, "eager's") for name in chosen.scripts.split(",")]
    wanted += [(name, "Inductor's") for name, _ in wanted if name in DRAWS]
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    with Progress(transient=True) as progress, chosen.out.open("a") as out:
        for name, numbers in progress.track(wanted, description="training"):
            if (name, numbers) in done:
                continue
            for row in measure(name, numbers, sources):
                rows.append(row)
                out.write(json.dumps(asdict(row)) + "\n")
            out.flush()
    shown = {name for name, _ in wanted}
    lines = lines_of([row for row in rows if row.script in shown])
    table = Table(*HEAD)
    for line in lines:
        table.add_row(*line)
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    if chosen.page:
        chosen.page.write_text(page_of(lines))
    return 0 if is_good(lines) else 1


if __name__ == "__main__":
    sys.exit(main())
