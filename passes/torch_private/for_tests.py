"""Inductor's state and its C++ compiler's answers, for tests.

Relied on: `config.patch`, `config._config`.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch

from graphremat.passes.torch_private.compiler import assumed_instructions, forget_compiler


def inductor_config(**changes: Any) -> AbstractContextManager[None]:
    """Inductor's configuration with some entries changed."""
    from torch._inductor import config

    changed: AbstractContextManager[None] = config.patch(changes)
    return changed


def run_and_get_code(run: Callable[[], Any]) -> tuple[Any, list[str]]:
    """What ``run`` returns, and the wrappers that Inductor made meanwhile, in order."""
    from torch._inductor.utils import run_and_get_code as run_and_get

    result, sources = run_and_get(run)
    return result, list(sources)


def inductor_state() -> dict[str, str]:
    """Everything of Inductor and Dynamo that code generation could leave changed, as text."""
    from torch._dynamo.utils import counters
    from torch._inductor import async_compile, config, metrics
    from torch._inductor.virtualized import V

    context = torch._guards.TracingContext.try_get()
    return {
        "config": str({name: getattr(config, name) for name in vars(config)["_config"]}),
        "counters": str({name: dict(counter) for name, counter in counters.items()}),
        "metrics": str(
            {name: value for name, value in vars(metrics).items() if isinstance(value, (int, list))}
        ),
        "graph": str(type(V.graph)),
        "debug": str(type(V.debug)),
        "fake mode": str(id(V.fake_mode)),
        "context": str({name: id(value) for name, value in vars(context).items()})
        if context is not None
        else "",
        "kernels": str(async_compile.CompiledTritonKernels._cache),
    }


def vector_instructions() -> list[str]:
    """The sets of vector instructions that Inductor takes the C++ compiler and the processor to know."""
    from torch._inductor import cpu_vec_isa

    return [str(isa) for isa in cpu_vec_isa.valid_vec_isa_list()]


@contextmanager
def compiler_answering(answer: Callable[[], bool]) -> Iterator[None]:
    """A context in which nobody has asked the compiler yet, and ``answer`` says whether it knows a set of vector
    instructions."""
    from torch._inductor import cpu_vec_isa

    forget_compiler()
    assumed_instructions()
    try:
        with ExitStack() as stack:
            for kind in {type(isa) for isa in cpu_vec_isa.supported_vec_isa_list}:
                stack.enter_context(patch.object(kind, "__bool__", lambda _: answer()))
            yield
    finally:
        forget_compiler()
