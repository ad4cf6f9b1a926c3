import dataclasses

import pytest
from hypothesis import given

from graphremat.passes.problem import Builder, Holder, Kind, Op, Phase, Problem, check_problem
from graphremat.passes.testing import chain
from tests.passes.problems import problems


@given(problems())
def test_json_round_trip(problem: Problem) -> None:
    assert Problem.from_json(problem.to_json()) == problem


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": 0}'])
def test_json_of_another_format_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a problem of format"):
        Problem.from_json(text)


def test_storages_are_whole_blocks_of_the_devices_allocator_whatever_the_size() -> None:
    b = Builder(block_bytes=512)
    x = b.value("x", b.storage("x", 80, Holder.CALLER, "10*s0"))
    h = b.op("h", [x], Kind.KERNEL, Phase.FORWARD, size_bytes=513)
    g = b.op("g", [b.tangent("t", 0), h], Kind.KERNEL, Phase.BACKWARD, size_bytes=512)
    problem = b.build([h], [g])
    assert [s.size_bytes for s in problem.storages] == [512, 1024, 0, 512]
    again = Problem.from_json(problem.to_json())
    assert again == problem
    assert [s.size_bytes for s in again.at_sizes({"s0": 60}).storages] == [1024, 1024, 0, 512]


def test_base_looks_through_views() -> None:
    b = Builder()
    x = b.input("x", 4)
    h = b.op("h", [x], Kind.KERNEL, Phase.FORWARD, size_bytes=8)
    v = b.op("v", [h], Kind.VIEW, Phase.FORWARD)
    w = b.op("w", [v], Kind.VIEW, Phase.FORWARD)
    t = b.tangent("t", 1)
    g = b.op("g", [t, w], Kind.KERNEL, Phase.BACKWARD, size_bytes=1)
    problem = b.build([w], [g])
    assert problem.base[w] == problem.base[v] == h
    assert problem.readers[w] == (3,)


BROKEN = {
    "negative size": (
        lambda p: dataclasses.replace(
            p, storages=(dataclasses.replace(p.storages[0], size_bytes=-1), *p.storages[1:])
        ),
        "negative size",
    ),
    "operand from nowhere": (
        lambda p: dataclasses.replace(p, ops=p.ops[1:]),
        "which nothing before it writes|does not name",
    ),
    "negative seconds": (
        lambda p: dataclasses.replace(p, ops=(dataclasses.replace(p.ops[0], seconds=-1.0), *p.ops[1:])),
        "negative seconds",
    ),
    "forward reads backward": (
        lambda p: dataclasses.replace(
            p, ops=(dataclasses.replace(p.ops[0], phase=Phase.BACKWARD), *p.ops[1:])
        ),
        "reads the backward value|reads value",
    ),
    "output never written": (lambda p: dataclasses.replace(p, ops=p.ops[:-1]), "never written|producer"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_problem_is_refused(fault: str) -> None:
    broken, message = BROKEN[fault]
    with pytest.raises(ValueError, match=message):
        check_problem(broken(chain(3)))


def test_a_value_written_twice_is_refused() -> None:
    b = Builder()
    x = b.input("x", 1)
    h = b.op("h", [x], Kind.KERNEL, Phase.FORWARD, size_bytes=1)
    b.add(Op("again", "again", (x,), (h,), Kind.KERNEL, Phase.FORWARD))
    with pytest.raises(ValueError, match="producer|written twice"):
        b.build([h], [])
