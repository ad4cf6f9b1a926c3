"""Random problems for property tests: chains with skips, views, several results, unsavable and unrepeatable ops."""

from hypothesis import strategies as st

from graphremat.passes.problem import Builder, Kind, Op, Phase, Problem

SIZES = (0, 1, 3, 8, 20)
SCRATCH = (0, 0, 0, 2)
SECONDS = (0.0, 0.5, 1.0, 4.0)


@st.composite
def problems(draw: st.DrawFn, *, longest: int = 8, fuses: bool | None = None, plain: bool = False) -> Problem:
    """A problem of at most ``longest`` forward ops; ``plain`` leaves out views, bans and several results."""
    builder = Builder(fuses=draw(st.booleans()) if fuses is None else fuses)
    values = [builder.input("x", draw(st.sampled_from(SIZES)))]
    forward: list[int] = []
    length = draw(st.integers(1, longest))
    for number in range(length):
        reads = draw(st.lists(st.sampled_from(values[-4:]), min_size=1, max_size=2, unique=True))
        kind = draw(
            st.sampled_from([Kind.KERNEL, Kind.FUSIBLE, Kind.REDUCTION, *([] if plain else [Kind.VIEW])])
        )
        several = not plain and kind is Kind.KERNEL and draw(st.integers(0, 5)) == 0
        ban = draw(st.integers(0, 9)) if not plain and kind is not Kind.VIEW else 9
        seconds = 0.0 if kind is Kind.VIEW else draw(st.sampled_from(SECONDS))
        fused = seconds / 2 if kind is Kind.FUSIBLE else seconds
        if several:
            storages = [
                builder.storage(f"f{number}.{part}", draw(st.sampled_from(SIZES))) for part in range(2)
            ]
            made = [builder.value(f"f{number}.{part}", s) for part, s in enumerate(storages)]
            builder.add(
                Op(
                    f"f{number}",
                    "pair",
                    tuple(reads),
                    tuple(made),
                    kind,
                    Phase.FORWARD,
                    seconds,
                    fused,
                    scratch_bytes=draw(st.sampled_from(SCRATCH)),
                )
            )
        else:
            made = [
                builder.op(
                    f"f{number}", reads, kind, Phase.FORWARD, size_bytes=draw(st.sampled_from(SIZES)),
                    seconds=seconds, fused_seconds=fused, keep="random" if ban == 0 else "",
                    unsavable="marked" if ban == 1 else "",
                    scratch_bytes=draw(st.sampled_from(SCRATCH)) if kind is Kind.KERNEL else 0,
                )
            ]  # fmt: skip
        values.extend(made)
        forward.extend(made)
    gradient = builder.tangent("tangent", draw(st.sampled_from(SIZES)))
    gradients: list[int] = []
    for number, value in enumerate(reversed(forward)):
        if draw(st.integers(0, 3)) == 0:
            continue
        extra = draw(st.lists(st.sampled_from(values), max_size=1))
        gradient = builder.op(
            f"b{number}", dict.fromkeys([gradient, value, *extra]), draw(st.sampled_from([Kind.KERNEL, Kind.FUSIBLE])),
            Phase.BACKWARD, size_bytes=draw(st.sampled_from(SIZES)), seconds=1.0, fused_seconds=0.5,
            scratch_bytes=draw(st.sampled_from(SCRATCH)),
        )  # fmt: skip
        gradients.append(gradient)
    if not gradients:
        gradients.append(builder.op("b", [gradient], Kind.KERNEL, Phase.BACKWARD, size_bytes=1, seconds=1.0))
    outputs = (
        [forward[-1]]
        if draw(st.booleans())
        else list(dict.fromkeys(draw(st.lists(st.sampled_from(forward), min_size=1, max_size=2))))
    )
    return builder.build(
        outputs, list(dict.fromkeys([gradients[-1], *draw(st.lists(st.sampled_from(gradients), max_size=2))]))
    )
