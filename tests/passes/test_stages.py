"""Where a network is divided: windows that are never empty, and what belongs to which stage."""

import itertools

from hypothesis import given, settings

from graphremat.passes.problem import Builder, Kind, Phase, Problem
from graphremat.passes.stages import find_stages
from tests.passes.problems import problems


def layers(count: int, *, narrow: int) -> Problem:
    """Layers of two kernels with a view between them; the backward reads only what the second one reads.

    ``narrow`` bytes cross into a layer and 100 stand inside it.
    """
    b = Builder()
    x = b.input("x", narrow)
    inner = []
    for layer in range(count):
        wide = b.op(f"wide{layer}", [x], Kind.KERNEL, Phase.FORWARD, size_bytes=100, seconds=1.0)
        seen = b.op(f"view{layer}", [wide], Kind.VIEW, Phase.FORWARD)
        inner.append(seen)
        x = b.op(f"out{layer}", [seen], Kind.KERNEL, Phase.FORWARD, size_bytes=narrow, seconds=1.0)
    gradient = b.tangent("t", narrow)
    for layer in reversed(range(count)):
        reads = [gradient, inner[layer]]
        gradient = b.op(f"grad{layer}", reads, Kind.KERNEL, Phase.BACKWARD, size_bytes=narrow, seconds=1.0)
    return b.build([x], [gradient])


def test_layers_are_stages_though_the_backward_reads_but_what_is_inside() -> None:
    problem = layers(6, narrow=10)
    stages = find_stages(problem)
    assert len(stages) == 6
    names = [[problem.ops[i].name for i, s in enumerate(stages.stage_of) if s == stage] for stage in range(6)]
    assert all(f"out{k}" in found for k, found in enumerate(names))
    assert all(stop > start for start, stop in stages.windows)


def test_a_view_belongs_to_the_stage_of_what_it_shows() -> None:
    b = Builder()
    x = b.input("x", 10)
    made = []
    for layer in range(4):
        x = b.op(f"layer{layer}", [x], Kind.KERNEL, Phase.FORWARD, size_bytes=10, seconds=1.0)
        made.append(x)
    # All views stand at the end of the forward, where a trace may put them.
    seen = [b.op(f"view{layer}", [made[layer]], Kind.VIEW, Phase.FORWARD) for layer in range(4)]
    gradient = b.tangent("t", 10)
    for layer in reversed(range(4)):
        reads = [gradient, seen[layer]]
        gradient = b.op(f"grad{layer}", reads, Kind.KERNEL, Phase.BACKWARD, size_bytes=10, seconds=1.0)
    problem = b.build([x], [gradient])
    stages = find_stages(problem)
    for view, base in zip(seen, made, strict=True):
        view_op, base_op = problem.values[view].producer, problem.values[base].producer
        assert stages.stage_of[view_op] == stages.stage_of[base_op]


@settings(deadline=None, max_examples=100)
@given(problems(longest=12))
def test_every_division_is_sound(problem: Problem) -> None:
    stages = find_stages(problem)
    assert stages.starts[0] == 0
    assert list(stages.starts) == sorted(set(stages.starts))
    assert stages.windows[0][1] == len(stages.backward)
    assert stages.windows[-1][0] == 0
    assert all(earlier[0] == later[1] for earlier, later in itertools.pairwise(stages.windows))
    if len(stages) > 1:
        assert all(stop > start for start, stop in stages.windows[1:])
    assert all(not problem.ops[problem.values[v].producer].unsavable for c in stages.crossing[1:] for v in c)
