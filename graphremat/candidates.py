"""Candidates acted on: the graphs of a plan, the code they become, and the bytes that code takes."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.fx as fx

from graphremat.errors import PlanningError
from graphremat.fence import Fence, make_fence, standing
from graphremat.lowering import generate_step_code, output_names
from graphremat.options import Options
from graphremat.passes import torch_private as private
from graphremat.passes.build import Index
from graphremat.passes.classify import JointGraph
from graphremat.passes.planner import Candidate
from graphremat.passes.problem import Problem
from graphremat.passes.split import recomputed_names, split_joint_graph
from graphremat.truth import StepTruth, dry_run_graphs, replayed_truth, step_truth

log = logging.getLogger("graphremat")

ROUNDING_BYTES = {"cuda": 512}
"""Granularity of the allocator by device: CUDA's caching allocator hands out blocks of 512 bytes."""


@dataclass(frozen=True, eq=False)
class Lowered:
    """A candidate acted on: its graphs, its fence, and the dry run of what they become."""

    forward: fx.GraphModule
    backward: fx.GraphModule
    fence: Fence | None
    truth: StepTruth
    wrappers: tuple[str, str] | None


@dataclass(eq=False)
class Lowering:
    """Acts on candidates and keeps what came of them."""

    options: Options
    joint: JointGraph
    problem: Problem
    index: Index
    num_user_outputs: int
    torchs: tuple[fx.GraphModule, fx.GraphModule] | None
    done: dict[int, Lowered] = field(default_factory=dict)

    def truth(self, place: int, candidate: Candidate) -> StepTruth:
        """The dry run of the candidate; the first one is torch's own partition, handed on as torch made it."""
        fence = None
        if place == 0 and self.torchs is not None:
            forward, backward = self.torchs
        else:
            forward, backward = split_joint_graph(self.joint, self.problem, self.index, candidate.plan)
            again = recomputed_names(self.problem, self.index, candidate.plan)
            fence = make_fence(backward, again, self.index.kernels) if self.options.fence else None
        self.done[place] = self._lower(forward, backward, fence, candidate)
        return self.done[place].truth

    def _lower(
        self, forward: fx.GraphModule, backward: fx.GraphModule, fence: Fence | None, candidate: Candidate
    ) -> Lowered:
        """Generate the code of both graphs (Inductor) or take them as they are (``aot_eager``); follow its bytes."""
        mutated = private.first_user_output(forward.graph)
        outputs = self.joint.num_forward_outputs - mutated
        rounding = ROUNDING_BYTES.get(graph_device(forward).type, 1)
        if self.options.lowering == "aot_eager":

            def follow() -> StepTruth:
                return dry_run_graphs(
                    forward,
                    backward,
                    num_user_outputs=outputs,
                    num_mutated_inputs=mutated,
                    round_to_bytes=rounding,
                )

            return Lowered(forward, backward, None, self._followed(follow, candidate), None)
        with standing(fence):
            codes = generate_step_code(
                forward,
                backward,
                user_visible_outputs=self.num_user_outputs,
                num_forward_outputs=self.joint.num_forward_outputs,
            )

        def follow_code() -> StepTruth:
            return step_truth(
                *codes,
                forward_outputs=output_names(forward),
                num_user_outputs=outputs,
                num_mutated_inputs=mutated,
                round_to_bytes=rounding,
            )

        sources = codes[0].source, codes[1].source
        return Lowered(forward, backward, fence, self._followed(follow_code, candidate), sources)

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


def graph_device(gm: fx.GraphModule) -> torch.device:
    """The device whose memory counts: the accelerator if any tensor of the graph is on one, else the CPU."""
    devices = {
        node.meta["val"].device for node in gm.graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)
    }
    accelerators = sorted((d for d in devices if d.type not in ("cpu", "meta")), key=str)
    return accelerators[0] if accelerators else torch.device("cpu")
