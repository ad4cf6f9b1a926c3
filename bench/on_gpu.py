"""``python -m bench.on_gpu``: everything that only a GPU can show, and what to report back, in up to half an hour.

    python -m bench.on_gpu --out gpu-report

Parts, each a process of its own with its log in ``--out``: ``doctor``; the tests marked ``gpu``; whether budgets are
kept (``bench.keep_budget --device cuda``, networks side by side, so its times say nothing); and four races in bfloat16
against ``torch.compile``, checkpoints and torch's own budget (``bench.side_by_side``): a ``decoder`` of half a billion
parameters, the same ``tuned`` by Inductor's ``max_autotune``, one with ``dropout``, and a ``unet``. The races are
compiled beside each other, last, in the minutes of all of them, and take turns at the device for the times. A part that
fails or runs out of its minutes leaves what it had measured. Send the folder.

    python -m bench.on_gpu --results bench/results/h100 --page docs/gpu.md

measures nothing, needs no GPU, and writes the tables of a folder between their marks on a page.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from bench.budget_rows import Measurement, append_result, read_results
from bench.markdown import table_of
from bench.networks import names_of
from graphremat.demo import insert

BUDGETS = "torch,none,0.5,0.0"
OURS = ("none", "0.8", "0.6", "0.45", "0.3", "0.15", "0.0")
RACES = {
    "decoder": ("llama", "--checkpoint", "1", "--torch", "0.5", "0.2", "--ours", *OURS),
    "dropout": ("dropout_gpt", "--checkpoint", "1", "--torch", "0.5", "--ours", "none", "0.6", "0.3", "0.0"),
    "unet": ("unet", "--torch", "0.5", "0.2", "--ours", "none", "0.5", "0.0"),
    "tuned": ("llama", "--max-autotune", "--torch", "0.5", "--ours", "none", "0.6", "0.0"),
}
"""Part -> network and contestants."""
RACE = ("--size", "gpu", "--device", "cuda", "--dtype", "bfloat16", "--rounds", "15")
PARTS = ("doctor", "tests", "budgets", *RACES)
ROOT = Path(__file__).resolve().parents[1]
MIB = 2.0**20
LOWERED = ROOT / "bench" / "results" / "lowered.jsonl"
EXECUTED = LOWERED.with_name("executed.jsonl")
EXECUTED_MARKS = ("<!-- executed -->", "<!-- end of executed -->")
LOWERED_MARKS = ("<!-- lowered -->", "<!-- end of lowered -->")
BUDGETS_MARKS = ("<!-- budgets -->", "<!-- end of budgets -->")


def run(arguments: Sequence[str], log: Path, seconds: float, threads: int = 0) -> str:
    """Run a module of this Python; what became of it, in a word or two."""
    environment = dict(os.environ)
    if threads:
        environment |= {"TORCHINDUCTOR_COMPILE_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    start = time.monotonic()
    with log.open("w") as lines:
        try:
            done = subprocess.run(
                [sys.executable, "-m", *arguments],
                cwd=ROOT,
                env=environment,
                stdout=lines,
                stderr=subprocess.STDOUT,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"stopped after {seconds:.0f} s"
    return f"exit code {done.returncode} after {time.monotonic() - start:.0f} s"


def budgets(out: Path, networks: Sequence[str], size: str, seconds: float) -> str:
    """All networks at all budgets, in processes beside each other; their rows in one file."""
    threads = max(1, (os.cpu_count() or 1) // len(networks))

    def one(network: str) -> str:
        rows = str(out / f"budgets-{network}.jsonl")
        arguments = ["bench.keep_budget", "--device", "cuda", "--size", size, "--networks", network]
        arguments += ["--rounds", "3", "--budgets", BUDGETS, "--out", rows]
        return f"{network}: {run(arguments, out / f'budgets-{network}.log', seconds, threads)}"

    with ThreadPoolExecutor(len(networks)) as pool:
        ends = list(pool.map(one, networks))
    for network in networks:
        part = out / f"budgets-{network}.jsonl"
        for row in read_results(part).values():
            append_result(out / "budgets.jsonl", row)
        part.unlink(missing_ok=True)
    return "; ".join(ends)


def races(parts: Sequence[str], out: Path, seconds: float) -> Iterator[str]:
    """Compile beside each other, time one after the other; what became of each. ``seconds`` are for one race: they
    wait for each other, so each may take those of all."""

    def one(part: str) -> str:
        where = ["--lock", str(out / "races.lock"), "--out", str(out / f"{part}.jsonl")]
        arguments = ["bench.side_by_side", "--network", *RACES[part], *RACE, *where]
        return f"{part}: {run(arguments, out / f'{part}.log', seconds * len(parts))}"

    with ThreadPoolExecutor(max(1, len(parts))) as pool:
        yield from pool.map(one, parts)
    (out / "races.lock").unlink(missing_ok=True)


def race_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The contestants as lines of Markdown, by peak; best steps are held against the first row's."""
    last = {str(row["contestant"]): row for row in rows}
    base = next(iter(last.values()))["min_seconds"]
    head = ("", "peak, MiB", "of the code, MiB", "best step, ms", "ratio", "planned step, ms", "1st step, s")
    lines = [head]
    for name, row in sorted(last.items(), key=lambda item: -item[1]["peak_bytes"]):
        code, planned = row["generated_bytes"], row["planned_step_seconds"]
        lines.append(
            (
                name,
                f"{row['peak_bytes'] / MIB:,.0f}",
                "" if code is None else f"{code / MIB:,.0f}",
                f"{row['min_seconds'] * 1e3:.1f}",
                f"{row['min_seconds'] / base:.3f}",
                "" if planned is None else f"{planned * 1e3:.1f}",
                f"{row['first_step_seconds']:.1f}",
            )
        )
    return table_of(lines[0], lines[1:])


def budgets_table(rows: Sequence[Measurement]) -> list[str]:
    """Every measured row as lines of Markdown; peaks are whole."""

    def shown(size: int | None) -> str:
        return "" if size is None else f"{size / MIB:.2f}"

    lines: list[tuple[str, ...]] = [
        ("network", "budget", "MiB", "planned", "of the code", "measured", "gradient error")
    ]
    for row in rows:
        of_plan = (row.budget_bytes, row.planned_peak_bytes, row.predicted_peak_bytes)
        peaks = map(shown, (*of_plan, row.measured_peak_bytes))
        lines.append((row.network, row.label, *peaks, f"{row.gradient_error:.1e}"))
    return table_of(lines[0], lines[1:])


def lowered_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What ``tests.fake_cuda.lower`` printed as lines of Markdown; peaks are whole."""
    header = (
        *("network", "weights", "sm", "budget", "KiB", "of the code, KiB", "planned", "kernels", "binaries"),
        *("registers", "spilling kernels", "bytes"),
    )
    last = ("kernels", "binaries", "most_registers", "spilling_kernels", "least_spill_bytes")
    lines = [
        (
            row["network"],
            _weights_of(row),
            row["capability"].replace(".", ""),
            _budget_of(row),
            "" if row["budget_bytes"] is None else f"{row['budget_bytes'] / 1024:,.0f}",
            f"{row['generated_bytes'] / 1024:,.0f}",
            f"{row['planned_bytes'] / row['generated_bytes'] - 1:+.1%}",
            *(f"{row[what]:,}" for what in last),
        )
        for row in rows
    ]
    return table_of(header, lines)


def _weights_of(row: Mapping[str, Any]) -> str:
    how = [str(row["dtype"]), *(name for name in ("autocast", "dynamic") if row[name])]
    return ", ".join(how)


def executed_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What ``tests.fake_cuda.execute`` printed as lines of Markdown."""
    header = (
        "network",
        "weights",
        "budget",
        "ops again",
        "gradient off by",
        "that of eager",
        "derivative off by",
    )
    errors = ("gradient_error", "gradient_error_of_eager", "derivative_error")
    lines = [
        (
            row["network"],
            row["dtype"],
            _budget_of(row),
            str(row["recomputed_ops"]),
            *(f"{row[error]:.1e}" if error in row else "" for error in errors),
        )
        for row in rows
    ]
    return table_of(header, lines)


def _budget_of(row: Mapping[str, Any]) -> str:
    names = {None: "none", "torch": "torch.compile"}
    return names.get(row["budget"], str(row["budget"]))


def write_page(page: Path, folder: Path) -> None:
    """Put the tables of a folder between their marks, which are named as the files of races are."""
    for path in sorted({*folder.glob("*.jsonl")} - {folder / "budgets.jsonl"}):
        race, rows = path.stem, [json.loads(line) for line in path.read_text().splitlines()]
        insert(page, "\n".join(race_table(rows)) + "\n", (f"<!-- {race} -->", f"<!-- end of {race} -->"))
    budgets_rows = list(read_results(folder / "budgets.jsonl").values())
    lowered, executed = (
        [json.loads(line) for line in path.read_text().splitlines()] for path in (LOWERED, EXECUTED)
    )
    insert(page, "\n".join(budgets_table(budgets_rows)) + "\n", BUDGETS_MARKS)
    insert(page, "\n".join(lowered_table(lowered)) + "\n", LOWERED_MARKS)
    insert(page, "\n".join(executed_table(executed)) + "\n", EXECUTED_MARKS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; 1 where there is no GPU."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.on_gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("gpu-report"), help="folder (default: %(default)s)")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated (default: all)")
    parser.add_argument("--networks", type=names_of, default="all", help="for the budgets (default: all)")
    parser.add_argument(
        "--size", default="small", help="of the networks for the budgets (default: %(default)s)"
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="for each part (default: %(default)s)")
    parser.add_argument("--results", type=Path, help="a folder that was measured before, for --page")
    parser.add_argument("--page", type=Path, help="a page with the marks of the tables; measures nothing")
    chosen = parser.parse_args(arguments)
    if chosen.page is not None:
        write_page(chosen.page, chosen.results or chosen.out)
        return 0
    parts, networks = chosen.parts.split(","), chosen.networks
    if unknown := sorted(set(parts) - {*PARTS}):
        parser.error(f"unknown parts {', '.join(unknown)}; known: {', '.join(PARTS)}")
    if not torch.cuda.is_available():
        print("no CUDA device is available to torch here, so there is nothing to run", file=sys.stderr)
        return 1
    out, seconds = chosen.out.resolve(), chosen.minutes * 60
    out.mkdir(parents=True, exist_ok=True)
    for part in parts:
        log = out / f"{part}.log"
        if part == "doctor":
            end = run(["graphremat", "doctor"], log, seconds)
        elif part == "tests":
            end = run(["pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider"], log, seconds)
        elif part == "budgets":
            end = budgets(out, networks, chosen.size, seconds)
        else:
            continue
        print(f"{part}: {end}", flush=True)
    for end in races([part for part in parts if part in RACES], out, seconds):
        print(end, flush=True)
    print(f"\nreport back: the folder {out} and what is above")
    return 0


if __name__ == "__main__":
    sys.exit(main())
