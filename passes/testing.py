"""Small problems for examples and tests. Free of torch."""

from graphremat.passes.problem import Builder, Kind, Phase, Problem


def chain(
    length: int,
    *,
    size_bytes: int = 100,
    seconds: float = 1.0,
    gradient_bytes: int = 0,
    internal: int = 0,
) -> Problem:
    """A chain of equal layers: each reads the one before, and its backward reads its input.

    Args:
        length: number of layers.
        size_bytes: bytes of each layer's output, and of its gradient.
        seconds: of each layer's forward, and of its backward.
        gradient_bytes: bytes of each layer's weight gradient, alive to the end.
        internal: extra values inside each layer that its backward reads, ``size_bytes`` each.

    >>> len(chain(3).ops)
    6
    """
    builder = Builder()
    x = builder.input("x", size_bytes)
    inputs: list[list[int]] = []
    for layer in range(length):
        kept = [x]
        for part in range(internal):
            x = builder.op(
                f"inner{layer}_{part}",
                [x],
                Kind.KERNEL,
                Phase.FORWARD,
                size_bytes=size_bytes,
                seconds=seconds,
            )
            kept.append(x)
        inputs.append(kept)
        x = builder.op(
            f"layer{layer}", [x], Kind.KERNEL, Phase.FORWARD, size_bytes=size_bytes, seconds=seconds
        )
    gradient = builder.tangent("tangent", size_bytes)
    gradients: list[int] = []
    for layer in reversed(range(length)):
        for part in reversed(range(internal + 1)):
            reads = [gradient, inputs[layer][part]]
            name = f"grad{layer}_{part}"
            if gradient_bytes and part == internal:
                gradients.append(
                    builder.op(
                        f"weight{layer}",
                        reads,
                        Kind.KERNEL,
                        Phase.BACKWARD,
                        size_bytes=gradient_bytes,
                        seconds=seconds,
                    )
                )
            gradient = builder.op(
                name, reads, Kind.KERNEL, Phase.BACKWARD, size_bytes=size_bytes, seconds=seconds
            )
    return builder.build([x], [gradient, *gradients])
