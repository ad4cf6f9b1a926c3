"""What is said about memory and recomputation of large models, checked by planning: rows of plans, and a page of them.

    python -m bench.claims --page docs/claims.md    # the page from the rows that are kept
    python -m bench.claims --plan                   # plan what is missing first, one process for each row

A row is one step of a model at one sequence length: every plan, what others do, the bytes of each optimizer's state and
of a quantised base. It is planned with no optimizer and weights in bf16; both only add bytes to every peak. Seconds are
an A100-80GB's by its data sheet unless the row says otherwise. ``bench/results/claims.jsonl`` keeps the rows.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "claims.jsonl"
TORCH_BUDGETS = (0.5, 0.25)
EVERY_BLOCKS = (1, 2, 4)
SOLVE_STEP = 32
"""A sequence that is looked for is a multiple of so many tokens."""
GB = 10**9
"""Claims are read as decimal gigabytes; in GiB their numbers would be 7% larger."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A model in training and the sequence lengths that are planned whatever comes out."""

    model: str
    batch: int
    lora: int | None
    device: str = "A100-80GB"
    sequences: tuple[int, ...] = (512, 2048)


CASES = {
    "8b-lora": Case("llama-3-8b", 4, 16),
    "8b-full": Case("llama-3-8b", 4, None, sequences=(1024, 2048)),
    "13b-lora": Case("llama-2-13b", 2, 16),
    "70b-lora": Case("llama-3-70b", 1, 16, sequences=(512, 2336)),
    "7b-full": Case("llama-2-7b", 1, None, "A100-40GB", (1024,)),
    "13b-lora-4090": Case("llama-2-13b", 1, 16, "RTX-4090", (1024,)),
    "sdxl-lora": Case("bench.sdxl:training", 8, 16, sequences=(64, 96, 128)),
    "sdxl-full": Case("bench.sdxl:training", 8, None, sequences=(64, 128)),
}
IMAGES = ("sdxl-lora", "sdxl-full")
"""Cases whose sequence is the side of the latents of an image, in which nothing is on a straight line."""


@dataclass(frozen=True)
class Claim:
    """Memory before and after, in GB, and how much slower; ``settings`` are the optimizers and bases it is read with.

    Nothing is said about the sequence, so it is looked for: the one at which ``torch.compile`` takes the GB before.
    Where what has to be there at any length takes more than the GB after, no sequence is looked for.
    """

    case: str
    text: str
    before: float
    after: float
    slower: float
    settings: tuple[tuple[str, str], ...]


CLAIMS = (
    Claim("8b-lora", "Llama-3-8B, LoRA, batch 4", 22, 15, 0.18, (("adamw", ""), ("adamw", "nf4"))),
    Claim("8b-full", "8B, full fine-tuning, batch 4", 72, 48, 0.25, (("adamw", ""), ("sgd", ""))),
    Claim("13b-lora", "13B, LoRA, batch 2", 34, 21, 0.20, (("adamw", ""), ("adamw", "nf4"))),
    Claim("70b-lora", "70B, LoRA, batch 1", 95, 52, 0.30, (("adamw", ""), ("adamw", "nf4"))),
)  # fmt: skip


@dataclass(frozen=True)
class ImageClaim:
    """As :class:`Claim`, but looked at on each side that is planned; ``settings`` are cases, optimizers and bases."""

    text: str
    before: float
    after: float
    slower: float
    settings: tuple[tuple[str, str, str], ...]


IMAGE_CLAIM = ImageClaim(
    "SDXL training, batch 8", 28, 16, 0.15,
    (("sdxl-lora", "adamw", ""), ("sdxl-full", "adamw-8bit", ""), ("sdxl-full", "sgd", "")),
)  # fmt: skip

LARGEST = "70b-lora"

MAX_BATCH_DEVICES = ("RTX-4090", "A100-40GB", "H100")
MAX_BATCH = {"model": "llama-3-8b", "sequence": 2048, "lora": 16, "dtype": "bf16", "optimizer": "adamw"}


def extra_bytes(row: Row, optimizer: str, base: str) -> int:
    """What an optimizer and a quantised base add to every peak of a row; negative where they save."""
    return int(row["optimizer_bytes"][optimizer]) - int(row["base_bytes"].get(base, 0))


def least_bytes(row: Row, optimizer: str, base: str) -> int:
    """What any step takes whatever its length: weights, gradients of all that is trained, and the optimizer's state.

    A quantised base counts with its largest weight made again.
    """
    return int(row["parameter_bytes"] + row["trained_bytes"]) + extra_bytes(row, optimizer, base)


def solved_sequence(rows: Sequence[Row], claim: Claim, optimizer: str, base: str) -> int:
    """The tokens at which ``torch.compile`` takes what the claim says, on the line through the first and last row; 0 or
    less where what does not depend on the sequence is larger already."""
    first, last = rows[0], rows[-1]
    low, high = (row["rivals"]["torch.compile"]["peak_bytes"] for row in (first, last))
    slope = (high - low) / (last["sequence"] - first["sequence"])
    missing = claim.before * GB - extra_bytes(first, optimizer, base) - low
    return round((first["sequence"] + missing / slope) / SOLVE_STEP) * SOLVE_STEP


def fixed_rows(rows: Sequence[Row], case: str) -> list[Row]:
    """The rows of a case's own sequences, in their order."""
    by_sequence = {row["sequence"]: row for row in rows if row["case"] == case}
    return [by_sequence[s] for s in CASES[case].sequences if s in by_sequence]


def plan_row(name: str, sequence: int) -> Row:
    """Plan one step, with what others do to it."""
    from graphremat.adapters import BASE_BITS
    from graphremat.comparison import compare
    from graphremat.models import find_model
    from graphremat.optimizers import OPTIMIZERS
    from graphremat.passes.torch_private import FakeTensorMode
    from graphremat.subject import make_subject

    case = CASES[name]
    factory = find_model(case.model, batch=case.batch, sequence=sequence)
    started = time.perf_counter()
    found = compare(
        factory, torch_budgets=TORCH_BUDGETS, every_blocks=EVERY_BLOCKS, device=case.device, dtype="bf16",
        lora=case.lora,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    with FakeTensorMode():
        subject = make_subject(factory, dtype="bf16", lora=case.lora)
        states = {k: sum(map(of, subject.trained)) for k, of in OPTIMIZERS.items()}
        bases = {
            base: make_subject(factory, dtype="bf16", lora=case.lora, base=base).quantised_bytes
            for base in (BASE_BITS if case.lora else ())
        }
    forecast = found.forecast
    return {
        "case": name,
        "sequence": sequence,
        **{k: v for k, v in asdict(case).items() if k != "sequences"},
        "ops": forecast.ops,
        "blocks": found.blocks,
        "parameter_bytes": forecast.parameter_bytes,
        "trained_bytes": forecast.trained_bytes,
        "optimizer_bytes": states,
        "base_bytes": bases,
        "points": list(map(asdict, forecast.points)),
        "rivals": {rival.name: asdict(rival.point) for rival in found.rivals},
        "plan_seconds": seconds,
        "process_bytes": _process_bytes(),
    }


def plan_batches(device: str) -> Row:
    """The largest batches of a device for ``MAX_BATCH``."""
    from graphremat.batches import max_batch
    from graphremat.models import find_model

    setting = dict(MAX_BATCH)
    factory = find_model(str(setting.pop("model")), sequence=int(str(setting.pop("sequence"))))
    started = time.perf_counter()
    found = json.loads(max_batch(factory, device, **setting).to_json())
    seconds = time.perf_counter() - started
    return {"case": "max-batch", **found, "plan_seconds": seconds, "process_bytes": _process_bytes()}


def plan_largest(device: str) -> Row:
    """How long one plan of the largest case takes, nothing compared."""
    from graphremat.forecast import plan
    from graphremat.models import find_model

    case = CASES[LARGEST]
    started = time.perf_counter()
    found = plan(
        find_model(case.model, batch=case.batch, sequence=case.sequences[-1]),
        device=device,
        dtype="bf16",
        lora=case.lora,
    )
    return {
        "case": "largest",
        "device": device,
        "ops": found.ops,
        "plan_seconds": time.perf_counter() - started,
        "process_bytes": _process_bytes(),
    }


def plan_layer() -> Row:
    """A linear layer from 2048 to 4096 features in fp16, and a nonlinearity that has it save its result."""
    import torch
    from torch import nn

    from graphremat.comparison import compare

    batch, sequence = 4, 2048

    def make() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
        layer = nn.Sequential(nn.Linear(2048, 4096, bias=False), nn.GELU())
        return layer, (torch.randn(batch, sequence, 2048),)

    found = compare(make, torch_budgets=(), dtype="fp16")
    point = next(rival.point for rival in found.rivals if rival.name == "torch.compile")
    return {
        "case": "layer",
        "device": "cpu",
        "batch": batch,
        "sequence": sequence,
        "weight_bytes": found.forecast.parameter_bytes,
        "saved_bytes": point.saved_bytes,
    }


def _process_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def read_rows(path: Path) -> list[Row]:
    """The rows that are kept, the latest of each."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = map(json.loads, lines)
    return list({(row["case"], row.get("sequence"), row["device"]): row for row in rows}.values())


def missing(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """Case and sequence (or device) of each row that is not there, as far as is known without the others."""
    have = {(row["case"], str(row["sequence"] if row["case"] in CASES else row["device"])) for row in rows}
    wanted = [(name, str(s)) for name, case in CASES.items() for s in case.sequences]
    for claim in CLAIMS:
        fixed = fixed_rows(rows, claim.case)
        if len(fixed) == len(CASES[claim.case].sequences):
            open_ = [s for s in claim.settings if least_bytes(fixed[0], *s) <= claim.after * GB]
            solved = [solved_sequence(fixed, claim, *setting) for setting in open_]
            wanted += [(claim.case, str(s)) for s in solved if s > 0]
    wanted += [("layer", "cpu"), ("largest", CASES[LARGEST].device)]
    wanted += [("max-batch", device) for device in MAX_BATCH_DEVICES]
    yield from (each for each in dict.fromkeys(wanted) if each not in have)


def main() -> None:
    """Plan what is missing if asked to, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plan", action="store_true", help="plan the rows that are missing")
    parser.add_argument("--one", nargs=2, metavar=("CASE", "SEQUENCE"), help="plan this row, here")
    parser.add_argument("--page", type=Path, help="write the page into this file")
    arguments = parser.parse_args()
    if arguments.one:
        case, which = arguments.one
        plan_other = {
            "max-batch": lambda: plan_batches(which),
            "largest": lambda: plan_largest(which),
            "layer": plan_layer,
        }
        row = plan_other[case]() if case in plan_other else plan_row(case, int(which))
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    while arguments.plan and (left := list(missing(read_rows(RESULTS)))):
        print(f"planning {' '.join(left[0])}, {len(left) - 1} more to come", flush=True)
        subprocess.run([sys.executable, "-m", "bench.claims", "--one", *left[0]], check=True)
    if arguments.page:
        from bench.claims_page import page_of

        arguments.page.write_text(page_of(read_rows(RESULTS)), encoding="utf-8")


if __name__ == "__main__":
    main()
