"""Plans under Inductor whose code is generated and followed, but compiled to nothing: peaks without a compiler."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx, nn

import graphremat
from graphremat.backend import graphremat as backend
from graphremat.passes import torch_private as private
from graphremat.report import Report


@contextmanager
def uncompiled(
    graphs: list[fx.GraphModule] | None = None, called: list[tuple[Any, ...]] | None = None
) -> Iterator[None]:
    """In this block graphs run node by node where Inductor's kernels would run.

    They are added to ``graphs``, and what they are called with to ``called``.
    """

    def run_by_node(graph: fx.GraphModule, *_: Any, **__: Any) -> Callable[..., Any]:
        if graphs is not None:
            graphs.append(graph)

        def run(arguments: list[Any]) -> Any:
            if called is not None:
                called.append(tuple(arguments))
            return fx.Interpreter(graph).boxed_run(arguments)  # type: ignore[no-untyped-call]

        return private.boxed(run)  # type: ignore[no-any-return]

    with mock.patch.object(private, "compile_fx_inner", run_by_node), private.autograd_cache(False):
        yield


def planned(model: nn.Module, inputs: tuple[Tensor, ...], **options: object) -> Report:
    """The report of a model's graph, whose forward runs once."""
    torch.compiler.reset()
    with uncompiled():
        torch.compile(model, backend=backend, options={"on_failure": "error", **options})(*inputs)
    return graphremat.last_report()
