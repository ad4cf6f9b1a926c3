"""The exact peak of a step, by running what will run on tensors without data and following every storage.

Inductor's generated wrappers are executed as they are (:mod:`graphremat.dry_wrapper`), with kernels that do nothing and
tensors on the ``meta`` device, so each allocation, reuse and ``del`` happens where it will happen. For a step that is
not lowered, the two FX graphs are walked op by op instead (:mod:`graphremat.dry_graph`), each value freed after its
last use.

What of torch it relies on: AOTAutograd hands the backward its saved tensors and tangents in a list that it keeps no
copy of.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from graphremat.dry_graph import GraphProgram
from graphremat.dry_storages import Phase, StorageLog, described_placeholders, materialize
from graphremat.dry_wrapper import WrapperProgram
from graphremat.errors import PlanningError
from graphremat.lowering import GeneratedCode, SymbolSpec, TensorSpec, output_names
from graphremat.passes.problem import Problem
from graphremat.passes.replay import Replay
from graphremat.passes.torch_private import disable_current_modes


@dataclass(frozen=True)
class StepTruth:
    """What one forward and backward keep alive, in bytes of the device.

    Attributes:
        peak_bytes: the most that is alive at once, inputs included.
        input_bytes: parameters, buffers and batch, alive for the whole step; views of one storage count once.
        forward_peak_bytes, backward_peak_bytes: the same of each half.
        saved_bytes: alive between the halves, and neither an input nor an output for the user.
        gradient_bytes: what the backward returns and was not alive before it.
        peak_at: "phase:name" of the kernel, call or allocation where the peak is reached first.
        alive_at_peak: (name, bytes) of what is alive there, largest first.
        curve: (label, bytes alive after it) of every allocation, free, kernel and call.
        forward_kernels, backward_kernels: kernels and calls in the order in which they run.
        unfollowed: why the code could not be followed without data; the bytes are then those of the planner's replay,
            and there is no curve. Empty where the bytes are those of the code.
    """

    peak_bytes: int
    input_bytes: int
    forward_peak_bytes: int
    backward_peak_bytes: int
    saved_bytes: int
    gradient_bytes: int
    peak_at: str
    alive_at_peak: tuple[tuple[str, int], ...]
    curve: tuple[tuple[str, int], ...]
    forward_kernels: tuple[str, ...]
    backward_kernels: tuple[str, ...]
    unfollowed: str = ""


def replayed_truth(problem: Problem, run: Replay, unfollowed: str) -> StepTruth:
    """What the planner's replay says, for code that cannot be followed."""
    phases = run.curve[: run.forward_length], run.curve[run.forward_length :]
    forward, backward = (int(part.max()) if len(part) else problem.input_bytes for part in phases)
    return StepTruth(
        peak_bytes=run.peak_bytes,
        input_bytes=problem.input_bytes,
        forward_peak_bytes=forward,
        backward_peak_bytes=backward,
        saved_bytes=run.saved_bytes,
        gradient_bytes=problem.gradient_bytes,
        peak_at=f"{run.peak_phase.value}:op {run.peak_position} of the plan",
        alive_at_peak=tuple(run.alive_at(problem, run.peak_position)),
        curve=(),
        forward_kernels=(),
        backward_kernels=(),
        unfollowed=unfollowed,
    )


def step_truth(
    forward: GeneratedCode,
    backward: GeneratedCode,
    *,
    forward_outputs: Sequence[str | None],
    num_user_outputs: int,
    num_mutated_inputs: int = 0,
    tangents_held: bool = False,
    round_to_bytes: int = 1,
) -> StepTruth:
    """Follow the storages of both generated wrappers, forward and then backward.

    Args:
        forward, backward: as :func:`graphremat.lowering.generate_step_code` gives them.
        forward_outputs: the name of each forward output's node, None for none. Where the backward has a placeholder of
            that name it receives that very output; every other placeholder is a tangent, and is allocated when the
            backward starts.
        num_user_outputs: how many outputs, after the mutated inputs, the caller holds until the backward is over.
        num_mutated_inputs: how many outputs come first that are copied into inputs and dropped when the forward ends.
        tangents_held: whether the caller keeps all tangents alive through the backward; otherwise only those of scalars
            are, and the backward frees the others after their last use.
        round_to_bytes: what a device's allocator rounds the size of every storage up to.

    Raises:
        PlanningError: a wrapper does something that can't be followed without data.
    """
    found: list[StepTruth] = []
    for branch in (True, False):
        log = StorageLog(round_to_bytes, _counted_device((*forward.inputs, *backward.inputs)), branch)
        programs = WrapperProgram(forward, log), WrapperProgram(backward, log)
        found.append(
            _run_step(log, *programs, forward_outputs, num_user_outputs, num_mutated_inputs, tangents_held)
        )
        if not log.asked:
            break
    return max(found, key=lambda truth: truth.peak_bytes)


def dry_run_graphs(
    forward: fx.GraphModule,
    backward: fx.GraphModule,
    *,
    num_user_outputs: int,
    num_mutated_inputs: int = 0,
    tangents_held: bool = False,
    round_to_bytes: int = 1,
) -> StepTruth:
    """Follow the storages of the two graphs run op by op, as ``lowering="aot_eager"`` runs them.

    The arguments and errors are those of :func:`step_truth`. Neither graph is changed.
    """
    forward_inputs = described_placeholders(forward)
    backward_inputs = described_placeholders(backward)
    log = StorageLog(round_to_bytes, _counted_device((*forward_inputs, *backward_inputs)))
    forward_program = GraphProgram(forward, forward_inputs, log)
    backward_program = GraphProgram(backward, backward_inputs, log)
    names = output_names(forward)
    return _run_step(
        log, forward_program, backward_program, names, num_user_outputs, num_mutated_inputs, tangents_held
    )


def _run_step(
    log: StorageLog,
    forward: WrapperProgram | GraphProgram,
    backward: WrapperProgram | GraphProgram,
    forward_outputs: Sequence[str | None],
    num_user_outputs: int,
    num_mutated_inputs: int,
    tangents_held: bool,
) -> StepTruth:
    with disable_current_modes(), torch.no_grad():
        inputs = materialize(forward.inputs, log)
        held = [*inputs, *forward.hold_constants(), *backward.hold_constants()]
        input_bytes = log.alive_bytes

        log.phase = "forward"
        outputs = forward.run(list(inputs))
        if len(outputs) != len(forward_outputs):
            raise PlanningError(
                f"the forward returned {len(outputs)} values, but {len(forward_outputs)} outputs were named"
            )
        del outputs[:num_mutated_inputs]
        held += outputs[:num_user_outputs]
        wanted = {spec.name for spec in backward.inputs}
        names = forward_outputs[num_mutated_inputs:]
        passed = {name: outputs[index] for index, name in enumerate(names) if name in wanted}
        outputs.clear()
        saved_bytes = log.bytes_of(passed.values(), without=log.serials_of(held))

        log.phase = "backward"
        tangents = materialize([spec for spec in backward.inputs if spec.name not in passed], log)
        # backward() itself holds on to the tangent of the loss that it is called on; others die with their last use.
        held += [tangent for tangent in tangents if tangents_held or _is_scalar(tangent)]
        before = log.serials_of([*passed.values(), *tangents, *held])
        tangents.reverse()
        arguments = [passed[spec.name] if spec.name in passed else tangents.pop() for spec in backward.inputs]
        passed.clear()
        gradients = backward.run(arguments)
        gradient_bytes = log.bytes_of(gradients, without=before)
        log.recording = False
    return _summary(log, input_bytes=input_bytes, saved_bytes=saved_bytes, gradient_bytes=gradient_bytes)


def _summary(log: StorageLog, *, input_bytes: int, saved_bytes: int, gradient_bytes: int) -> StepTruth:
    curve: list[tuple[str, int]] = []
    peaks: dict[Phase, int] = {"inputs": 0, "forward": 0, "backward": 0}
    alive_bytes = 0
    for phase, label, change, _ in log.events:
        alive_bytes += change
        curve.append((f"{phase}:{label}", alive_bytes))
        peaks[phase] = max(peaks[phase], alive_bytes)
    peak_bytes = max(peaks.values())
    first = next((index for index, (_, size) in enumerate(curve) if size == peak_bytes), 0)
    # A buffer is allocated just before the kernel that fills it: the kernel is the better name for the moment.
    at = first
    while at + 1 < len(curve) and curve[at + 1][1] == peak_bytes and log.events[at][3] >= 0:
        at += 1
    alive: dict[int, tuple[str, int]] = {}
    for _, label, change, serial in log.events[: first + 1]:
        if serial == -2:
            del alive[-1]
        elif serial in alive:
            del alive[serial]
        elif change:
            alive[serial] = (label if serial != -1 else f"inside {label}", change)
    return StepTruth(
        peak_bytes=peak_bytes,
        input_bytes=input_bytes,
        forward_peak_bytes=peaks["forward"] or input_bytes,
        backward_peak_bytes=peaks["backward"],
        saved_bytes=saved_bytes,
        gradient_bytes=gradient_bytes,
        peak_at=curve[at][0] if curve else "inputs",
        alive_at_peak=tuple(sorted(alive.values(), key=lambda holder: -holder[1])),
        curve=tuple(curve),
        forward_kernels=_called_in(log, "forward"),
        backward_kernels=_called_in(log, "backward"),
    )


def _called_in(log: StorageLog, wanted: Phase) -> tuple[str, ...]:
    return tuple(label for phase, label, _, serial in log.events if phase == wanted and serial == -1)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() == 0


def _counted_device(specs: Iterable[TensorSpec | SymbolSpec]) -> str:
    """The accelerator if an input lies on one, else the CPU: bytes elsewhere are not the device's."""
    types = {spec.device.type for spec in specs if isinstance(spec, TensorSpec)}
    return min(types - {"cpu", "meta"}, default="cpu")
