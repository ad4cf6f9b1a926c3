"""A plan: what is saved, and the order in which the backward runs, recomputations included. Free of torch."""

import json
from dataclasses import asdict, dataclass

from graphremat.passes.problem import Phase, Problem


@dataclass(frozen=True)
class Plan:
    """Decided, not yet acted on.

    ``forward`` and ``backward`` are indices of ops in the order they run. An op of the forward that stands in
    ``backward`` is recomputed there, and may stand there more than once: readers take the latest result. ``saved``
    are values that are not views; views of them are made again in the backward.
    """

    saved: tuple[int, ...]
    forward: tuple[int, ...]
    backward: tuple[int, ...]
    origin: str = ""
    """Which method made it, in words for a report."""
    written: tuple[int, ...] = ()
    """Ops of the backward whose results are written to memory if another kernel reads them, though a fusing compiler
    would compute them anew in each reader."""

    def recomputed(self, problem: Problem) -> tuple[int, ...]:
        """The occurrences in the backward of ops that have run before, views left out."""
        ran = set(self.forward)
        again: list[int] = []
        for index in self.backward:
            if index in ran and problem.ops[index].writes and problem.ops[index].kind.value != "view":
                again.append(index)
            ran.add(index)
        return tuple(again)

    def to_json(self, problem: Problem) -> str:
        """The plan as JSON text with names for indices, one line an op."""
        names = [op.name for op in problem.ops]
        body = {
            "origin": self.origin,
            "saved": [problem.values[v].name for v in self.saved],
            "recomputed": [names[i] for i in self.recomputed(problem)],
            "written": [names[i] for i in self.written],
            "indices": asdict(self),
        }
        return json.dumps(body, indent=1)

    @staticmethod
    def from_json(text: str) -> "Plan":
        """Read what :meth:`to_json` wrote."""
        body = json.loads(text)["indices"]
        saved, forward, backward = (tuple(body[name]) for name in ("saved", "forward", "backward"))
        return Plan(saved, forward, backward, body["origin"], tuple(body["written"]))


def check_plan(problem: Problem, plan: Plan) -> None:
    """Raise ValueError unless the plan runs every op that must run, and only in places where it may.

    That operands are alive when they are read is checked by the replay.
    """
    phases, ops = problem.table.phases, problem.ops
    ran_forward = set(plan.forward)
    if len(ran_forward) != len(plan.forward):
        raise ValueError("an op stands twice in the forward")
    for index in plan.forward:
        if phases[index] is Phase.BACKWARD:
            raise ValueError(f"backward op {ops[index].name} stands in the forward")
    seen = set(plan.forward)
    for index in plan.backward:
        if index in seen:
            if phases[index] is Phase.BACKWARD:
                raise ValueError(f"backward op {ops[index].name} runs twice")
            if ops[index].keep:
                raise ValueError(f"{ops[index].name} runs twice, but must not: {ops[index].keep}")
        seen.add(index)
    for index, phase in enumerate(phases):
        if phase is Phase.FORWARD and index not in ran_forward:
            raise ValueError(f"forward op {ops[index].name} never runs in the forward")
        if phase is Phase.BACKWARD and index not in seen:
            raise ValueError(f"backward op {ops[index].name} never runs")
    for index in plan.written:
        if phases[index] is not Phase.BACKWARD:
            raise ValueError(f"{ops[index].name} is not of the backward, and cannot be written out there")
    for value in plan.saved:
        producer = problem.values[value].producer
        if producer < 0:
            continue
        if producer not in ran_forward:
            raise ValueError(f"{problem.values[value].name} is saved, but the forward does not compute it")
        if problem.ops[producer].unsavable:
            raise ValueError(
                f"{problem.values[value].name} is saved, but cannot be: {problem.ops[producer].unsavable}"
            )
