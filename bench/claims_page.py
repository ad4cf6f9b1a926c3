"""The page of claims, made of the rows that :mod:`bench.claims` keeps: nothing on it is typed in but the claims."""

from collections.abc import Iterator, Mapping, Sequence

from bench.claims import (
    CASES,
    CLAIMS,
    GB,
    IMAGE_CLAIM,
    IMAGES,
    MAX_BATCH,
    Claim,
    Row,
    extra_bytes,
    fixed_rows,
    least_bytes,
    solved_sequence,
)
from bench.sdxl import PIXELS_OF_A_LATENT
from graphremat.forecast import DEVICE_RESERVE_BYTES, usable_bytes
from graphremat.passes.devices import DEVICES

Point = Mapping[str, float]

RIVALS = {
    "every value saved": "every value saved",
    "torch.compile": "`torch.compile`",
    "a checkpoint for each block": "a checkpoint for each block",
    "a checkpoint for 4 blocks": "for 4 blocks",
    "activation_memory_budget=0.5": "torch's budget 0.5",
    "activation_memory_budget=0.25": "torch's budget 0.25",
}
"""Columns of others, by the name in a row."""
FITS = (
    ("13b-lora-4090", "A 13B model on one RTX 4090", (("adamw", ""), ("adamw", "int8"), ("adamw", "nf4"))),
    (
        "7b-full",
        "Full fine-tuning of a 7B model on an A100 40GB",
        (("adamw-master", ""), ("adamw", ""), ("adamw-8bit", ""), ("sgd", "")),
    ),
    (
        "70b-lora",
        "LoRA of a 70B model on one A100 80GB",
        (("adamw", ""), ("adamw", "int8"), ("adamw", "nf4")),
    ),
)
"""Claims that a step fits a device: the case, the claim, and the optimizers and bases it is read with."""
NEAR = 0.03
"""A step begins where a claim says if ``torch.compile`` takes at most this share less."""
SLOWER = (0.2, 0.3)
"""The rule of thumb: 60 to 80% of activation memory for 20 to 30% of time."""


def fastest_seconds(row: Row) -> float:
    """Seconds of the fastest plan that is known of a step, from which all percentages count."""
    return float(min(p["step_seconds"] for p in (*row["points"], row["rivals"]["torch.compile"])))


def slowdown(row: Row, point: Point) -> float:
    """How much longer a plan takes than the fastest."""
    return point["step_seconds"] / fastest_seconds(row) - 1


def within_bytes(row: Row, peak_bytes: float) -> Point | None:
    """Our fastest plan of at most so many bytes."""
    return next((p for p in row["points"] if p["peak_bytes"] <= peak_bytes), None)


def within_time(row: Row, slower: float) -> Point | None:
    """Our plan of the lowest peak that takes at most this share longer than the fastest."""
    return next((p for p in reversed(row["points"]) if slowdown(row, p) <= slower), None)


def gigabytes(size: float) -> str:
    """Bytes as decimal gigabytes."""
    return f"{size / GB:.1f} GB"


def cell(row: Row, point: Point | None, extra: int) -> str:
    """A plan's peak, and how much longer it takes."""
    return (
        "none" if point is None else f"{gigabytes(point['peak_bytes'] + extra)}, {slowdown(row, point):+.0%}"
    )


def named(setting: tuple[str, str]) -> str:
    """An optimizer and a base in words."""
    optimizer, base = setting
    return f"{optimizer}, base in {base}" if base else optimizer


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The lines of a Markdown table."""
    yield f"| {' | '.join(head)} |"
    yield f"| {' | '.join(['---'] * len(head))} |"
    yield from (f"| {' | '.join(row)} |" for row in rows)


def rows_of(rows: Sequence[Row], case: str) -> list[Row]:
    """All rows of a case, shortest sequence first."""
    return sorted((row for row in rows if row["case"] == case), key=lambda row: int(row["sequence"]))


def size_of(row: Row) -> str:
    """What a row's sequence counts."""
    if row["case"] in IMAGES:
        return f"{row['sequence'] * PIXELS_OF_A_LATENT} pixels a side"
    return f"{row['sequence']} tokens"


def too_heavy(row: Row, setting: tuple[str, str], after: float) -> str | None:
    """Why a step of any size takes more than so many GB; None where that is not so."""
    least = least_bytes(row, *setting)
    if least <= after * GB:
        return None
    weights = row["parameter_bytes"] - row["base_bytes"].get(setting[1], 0)
    return (
        f"cannot be: weights ({gigabytes(weights)}), gradients and state of the optimizer alone are "
        f"{gigabytes(least)}, whatever the {'side' if row['case'] in IMAGES else 'length'}"
    )


def verdict(rows: Sequence[Row], claim: Claim, setting: tuple[str, str]) -> tuple[bool, str]:
    """Whether a claim holds with an optimizer and a base, at the sequence where its "before" is so; and why."""
    fixed = fixed_rows(rows, claim.case)
    extra = extra_bytes(fixed[0], *setting)
    heavy = too_heavy(fixed[0], setting, claim.after)
    if heavy is not None:
        return False, heavy
    tokens = solved_sequence(fixed, claim, *setting)
    if tokens <= 0:
        shortest = fixed[0]["rivals"]["torch.compile"]["peak_bytes"] + extra
        return False, (
            f"cannot be: at {fixed[0]['sequence']} tokens `torch.compile` takes {gigabytes(shortest)}, and no length "
            f"comes to {claim.before} GB"
        )
    row = next(r for r in rows if r["case"] == claim.case and r["sequence"] == tokens)
    before = row["rivals"]["torch.compile"]["peak_bytes"] + extra
    reached = within_bytes(row, claim.after * GB - extra)
    blocks = row["rivals"]["a checkpoint for each block"]
    told = f"at {tokens} tokens `torch.compile` takes {gigabytes(before)}; "
    if reached is None:
        lowest = row["points"][-1]
        told += f"no plan comes down to {claim.after} GB, the lowest is {cell(row, lowest, extra)}"
    else:
        told += f"{claim.after} GB costs us {slowdown(row, reached):+.1%}"
    allowed = within_time(row, claim.slower)
    told += (
        f"; within {claim.slower:+.0%} we come to {cell(row, allowed, extra)}; "
        f"a checkpoint for each block takes {cell(row, blocks, extra)}"
    )
    return reached is not None and slowdown(row, reached) <= claim.slower, told


def claim_lines(rows: Sequence[Row], claim: Claim) -> Iterator[str]:
    """The section of one claim of memory and time."""
    yield f"## {claim.text}: {claim.before} GB to {claim.after} GB, {claim.slower:.0%} slower"
    yield ""
    for setting in claim.settings:
        holds, told = verdict(rows, claim, setting)
        yield f"- {named(setting)}: **{'holds' if holds else 'does not hold'}**: {told}."
    yield ""
    lines = []
    for row in rows_of(rows, claim.case):
        blocks = row["rivals"]["a checkpoint for each block"]
        for setting in claim.settings:
            extra = extra_bytes(row, *setting)
            ours = (
                within_bytes(row, blocks["peak_bytes"]),
                within_time(row, slowdown(row, blocks)),
                row["points"][-1],
            )
            lines.append(
                [
                    str(row["sequence"]),
                    named(setting),
                    *(cell(row, row["rivals"].get(name), extra) for name in RIVALS),
                    *(cell(row, point, extra) for point in ours),
                ]
            )
    head = ["tokens", "with", *RIVALS.values(), "ours, at the blocks' peak", "ours, in the blocks' time"]
    yield from table([*head, "our lowest"], lines)
    yield ""


def image_verdict(rows: Sequence[Row], setting: tuple[str, str, str]) -> tuple[bool, str]:
    """Whether the claim about images holds on a side at which it begins where it says, or above; and why."""
    case, optimizer, base = setting
    sides = rows_of(rows, case)
    heavy = too_heavy(sides[0], (optimizer, base), IMAGE_CLAIM.after)
    if heavy is not None:
        return False, heavy
    holds, told = False, []
    for row in sides:
        extra = extra_bytes(row, optimizer, base)
        before = row["rivals"]["torch.compile"]["peak_bytes"] + extra
        reached = within_bytes(row, IMAGE_CLAIM.after * GB - extra)
        allowed = within_time(row, IMAGE_CLAIM.slower)
        begins = before >= (1 - NEAR) * IMAGE_CLAIM.before * GB
        keeps = reached is not None and slowdown(row, reached) <= IMAGE_CLAIM.slower
        holds = holds or (begins and keeps)
        found = (
            ("holds" if keeps else "does not hold")
            if begins
            else f"does not begin at {IMAGE_CLAIM.before} GB"
        )
        most = row["rivals"]["every value saved"]["peak_bytes"] + extra
        words = f"at {size_of(row)} it {found}: `torch.compile` takes {gigabytes(before)}, every value saved "
        words += gigabytes(most)
        if reached is None:
            words += f", no plan comes down to {IMAGE_CLAIM.after} GB"
        else:
            words += f", {IMAGE_CLAIM.after} GB costs us {slowdown(row, reached):+.1%}"
        words += f" and within {IMAGE_CLAIM.slower:+.0%} we come to {cell(row, allowed, extra)}"
        told.append(words)
    return holds, "; ".join(told)


def image_setting(setting: tuple[str, str, str]) -> str:
    """What is trained, an optimizer and a base in words."""
    case, optimizer, base = setting
    rank = CASES[case].lora
    return f"{f'adapters of rank {rank}' if rank else 'trained whole'}, {named((optimizer, base))}"


def image_lines(rows: Sequence[Row]) -> Iterator[str]:
    """The section of the claim about images."""
    yield (
        f"## {IMAGE_CLAIM.text}: {IMAGE_CLAIM.before} GB to {IMAGE_CLAIM.after} GB, {IMAGE_CLAIM.slower:.0%} slower"
    )
    yield ""
    yield (
        "SDXL's U-Net of diffusers with its published sizes (`bench/sdxl.py`), without the encoders beside it. "
        "A block is one of the U-Net's on the way down and up, or a part of the one in the middle."
    )
    yield ""
    for setting in IMAGE_CLAIM.settings:
        holds, told = image_verdict(rows, setting)
        yield f"- {image_setting(setting)}: **{'holds' if holds else 'does not hold'}**: {told}."
    yield ""
    others = {name: words for name, words in RIVALS.items() if name != "a checkpoint for 4 blocks"}
    lines = []
    for setting in IMAGE_CLAIM.settings:
        case, optimizer, base = setting
        for row in rows_of(rows, case):
            extra = extra_bytes(row, optimizer, base)
            ours = (
                within_bytes(row, IMAGE_CLAIM.after * GB - extra),
                within_time(row, IMAGE_CLAIM.slower),
                row["points"][-1],
            )
            lines.append(
                [
                    size_of(row),
                    image_setting(setting),
                    *(cell(row, row["rivals"].get(name), extra) for name in others),
                    *(cell(row, point, extra) for point in ours),
                ]
            )
    head = ["images", "with", *others.values(), f"ours, at {IMAGE_CLAIM.after} GB"]
    yield from table([*head, f"ours, within {IMAGE_CLAIM.slower:+.0%}", "our lowest"], lines)
    yield ""


def fits_lines(
    rows: Sequence[Row], case: str, text: str, settings: Sequence[tuple[str, str]]
) -> Iterator[str]:
    """The section of a claim that something fits a device."""
    device = DEVICES[CASES[case].device]
    room = usable_bytes(device)
    yield f"## {text}"
    yield ""
    yield (
        f"{CASES[case].model}, batch {CASES[case].batch}"
        + (f", adapters of rank {CASES[case].lora}" if CASES[case].lora else "")
        + f"; {device.name} has {gigabytes(room)} for a step."
    )
    if CASES[case].lora:
        first = rows_of(rows, case)[0]
        whole = 2 * (first["parameter_bytes"] - first["trained_bytes"])
        yield f"Trained whole, weights and gradients alone are {gigabytes(whole)}."
    yield ""
    lines = []
    for setting in settings:
        for row in rows_of(rows, case):
            extra = extra_bytes(row, *setting)
            fitting = within_bytes(row, room - extra)
            lines.append(
                [
                    named(setting),
                    str(row["sequence"]),
                    gigabytes(row["parameter_bytes"] - row["base_bytes"].get(setting[1], 0)),
                    cell(row, row["rivals"]["torch.compile"], extra),
                    cell(row, row["rivals"]["a checkpoint for each block"], extra),
                    cell(row, row["points"][-1], extra),
                    f"yes: {cell(row, fitting, extra)}" if fitting else "no",
                ]
            )
    head = ["with", "tokens", "weights", "`torch.compile`", "a checkpoint for each block", "our lowest"]
    yield from table([*head, "fits, by our fastest plan that does"], lines)
    yield ""


def saved_share(row: Row, slower: float, of: str) -> float:
    """The share of the peak above the weights that our lowest plan saves within this much more time, against another's
    plan. In full training the gradients are in that peak, too."""
    weights = row["parameter_bytes"]
    plan = within_time(row, slower)
    assert plan is not None
    return 1 - (plan["peak_bytes"] - weights) / (row["rivals"][of]["peak_bytes"] - weights)


def rule_lines(rows: Sequence[Row]) -> Iterator[str]:
    """The section of the rule of thumb."""
    yield "## 60 to 80% of activation memory for 20 to 30% of time"
    yield ""
    yield (
        "What our plan of the lowest peak saves of the peak above the weights, within 20% and within 30% more time, "
        "and what a checkpoint for each block does. In full training the gradients, which have to be there, are in it."
    )
    yield ""
    lines = []
    for case in CASES:
        for row in rows_of(rows, case):
            weights, blocks = row["parameter_bytes"], row["rivals"]["a checkpoint for each block"]
            compiled = row["rivals"]["torch.compile"]["peak_bytes"]
            less = 1 - (blocks["peak_bytes"] - weights) / (compiled - weights)
            lines.append(
                [
                    f"{case}, {size_of(row)}",
                    *(
                        f"{saved_share(row, s, of):.0%}"
                        for of in ("torch.compile", "every value saved")
                        for s in SLOWER
                    ),
                    f"{less:.0%} for {slowdown(row, blocks):+.0%}",
                ]
            )
    yield from table(
        [
            "step", "+20%, of `torch.compile`", "+30%", "+20%, of every value saved", "+30%",
            "blocks, of `torch.compile`",
        ],
        lines,
    )  # fmt: skip
    yield ""


def layer_lines(row: Row) -> Iterator[str]:
    """The section of the layer whose activation is 64 MB."""
    tokens = row["batch"] * row["sequence"]
    saved = row["saved_bytes"]
    yield "## A layer of 2048 x 4096 in fp16 costs 64 MB"
    yield ""
    yield (
        f"The weight is {row['weight_bytes'] / 2**20:.0f} MiB. What `torch.compile` saves for the backward of it and "
        f"of a GELU behind it is its result: planned for "
        f"{tokens} tokens (batch {row['batch']} of {row['sequence']}) that is {saved / 2**20:.0f} MiB, and it is "
        f"proportional to the tokens. **Holds** for {64 * 2**20 * tokens // saved} tokens, and only there."
    )
    yield ""


def batch_lines(rows: Sequence[Row]) -> Iterator[str]:
    """The section of the largest batches."""
    told = ", ".join(f"{name} {value}" for name, value in MAX_BATCH.items())
    yield f"## The largest batch: {told}"
    yield ""
    for row in (row for row in rows if row["case"] == "max-batch"):
        yield (
            f"{row['device']}: **{row['largest']}**, {row['without_recomputation']} under the fastest plan; most "
            f"examples a second with {row['best']}. The plans behind it took {row['plan_seconds'] / 60:.1f} minutes:"
        )
        yield ""
        yield from table(
            ["batch", "peak", "step", "of it again", "examples/s"],
            [
                [
                    str(p["batch"]),
                    gigabytes(p["peak_bytes"]),
                    f"{p['step_seconds'] * 1e3:,.0f} ms",
                    f"{p['recompute_seconds'] * 1e3:,.0f} ms",
                    f"{p['examples_per_second']:.2f}",
                ]
                for p in row["planned"]
            ],
        )
        yield ""


def intro_lines(rows: Sequence[Row]) -> Iterator[str]:
    """What the page is, and what planning the largest took."""
    (large,) = (row for row in rows if row["case"] == "largest")
    yield "# Claims, checked by planning"
    yield ""
    yield (
        "What is often said about memory and recomputation of large models, held against plans. Nothing here was run "
        "on a GPU: `python -m bench.claims --plan` plans, `python -m bench.claims --page docs/claims.md` makes this "
        "page. Peaks are those of the planner's replay; times are data-sheet prices of the device that is named, else "
        "an A100-80GB, and were not held against devices. A percentage is the time over that of the fastest plan."
    )
    yield ""
    yield "Assumed, since the claims say nothing of it:"
    yield ""
    yield from (
        "- weights, activations and gradients in bf16; logits and loss in float32; AdamW's two states in the dtype of "
        "the weights, as torch keeps them, unless it is `adamw-8bit`, or `adamw-master` (float32 states and weights);",
        "- adapters of rank 16 on every linear layer but the last, in bf16, without dropout;",
        "- a quantised base (nf4, int8) is counted in bytes, with the largest weight made again in bf16; the time of "
        "making weights again is not counted;",
        "- attention that never holds its matrix (`scaled_dot_product_attention`), no padding;",
        f"- GB are 10^9 bytes; a device keeps {DEVICE_RESERVE_BYTES / GB:.2f} GB for its context;",
        '- "without checkpointing" is `torch.compile` as it is; "every value saved" is nearer to eager, which saves '
        "every value that the backward reads;",
        "- what torch's budget saves is laid out in our order: measured, its peak can be some per cent higher "
        "(`tests/test_comparison.py`);",
        "- no claim names its sequence length, so the one is looked for at which `torch.compile` takes the GB before;",
        "- of SDXL a few sides are looked at; what convolutions allocate inside is not counted;",
        "- a checkpoint keeps what enters a block and nothing else, so its attention runs again, too.",
    )
    yield ""
    yield (
        f"Planning 80 layers (70B, {large['ops']:,} operators) took {large['plan_seconds'] / 60:.1f} minutes and "
        f"{gigabytes(large['process_bytes'])} of memory at most (`ru_maxrss`), on two x86-64 cores. The other rows "
        "also plan what they are compared with, and were planned beside other work."
    )
    yield ""
    held = [[verdict(rows, claim, s)[0] for s in claim.settings] for claim in CLAIMS]
    yield from table(
        ["claim", "with", "verdict"],
        [
            [
                f"{c.text}: {c.before} to {c.after} GB, {c.slower:.0%} slower",
                named(s),
                "holds" if h else "does not hold",
            ]
            for c, of_one in zip(CLAIMS, held, strict=True)
            for s, h in zip(c.settings, of_one, strict=True)
        ]
        + [
            [
                f"{IMAGE_CLAIM.text}: {IMAGE_CLAIM.before} to {IMAGE_CLAIM.after} GB, {IMAGE_CLAIM.slower:.0%} slower",
                image_setting(setting),
                "holds" if image_verdict(rows, setting)[0] else "does not hold",
            ]
            for setting in IMAGE_CLAIM.settings
        ],
    )
    yield ""


def page_of(rows: Sequence[Row]) -> str:
    """The page."""
    lines = [*intro_lines(rows)]
    for claim in CLAIMS:
        lines += claim_lines(rows, claim)
    lines += image_lines(rows)
    for case, text, settings in FITS:
        lines += fits_lines(rows, case, text, settings)
    lines += rule_lines(rows)
    lines += layer_lines(next(row for row in rows if row["case"] == "layer"))
    lines += batch_lines(rows)
    return "\n".join(lines)
