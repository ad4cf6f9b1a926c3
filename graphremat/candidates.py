"""Candidates acted on: the graphs of a plan, the code they become, and the bytes that code takes."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.fx as fx

from graphremat.errors import PlanningError
from graphremat.fence import Fence, make_fence, moments_of, standing
from graphremat.lowering import GeneratedCode, generate_step_code, output_names
from graphremat.options import Options
from graphremat.passes import torch_private as private
from graphremat.passes.buffers import keep_buffers, write_out
from graphremat.passes.build import Index
from graphremat.passes.classify import JointGraph
from graphremat.passes.devices import block_bytes
from graphremat.passes.frontier import Candidate
from graphremat.passes.problem import Problem
from graphremat.passes.split import split_joint_graph
from graphremat.truth import StepTruth, dry_run_graphs, replayed_truth, step_truth

log = logging.getLogger("graphremat")


@dataclass(frozen=True, eq=False)
class Lowered:
    """A candidate acted on: its graphs, its fence, and the dry run of what they become."""

    forward: fx.GraphModule
    backward: fx.GraphModule
    fence: Fence | None
    truth: StepTruth
    wrappers: tuple[str, str] | None
    follow: Callable[[], StepTruth]
    """The dry run anew, with the sizes that are assumed now."""
    generated: tuple[private.LoweredGraph | None, private.LoweredGraph | None] = (None, None)
    """What the code of forward and backward was generated from: it can be compiled as it is."""
    reuses_buffers: bool = True
    """Whether the code may hand a buffer that nobody reads any more to the next value of its size."""


@dataclass(eq=False)
class Lowering:
    """Acts on candidates and keeps what came of them."""

    options: Options
    joint: JointGraph
    problem: Problem
    index: Index
    num_user_outputs: int
    torchs: tuple[fx.GraphModule, fx.GraphModule] | None
    on_final_code: Callable[[str], None] = lambda _: None
    """Called with the wrapper of each graph of the first candidate as soon as Inductor has generated it, if it can be
    compiled as it is. The first is nearly always the one that is taken; others are looked at to compare."""
    done: dict[int, Lowered] = field(default_factory=dict)

    def truth(self, place: int, candidate: Candidate, *, reuse_under: float | None = None) -> StepTruth:
        """The dry run of the candidate; the first one is torch's own partition, handed on as torch made it.

        Args:
            place: where the candidate is among all; its lowering is kept under this number.
            candidate: the plan.
            reuse_under: buffers may be reused, as Inductor does it, if the peak is then no higher than this many bytes
                or than without. A buffer that waits to be reused is alive without a use, which adds up to 16% to a
                tight plan's peak; fresh memory for all costs a step 1 to 2% on a CPU. None for no reuse.
        """
        graphs = self._graphs(place, candidate)
        found = self._lower(*graphs, candidate, reuses_buffers=reuse_under is not None)
        if reuse_under is not None and found.truth.peak_bytes > reuse_under:
            fresh = self._lower(*graphs, candidate, reuses_buffers=False)
            found = min(fresh, found, key=lambda lowered: lowered.truth.peak_bytes)
        self.done[place] = found
        return found.truth

    def _graphs(
        self, place: int, candidate: Candidate
    ) -> tuple[fx.GraphModule, fx.GraphModule, Fence | None]:
        if place == 0 and self.torchs is not None:
            return *self.torchs, None
        forward, backward = split_joint_graph(self.joint, self.problem, self.index, candidate.plan)
        if self.options.lowering == "aot_eager":
            return forward, backward, None
        keep_buffers(forward)
        keep_buffers(backward)
        write_out(backward, {self.index.op_node[op].name for op in candidate.plan.written})
        if not self.options.fence or not candidate.plan.recomputed(self.problem):
            return forward, backward, None
        moments = moments_of(backward, self.problem, candidate.plan, candidate.replay)
        return forward, backward, make_fence(backward, self.index.kernels, moments)

    def _lower(
        self,
        forward: fx.GraphModule,
        backward: fx.GraphModule,
        fence: Fence | None,
        candidate: Candidate,
        *,
        reuses_buffers: bool,
    ) -> Lowered:
        """Generate the code of both graphs (Inductor) or take them as they are (``aot_eager``); follow its bytes."""
        if fence is not None:
            fence.refused.clear()
        with private.buffer_reuse(reuses_buffers):
            follow, codes = generate(
                self.options, forward, backward, fence, self.joint.num_forward_outputs, self.num_user_outputs,
                (lambda _: None) if self.done else self.on_final_code,
            )  # fmt: skip
        return Lowered(
            forward,
            backward,
            fence,
            self._followed(follow, candidate),
            (codes[0].source, codes[1].source) if codes else None,
            follow,
            generated=(codes[0].lowered, codes[1].lowered) if codes else (None, None),
            reuses_buffers=reuses_buffers,
        )

    def _followed(self, follow: Callable[[], StepTruth], candidate: Candidate) -> StepTruth:
        """What ``follow`` finds, or the planner's word where the code does something that has no meaning without data:
        training goes on, as it does with plain ``torch.compile``, and the user is told."""
        try:
            return follow()
        except Exception as error:
            reason = str(error) if isinstance(error, PlanningError) else f"{type(error).__name__}: {error}"
            log.warning("the peak is the planner's, since the code could not be followed: %s", reason)
            log.debug("following the code failed", exc_info=error)
            return replayed_truth(self.problem, candidate.replay, reason)


def generate(
    options: Options,
    forward: fx.GraphModule,
    backward: fx.GraphModule,
    fence: Fence | None,
    num_forward_outputs: int,
    num_user_outputs: int,
    on_final_code: Callable[[str], None] = lambda _: None,
) -> tuple[Callable[[], StepTruth], tuple[GeneratedCode, GeneratedCode] | None]:
    """What follows the bytes of the code that two graphs become, and that code where it is generated by Inductor."""
    mutated = private.first_user_output(forward.graph)
    outputs = num_forward_outputs - mutated
    rounding = block_bytes(graph_device(forward).type)
    if options.lowering == "aot_eager":

        def follow_graphs() -> StepTruth:
            return dry_run_graphs(
                forward,
                backward,
                num_user_outputs=outputs,
                num_mutated_inputs=mutated,
                round_to_bytes=rounding,
            )

        return follow_graphs, None
    with standing(fence):
        codes = generate_step_code(
            forward,
            backward,
            user_visible_outputs=num_user_outputs,
            num_forward_outputs=num_forward_outputs,
            fenced=fence is not None,
            on_final_code=on_final_code,
        )

    forward_code, backward_code = (replace(code, lowered=None) for code in codes)

    def follow_code() -> StepTruth:
        return step_truth(
            forward_code.at_assumed_sizes(),
            backward_code.at_assumed_sizes(),
            forward_outputs=output_names(forward),
            num_user_outputs=outputs,
            num_mutated_inputs=mutated,
            round_to_bytes=rounding,
        )

    return follow_code, codes


def graph_device(gm: fx.GraphModule) -> torch.device:
    """The device whose memory counts: the accelerator if any tensor of the graph is on one, else the CPU."""
    # Dynamo has another name for it.
    values = (node.meta.get("val", node.meta.get("example_value")) for node in gm.graph.nodes)
    devices = {value.device for value in values if isinstance(value, torch.Tensor)}
    accelerators = sorted((d for d in devices if d.type not in ("cpu", "meta")), key=str)
    return accelerators[0] if accelerators else torch.device("cpu")
