"""The Dynamo backend: ``torch.compile(model, backend="graphremat", options={"memory_budget": "20GiB"})``."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.fx as fx

from graphremat.autotune import Autotuned, Compile, promising
from graphremat.candidates import graph_device
from graphremat.choose import Aim
from graphremat.errors import GraphrematError
from graphremat.fence import standing
from graphremat.kernel_clock import GraphCode, code_of
from graphremat.ledger import LEDGER
from graphremat.lowering import code_as_planned, copy_graph_module, keep_saved_inputs, number_of_outputs
from graphremat.options import Options
from graphremat.partitioner import Partitioner, check_operators
from graphremat.passes import torch_private as private
from graphremat.passes.attribute import Attribution
from graphremat.profile import Profiled
from graphremat.region import Compiled, Region
from graphremat.versions import is_supported_torch, supported_torch_text


def graphremat(
    gm: fx.GraphModule, example_inputs: Sequence[Any], *, options: Mapping[str, object] | None = None
) -> Callable[..., Any]:
    """Compile a Dynamo graph so that forward and backward together stay under a budget in bytes.

    Registered under ``torch_dynamo_backends``; users name it to ``torch.compile``.

    Args:
        gm: the graph that Dynamo captured.
        example_inputs: its inputs.
        options: see :class:`graphremat.options.Options`.

    Raises:
        OptionError: an option is unknown or has a value that is not allowed.
        BudgetInfeasible: no plan that was found fits the budget.
        PlanningError: a stage of the planner failed.
    """
    if not is_supported_torch(torch.__version__):
        warnings.warn(
            f"graphremat was not tried with torch {torch.__version__} (supported: {supported_torch_text()}); "
            "budgets may not be kept",
            stacklevel=2,
        )
    try:
        parsed = Options.parse(options)
        check_operators(parsed.repeatable)
        if parsed.shared_bytes is None and parsed.autotune == 1 and not parsed.profile:
            return _compile(gm, example_inputs, parsed).run
        graph = _Graph(gm, example_inputs, parsed)
        if parsed.shared_bytes is not None:
            return _region(gm, example_inputs, graph, parsed.shared_bytes)
        return graph.tuned(_compile(gm, example_inputs, parsed, must_plan=True), None).run
    except GraphrematError as error:
        raise _through_dynamo(error) from error.__cause__


class _Graph:
    """A graph as Dynamo gave it, kept to be compiled again. It holds on to no input."""

    def __init__(self, gm: fx.GraphModule, example_inputs: Sequence[Any], options: Options) -> None:
        self.options = options
        self.symbols = [private.symbol_of(x) for x in example_inputs]
        self._kept = copy_graph_module(gm)
        self._context, self._traced = None, None
        if any(self.symbols):
            self._context, self._traced = private.tracing_context(), private.traced_inputs(gm)

    def compile_again(self, inputs: Sequence[Any], aim: Aim) -> Compiled:
        """With real inputs, or, where sizes are symbolic, those that it was traced with."""
        with private.tracing_anew(self._context):
            return _compile(
                copy_graph_module(self._kept), self._traced or inputs, self.options, aim, must_plan=True
            )

    def tuned(self, compiled: Compiled, aim: Aim | None) -> Compiled:
        """With a look at the first steps, and with other plans that take turns in them, if that is asked for."""
        if compiled.report is None or any(self.symbols):
            return compiled
        if self.options.profile:
            device = graph_device(self._kept)
            run: Callable[..., Any] = Profiled(compiled, device, partial(self._corrected, aim))
        elif self.options.autotune > 1:
            run = Autotuned(compiled, self._others(compiled, aim))
        else:
            return compiled
        return replace(compiled, run=run)

    def _others(self, compiled: Compiled, aim: Aim | None) -> list[Compile]:
        """How to compile the plans that might be faster in truth than the one that was compiled."""
        report = compiled.report
        assert report is not None
        at = aim or Aim(report.generated_peak_bytes)
        places = promising(report, self.options.autotune - 1)
        return [partial(self.compile_again, aim=replace(at, place=k, most_bytes=None)) for k in places]

    def _corrected(self, aim: Aim | None, measured: Compiled, found: Attribution) -> Callable[..., Any]:
        """What runs on: the plan that was measured, against the one that the prices ask for when they are corrected,
        and others if these are to take turns as well."""
        report = measured.report
        assert report is not None
        allowed = report.share_bytes if report.share_bytes is not None else report.budget_bytes
        peak = report.generated_peak_bytes if allowed is None else allowed
        at = replace(aim or Aim(peak), ratios=tuple(sorted(found.ratios.items())), most_bytes=None)

        def compile_corrected(inputs: Sequence[Any]) -> Compiled | None:
            compiled = self.compile_again(inputs, at)
            same = compiled.plan is not None and compiled.plan == measured.plan
            return None if same else compiled

        others = self._others(measured, aim) if found.attributed_seconds else []
        corrected = [compile_corrected] if found.attributed_seconds else []
        return Autotuned(measured, [*corrected, *others], most_bytes=max(peak, report.generated_peak_bytes))


def _region(gm: fx.GraphModule, example_inputs: Sequence[Any], graph: _Graph, budget_bytes: int) -> Region:
    """The graph as one of several that share a budget."""
    tunes = graph.options.autotune > 1

    def compile_first(inputs: Sequence[Any], aim: Aim, must_plan: bool) -> Compiled:
        return graph.tuned(_compile(gm, inputs, graph.options, aim, must_plan=must_plan or tunes), aim)

    def compile_again(inputs: Sequence[Any], aim: Aim) -> Compiled:
        return graph.tuned(graph.compile_again(inputs, aim), aim)

    return Region(
        compile_first,
        compile_again,
        example_inputs,
        budget_bytes,
        symbols=graph.symbols,
        followed=private.ends_in_graph_break(gm),
        lowest_if_infeasible=graph.options.on_infeasible == "min_peak",
        ledger=LEDGER,
    )


def _compile(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    options: Options,
    aim: Aim | None = None,
    *,
    must_plan: bool = False,
) -> Compiled:
    partitioner = Partitioner(options, num_user_outputs=number_of_outputs(gm), aim=aim)
    if options.lowering == "aot_eager":
        run = _run_op_by_op(gm, example_inputs, partitioner)
    else:
        run = _compile_with_inductor(gm, example_inputs, partitioner, cached=not must_plan)
    return partitioner.compiled(run)


def _compile_with_inductor(
    gm: fx.GraphModule, example_inputs: Sequence[Any], partitioner: Partitioner, *, cached: bool
) -> Callable[..., Any]:
    def inner_compile(graph: fx.GraphModule, inputs: Sequence[Any], **kwargs: Any) -> Any:
        private.wait_for_compiler()
        is_backward = bool(kwargs.get("is_backward"))
        if not is_backward:
            keep_saved_inputs(graph)
        with (
            standing(partitioner.fence if is_backward else None),
            code_as_planned(graph, fenced=partitioner.fence is not None),
            private.buffer_reuse(partitioner.reuses_buffers),
            private.graph_cache_keyed_by_donation(),
            private.origins_in_comments(),
            private.compiling_as_generated(partitioner.take_generated(is_backward=is_backward)),
        ):
            compiled = private.compile_fx_inner(graph, inputs, **kwargs)
        if partitioner.options.profile:
            partitioner.codes.append(code_of(compiled))
        return compiled

    if graph_device(gm).type == "cpu":
        private.start_asking_compiler()
    # Whoever asks for dumps wants them of every compilation: torch's cache of whole autograd functions would skip ours.
    with private.autograd_cache(cached and partitioner.options.dump_dir is None):
        compiled: Any = private.compile_fx(
            gm,
            example_inputs,
            inner_compile=inner_compile,
            config_patches={"custom_partitioner_fn": partitioner},
        )
    return compiled  # type: ignore[no-any-return]


def _run_op_by_op(
    gm: fx.GraphModule, example_inputs: Sequence[Any], partitioner: Partitioner
) -> Callable[..., Any]:
    def as_it_is(graph: fx.GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
        code = GraphCode(graph)
        partitioner.codes.append(code)
        return private.boxed(code)

    run: Callable[..., Any] = private.aot_autograd(
        fw_compiler=as_it_is, bw_compiler=as_it_is, partition_fn=partitioner
    )(gm, example_inputs)
    return run


def _through_dynamo(error: GraphrematError) -> GraphrematError:
    """The same error as a class that Dynamo does not wrap, so that the user reads it first and catches it by class."""
    kind = type(error)
    passing = type(
        kind.__name__,
        (kind, private.ShortenTraceback),
        {"__module__": kind.__module__, "__qualname__": kind.__qualname__},
    )
    copied: GraphrematError = passing.__new__(passing, *error.args)
    copied.args = error.args
    copied.__dict__.update(error.__dict__)
    copied.first_useful_frame = None  # type: ignore[attr-defined]
    return copied.with_traceback(error.__traceback__)
