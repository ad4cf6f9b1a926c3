"""The planning problem of a module's step, traced as the backend traces it; nothing is compiled and nothing runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import fx, nn

from graphremat.candidates import Lowering, graph_device
from graphremat.errors import GraphrematError, PlanningError
from graphremat.lowering import number_of_outputs
from graphremat.options import Options
from graphremat.partitioner import check_operators, prices
from graphremat.passes import torch_private as private
from graphremat.passes.build import build_problem
from graphremat.passes.classify import read_joint_graph
from graphremat.passes.devices import Device
from graphremat.passes.hints import default_size_hint
from graphremat.passes.plan import Plan
from graphremat.passes.problem import Problem
from graphremat.plans import saved_by, torchs_graphs, torchs_plan_of

NO_BUDGET = 1.0
"""The value of torch's ``activation_memory_budget`` that it has by itself."""
NO_KEYWORDS: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class TracedStep:
    """A step as the planner gets it.

    Attributes:
        problem: the graph.
        torchs: the plan of torch's own partitioner; None where that cannot be kept or was not asked for.
        torchs_under: its plans under values of its ``activation_memory_budget``.
        lowering: what generates the code of a plan; None where the prices are those of another device than the one
            that the graph is on, for which there is no code.
    """

    problem: Problem
    torchs: Plan | None
    torchs_under: Mapping[float, Plan | None] = field(default_factory=dict)
    lowering: Lowering | None = None


class _Traced(private.ShortenTraceback):  # type: ignore[misc]
    """Carries what was traced out of the compilation, None where there is no backward; Dynamo lets this class through
    as it is."""

    def __init__(self, step: TracedStep | None) -> None:
        super().__init__(first_useful_frame=None)
        self.step = step


class _Tracer(private.CustomPartitionerFn):  # type: ignore[misc]
    """Takes the place of the partitioner and ends the compilation with what it is given."""

    def __init__(self, device: Device | None, options: Options, torch_budgets: Sequence[float]) -> None:
        self._device = device
        self._options = options
        self._torch_budgets = torch_budgets
        self.num_user_outputs = 0

    def __call__(self, gm: fx.GraphModule, joint_inputs: Sequence[object], **kwargs: Any) -> Any:
        static = kwargs.get("static_lifetime_input_indices")
        joint = read_joint_graph(
            gm,
            num_forward_outputs=kwargs["num_fwd_outputs"],
            static_lifetime_input_indices=static,
            repeatable=self._options.repeatable,
        )
        if not joint.differentiates:
            raise _Traced(None)
        device = self._device or prices(self._options, graph_device(gm))
        fuses = self._options.lowering == "inductor"
        here = device.kind == graph_device(gm).type  # what a convolution allocates here says nothing of a GPU
        problem, index = build_problem(
            joint, device, fuses=fuses, size_hint=default_size_hint, runs_here=here
        )
        plans: dict[float, Plan | None] = {}
        torchs = None
        for fraction in self._torch_budgets:
            with private.activation_memory_budget(fraction):
                graphs = torchs_graphs(joint, joint_inputs, static)
            plans[fraction] = torchs_plan_of(problem, saved_by(graphs[1], joint, problem, index))
            if fraction == NO_BUDGET and plans[fraction] is not None:
                torchs = graphs
        lowering = (
            Lowering(self._options, joint, problem, index, self.num_user_outputs, torchs) if here else None
        )
        raise _Traced(TracedStep(problem, plans.pop(NO_BUDGET, None), plans, lowering))

    def uuid(self) -> None:
        """No caching."""


def trace_step(
    model: nn.Module,
    arguments: Sequence[Any],
    keywords: Mapping[str, Any] = NO_KEYWORDS,
    *,
    device: Device | None = None,
    lowering: str = "inductor",
    with_torchs: bool = True,
    torch_budgets: Sequence[float] = (),
    dynamic: bool = False,
    repeatable: Sequence[str] = (),
) -> TracedStep:
    """Trace a module up to its planning problem, with the sizes of its arguments.

    Args:
        model: the module, in one graph. It may be on fake tensors, inside of their mode.
        arguments, keywords: what it is called with.
        device: whose prices the ops get; None for those of the device that the graph is on.
        lowering: ``"inductor"`` (ops are joined into kernels) or ``"aot_eager"`` (they are not).
        with_torchs: whether to run torch's own partitioner for its plan, too.
        torch_budgets: values of torch's ``activation_memory_budget``, below 1, to run it under besides.
        dynamic: whether those sizes are symbols to torch, as under ``torch.compile(..., dynamic=True)``.
        repeatable: the backend's option of that name.

    Raises:
        OptionError: an operator of ``repeatable`` is none.
        PlanningError: the model is not one graph, trains nothing, or cannot be traced.
    """
    options = Options.parse({"lowering": lowering, "repeatable": repeatable})
    check_operators(options.repeatable)
    tracer = _Tracer(device, options, [NO_BUDGET] * with_torchs + list(torch_budgets))

    def compile_graph(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        tracer.num_user_outputs = number_of_outputs(gm)
        if lowering == "aot_eager":
            return private.aot_autograd(  # type: ignore[no-any-return]
                fw_compiler=_no_backward, bw_compiler=_no_backward, partition_fn=tracer
            )(gm, example_inputs)
        with private.autograd_cache(False):
            compiled: Any = private.compile_fx(
                gm,
                example_inputs,
                inner_compile=_no_backward,
                config_patches={"custom_partitioner_fn": tracer},
            )
            return compiled  # type: ignore[no-any-return]

    # Sizes that differ from those of an earlier call would become symbols otherwise, and the problem another one.
    compiled = torch.compile(model, backend=compile_graph, fullgraph=True, dynamic=dynamic)
    step: TracedStep | None = None
    try:
        compiled(*arguments, **keywords)
    except _Traced as traced:
        step = traced.step
    except GraphrematError:
        raise
    except Exception as error:
        first = str(error).strip().splitlines()
        raise PlanningError(
            f"the model cannot be traced as one graph: {type(error).__name__}: {first[0] if first else ''}"
        ) from error
    if step is None:
        raise PlanningError("nothing in the model gets a gradient, so there is nothing to plan")
    return step


def _no_backward(*_: Any, **__: Any) -> Any:
    raise _Traced(None)
