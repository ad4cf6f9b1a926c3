"""Random rematerialization problems, for judging planners against the exact solver.

Four shapes (chains, chains with skips, trees, random graphs) with sizes and seconds drawn from a wide range, views,
ops that cost nothing, ops that must not run again, and values that cannot be saved. The same seed gives the same
problem on every machine.
"""

import random

from graphremat.passes.problem import Builder, Kind, Phase, Problem

SHAPES = ("chain", "skips", "tree", "random")


def random_problem(seed: int, *, least: int = 4, most: int = 10) -> Problem:
    """A problem of ``least`` to ``most`` forward ops (views come on top), without fusion."""
    rng = random.Random(seed)
    shape = SHAPES[seed % len(SHAPES)]
    length = rng.randint(least, most)
    builder = Builder(fuses=False)
    source = builder.input("x", rng.choice((0, 10, 100)))
    values: list[int] = []
    readers = [0] * length
    for number in range(length):
        operands = [values[i] for i in _operands(shape, number, rng)] or [source]
        if rng.random() < 0.15:
            operands[0] = builder.op(f"view{number}", operands[:1], Kind.VIEW, Phase.FORWARD)
        for operand in operands:
            if operand in values:
                readers[values.index(operand)] += 1
        ban = rng.random()
        values.append(
            builder.op(
                f"op{number}",
                dict.fromkeys(operands),
                Kind.KERNEL,
                Phase.FORWARD,
                size_bytes=rng.choice((0, 10, 20, 50, 100, 100, 200, 400)),
                seconds=rng.choice((0.0, 0.5, 1.0, 1.0, 2.0, 5.0)),
                keep="drawn at random" if ban < 0.05 else "",
                unsavable="a stand-in for what only a kernel holds" if 0.05 <= ban < 0.1 else "",
            )
        )
    gradient = builder.tangent("tangent", 10)
    gradients: list[int] = []
    for number in reversed(range(length)):
        needed = [v for v in (values[number], values[max(0, number - 1)]) if rng.random() < 0.7]
        if rng.random() < 0.15:
            needed.append(rng.choice(values))
        size_bytes = rng.choice((10, 50, 100))
        gradient = builder.op(
            f"grad{number}",
            dict.fromkeys([gradient, *needed]),
            Kind.KERNEL,
            Phase.BACKWARD,
            size_bytes=size_bytes,
            seconds=rng.choice((1.0, 2.0)),
        )
        if rng.random() < 0.3:
            gradients.append(
                builder.op(
                    f"weight{number}",
                    [gradient, values[number]],
                    Kind.KERNEL,
                    Phase.BACKWARD,
                    size_bytes=rng.choice((10, 50)),
                    seconds=1.0,
                )
            )
    outputs = [values[-1]] + [
        v for v, read in zip(values[:-1], readers[:-1], strict=True) if not read and rng.random() < 0.3
    ]
    return builder.build(outputs, [gradient, *gradients])


def _operands(shape: str, number: int, rng: random.Random) -> list[int]:
    """Which earlier ops the op of this number reads; none for the input."""
    if number == 0:
        return []
    if shape == "chain":
        return [number - 1]
    if shape == "tree":
        return [(number - 1) // 2] if rng.random() < 0.7 else [number - 1]
    if shape == "skips":
        far = rng.randrange(number)
        return [number - 1] if far == number - 1 or rng.random() < 0.6 else [number - 1, far]
    return sorted(rng.sample(range(number), min(number, rng.randint(1, 2))))
