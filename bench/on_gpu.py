"""``python -m bench.on_gpu``: everything that only a GPU can show, and what to report back, in about ten minutes.

    python -m bench.on_gpu --out gpu-report

Four parts, each a process of its own with its log in ``--out``: ``doctor``; the tests marked ``gpu``; whether budgets
are kept (``bench.keep_budget --device cuda``, networks side by side, so its times say nothing); and a decoder of half
a billion parameters in bfloat16 against ``torch.compile``, checkpoints and torch's own budget, alone on the device
(``bench.side_by_side``). A part that fails or runs out of its minutes leaves what it had measured. Send the folder.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from bench.budget_rows import append_result, read_results
from bench.networks import NETWORKS

PARTS = ("doctor", "tests", "budgets", "decoder")
DECODER = (
    *("--network", "llama", "--size", "gpu", "--device", "cuda", "--dtype", "bfloat16", "--rounds", "15"),
    *("--checkpoint", "1", "--torch", "0.5", "0.2", "--ours", "none", "0.6", "0.3", "0.0"),
)
ROOT = Path(__file__).resolve().parents[1]


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
        arguments += ["--rounds", "3", "--out", rows]
        return f"{network}: {run(arguments, out / f'budgets-{network}.log', seconds, threads)}"

    with ThreadPoolExecutor(len(networks)) as pool:
        ends = list(pool.map(one, networks))
    for network in networks:
        part = out / f"budgets-{network}.jsonl"
        for row in read_results(part).values():
            append_result(out / "budgets.jsonl", row)
        part.unlink(missing_ok=True)
    return "; ".join(ends)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; 1 where there is no GPU."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.on_gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("gpu-report"), help="folder (default: %(default)s)")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated (default: all)")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="for the budgets (default: all)")
    parser.add_argument(
        "--size", default="small", help="of the networks for the budgets (default: %(default)s)"
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="for each part (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    parts, networks = chosen.parts.split(","), chosen.networks.split(",")
    if unknown := [*(set(parts) - {*PARTS}), *(set(networks) - {*NETWORKS})]:
        parser.error(
            f"unknown: {', '.join(unknown)}; parts: {', '.join(PARTS)}; networks: {', '.join(NETWORKS)}"
        )
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
            end = run(["bench.side_by_side", *DECODER, "--out", str(out / "decoder.jsonl")], log, seconds)
        print(f"{part}: {end}", flush=True)
    print(f"\nreport back: the folder {out} and what is above")
    return 0


if __name__ == "__main__":
    sys.exit(main())
