"""The peak of a plan as a formula over symbolic sizes, so that it can be evaluated for any shape. Free of torch.

Lifetimes follow from the order of the ops alone, so what is alive at a moment is a sum of the sizes alive then: the
curve is linear in the sizes. One replay for each distinct size, with everything else empty, gives its coefficients; the
peak is the largest of the moments that no other one exceeds term by term.

    >>> from graphremat.passes.plan import Plan
    >>> from graphremat.passes.problem import Builder, Holder, Kind, Op, Phase
    >>> b = Builder()
    >>> x = b.value("x", b.storage("x", 80, Holder.CALLER, "10*s0"))
    >>> h, y = (b.value(n, b.storage(n, size, size=text)) for n, size, text in (("h", 32, "4*s0"), ("y", 4, "")))
    >>> t = b.tangent("t", 4)
    >>> g = b.value("g", b.storage("g", 80, size="10*s0"))
    >>> for name, reads, write in (("f", (x,), h), ("l", (h,), y), ("b", (t, h), g)):
    ...     phase = Phase.BACKWARD if name == "b" else Phase.FORWARD
    ...     _ = b.add(Op(name, name, reads, (write,), Kind.KERNEL, phase, 1.0, 0.0))
    >>> problem = b.build([y], [g])
    >>> plan = Plan((h,), (0, 1), (2,))
    >>> peak_formula(problem, plan)
    '24*s0 + 8'
    >>> evaluate(peak_formula(problem, plan), {"s0": 100})
    2408
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import sympy

from graphremat.passes.plan import Plan
from graphremat.passes.problem import Problem
from graphremat.passes.replay import replay
from graphremat.passes.sizes import evaluate


def peak_formula(problem: Problem, plan: Plan) -> str:
    """The most bytes alive during ``plan``, as :func:`graphremat.passes.sizes.evaluate` reads it.

    It is exact but for two things: a kernel that may write over an operand of the same size is seen to do so where the
    sizes are the same by their formulas, and not where they happen to be for some numbers. A device's blocks are left
    out where sizes are symbolic, and counted where they are fixed.
    """
    names = {name: sympy.Symbol(name, integer=True, nonnegative=True) for name in problem.symbols}
    texts = list(dict.fromkeys(s.size for s in problem.storages if s.size))
    terms = [_terms(sympy.Integer(1)), *(_terms(evaluate(text, names)) for text in texts)]
    columns = np.stack([_curve_of(problem, plan, text) for text in ("", *texts)])
    monomials = list(dict.fromkeys(m for term in terms for m in term))
    weights = np.array([[int(term.get(m, 0)) for m in monomials] for term in terms], dtype=np.int64)
    moments = _undominated(columns.T @ weights)
    peaks = [
        sympy.Add(*(int(k) * m for k, m in zip(row, monomials, strict=True))) for row in moments.tolist()
    ]
    return str(peaks[0]) if len(peaks) == 1 else f"max({', '.join(map(str, peaks))})"


def _terms(size: sympy.Expr) -> dict[sympy.Expr, int]:
    """Products of symbols and how often each is in the sum; one with fractions stays as it is."""
    found = sympy.expand(size).as_coefficients_dict()
    return {m: int(k) for m, k in found.items()} if all(k.is_Integer for k in found.values()) else {size: 1}


def _curve_of(problem: Problem, plan: Plan, text: str) -> npt.NDArray[np.int64]:
    """How often the size ``text`` is alive at every moment; of the fixed sizes, "", the bytes."""
    storages = (
        replace(s, size_bytes=(s.size_bytes if not text else 1) if s.size == text else 0, size="")
        for s in problem.storages
    )
    return replay(replace(problem, storages=tuple(storages)), plan).curve


def _undominated(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Rows that no other row is at least as large as in every column (all that they stand for is positive)."""
    rows = np.unique(rows, axis=0)
    rows = rows[np.argsort(-rows.sum(axis=1), kind="stable")]
    kept: list[npt.NDArray[np.int64]] = []
    for row in rows:
        if not any(bool((other >= row).all()) for other in kept):
            kept.append(row)
    return np.array(kept)
