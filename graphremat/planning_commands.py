"""The commands that answer before anything runs: plan, frontier, compare, advise and max-batch.

They share how a model is named and trained. Exit codes: 0 for yes, 1 where nothing fits or something failed, 2 for a
mistake in the command itself. What does the work is imported when a command runs.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

ModelArgument = Annotated[
    str,
    typer.Argument(
        help="MODULE:FACTORY or FILE.py:FACTORY, a function (of the batch) that returns the model and its inputs; a "
        "folder with a config.json of Hugging Face; or llama-3-8b, llama-3-70b, llama-2-7b, llama-2-13b, llama-tiny."
    ),
]
BatchOption = Annotated[int | None, typer.Option(help="Examples in a step.")]
SequenceOption = Annotated[int | None, typer.Option(help="Tokens in an example.")]
DeviceOption = Annotated[str | None, typer.Option(help="A GPU by name, like RTX-4090. Left out: this CPU.")]
DtypeOption = Annotated[str | None, typer.Option(help="bf16, fp16 or fp32 for the weights.")]
LoraOption = Annotated[
    int | None, typer.Option(help="Train adapters of this rank on the linear layers, and nothing else.")
]
BaseOption = Annotated[str | None, typer.Option(help="nf4 or int8: frozen linear layers are held quantised.")]
OptimizerOption = Annotated[
    str,
    typer.Option(
        help="none, sgd, sgd-momentum, adam, adamw, adamw-8bit, adamw-fp32 (states in fp32) or adamw-master (a copy of "
        "the weights in fp32 as well): its state is counted."
    ),
]
AccumulateOption = Annotated[
    bool, typer.Option("--accumulate", help="Gradients of earlier micro-batches are held as well.")
]
RepeatableOption = Annotated[
    list[str] | None,
    typer.Option(
        help="An operator (my_library::my_operator) that is not torch's own and may run again; may be said several "
        "times."
    ),
]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        help="20GiB, a fraction like 0.5, or auto for the device's memory. Left out: the fastest plan."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def _make(model: str, batch: int | None, sequence: int | None) -> Callable[..., Any]:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # quiet; read when torch is loaded
    from graphremat.models import find_model

    return find_model(model, batch=batch, sequence=sequence)


def plan(
    model: ModelArgument,
    budget: BudgetOption = None,
    batch: BatchOption = None,
    sequence: SequenceOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    lora: LoraOption = None,
    base: BaseOption = None,
    optimizer: OptimizerOption = "none",
    accumulate: AccumulateOption = False,
    repeatable: RepeatableOption = None,
    report_to: Annotated[
        Path | None,
        typer.Option("--report", dir_okay=False, help="Write the plan as a page (HTML) into this file."),
    ] = None,
    code: Annotated[
        bool | None,
        typer.Option(
            help="Generate the plan's code as well and go by its peak; for this CPU alone, where that is done by "
            "itself unless the model is large."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a training step will take, without running it: no weights in memory, no GPU.

    Exits with 1 if no plan is under the budget, or if the plan does not fit the device.
    """
    factory = _make(model, batch, sequence)
    from graphremat.forecast import plan as forecast
    from graphremat.replan import parse_budget

    allowed = budget if budget == "auto" else parse_budget(budget)
    with Console(stderr=True).status("tracing and planning"):
        found = forecast(
            factory, budget=allowed, device=device, dtype=dtype, lora=lora, base=base, optimizer=optimizer,
            accumulate=accumulate, repeatable=repeatable or (), code=code,
        )  # fmt: skip
    typer.echo(found.to_json() if as_json else str(found), nl=as_json)
    if report_to is not None:
        found.write_report(report_to)
    if not found.fits:
        raise typer.Exit(1)


def frontier(
    model: ModelArgument,
    batch: BatchOption = None,
    sequence: SequenceOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    lora: LoraOption = None,
    base: BaseOption = None,
    optimizer: OptimizerOption = "none",
    accumulate: AccumulateOption = False,
    repeatable: RepeatableOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show every plan from the fastest to the one of lowest peak, and what each takes of the fastest.

    Exits with 1 if not even the lowest fits the device.
    """
    factory = _make(model, batch, sequence)
    from graphremat.step_frontier import frontier as find_frontier

    with Console(stderr=True).status("tracing and planning"):
        found = find_frontier(
            factory,
            device=device,
            dtype=dtype,
            lora=lora,
            base=base,
            optimizer=optimizer,
            accumulate=accumulate,
            repeatable=repeatable or (),
        )
    typer.echo(found.to_json() if as_json else str(found), nl=as_json)
    if not found.fits:
        raise typer.Exit(1)


def compare(
    model: ModelArgument,
    batch: BatchOption = None,
    sequence: SequenceOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    lora: LoraOption = None,
    base: BaseOption = None,
    optimizer: OptimizerOption = "none",
    accumulate: AccumulateOption = False,
    repeatable: RepeatableOption = None,
    torch_budget: Annotated[
        list[float] | None,
        typer.Option(help="A value of torch's activation_memory_budget; may be said several times."),
    ] = None,
    every: Annotated[
        list[int] | None,
        typer.Option(help="Blocks that are wrapped in one checkpoint; may be said several times."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Predict peak and time of checkpoints around blocks and of torch's own budget, next to our plans.

    Every line shows our fastest plan at no higher a peak, and our lowest peak in no more time.
    """
    factory = _make(model, batch, sequence)
    from graphremat.comparison import EVERY_BLOCKS, TORCH_BUDGETS
    from graphremat.comparison import compare as find_comparison

    with Console(stderr=True).status("tracing and planning"):
        found = find_comparison(
            factory, torch_budgets=torch_budget or TORCH_BUDGETS, every_blocks=every or EVERY_BLOCKS, device=device,
            dtype=dtype, lora=lora, base=base, optimizer=optimizer, accumulate=accumulate,
            repeatable=repeatable or (),
        )  # fmt: skip
    typer.echo(found.to_json() if as_json else str(found), nl=as_json)


def advise(
    model: ModelArgument,
    batch: BatchOption = None,
    sequence: SequenceOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    lora: LoraOption = None,
    base: BaseOption = None,
    optimizer: OptimizerOption = "none",
    accumulate: AccumulateOption = False,
    repeatable: RepeatableOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say whether a step needs recomputation on a device, how much, and what else would help.

    Exits with 1 if no plan fits the device.
    """
    factory = _make(model, batch, sequence)
    from graphremat.advice import advise as find_advice

    with Console(stderr=True).status("tracing and planning"):
        found = find_advice(
            factory,
            device=device,
            dtype=dtype,
            lora=lora,
            base=base,
            optimizer=optimizer,
            accumulate=accumulate,
            repeatable=repeatable or (),
        )
    typer.echo(found.to_json() if as_json else str(found))
    if found.verdict == "does not fit":
        raise typer.Exit(1)


def max_batch(
    model: ModelArgument,
    sequence: SequenceOption = None,
    device: DeviceOption = None,
    budget: Annotated[str, typer.Option(help="20GiB, or auto for the device's memory.")] = "auto",
    dtype: DtypeOption = None,
    lora: LoraOption = None,
    base: BaseOption = None,
    optimizer: OptimizerOption = "none",
    accumulate: AccumulateOption = False,
    repeatable: RepeatableOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the largest batch that a device holds, and the one of most examples a second, without running it.

    Exits with 1 if not even a batch of 1 fits.
    """
    factory = _make(model, None, sequence)
    from graphremat.batches import max_batch as find_max_batch

    with Console(stderr=True).status("planning batches"):
        found = find_max_batch(
            factory, device, budget=budget, dtype=dtype, lora=lora, base=base, optimizer=optimizer,
            accumulate=accumulate, repeatable=repeatable or (),
        )  # fmt: skip
    typer.echo(found.to_json() if as_json else str(found))


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (plan, frontier, compare, advise):
        app.command()(command)
    app.command("max-batch")(max_batch)
