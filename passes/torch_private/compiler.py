"""The C++ compiler of Inductor: asked and put to work before Inductor comes to it, and forgotten.

Relied on, besides what is said at each function: `valid_vec_isa_list` and `cpp_compiler_search` are cached functions.
"""

import ast
import contextvars
import copy
import logging
import threading
from concurrent.futures import Future
from contextlib import ExitStack
from functools import cache
from typing import Any
from unittest.mock import patch

log = logging.getLogger("graphremat")

NO_KERNEL = 'extern "C" void kernel() {}'
"""What is handed to Inductor for the questions that it asks before it compiles anything."""


def start_asking_compiler() -> None:
    """Have Inductor ask the C++ compiler in a thread, once a process, and come back at once: which vector instructions
    it and the processor know, and for a precompiled header.

    That takes seconds in every process, also where all is cached on disk, since programs that import torch are run for
    it. What asks meanwhile should :func:`wait_for_compiler`, else it runs them again.

    Relied on: ``load_pybinding_async`` asks all that before it hands a kernel to ``submit_fn``. Inductor's
    configuration is of a context, which a thread does not share.
    """
    _asking_compiler()


def wait_for_compiler() -> None:
    """Come back when what :func:`start_asking_compiler` has started is over."""
    if _asking_compiler.cache_info().currsize:
        _asking_compiler().join()


@cache
def _asking_compiler() -> threading.Thread:
    from torch._inductor.codecache import CppPythonBindingsCodeCache

    assumed_instructions()  # while nobody asks

    def ask() -> None:
        try:
            CppPythonBindingsCodeCache.load_pybinding_async([], NO_KERNEL, submit_fn=lambda _: Future())
        except Exception as error:  # Inductor meets it again, and says so
            log.debug("the compiler cannot be asked ahead", exc_info=error)

    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(ask,), name="asking the compiler", daemon=True)
    thread.start()
    return thread


@cache
def assumed_instructions() -> list[Any]:
    """The sets of vector instructions that the processor knows, in Inductor's form, as if the compiler knew them too.

    Relied on: ``valid_vec_isa_list`` takes the truth of those that the processor knows, and so does who uses them; the
    truth of a set is found by asking the compiler and belongs to its class.
    """
    from torch._inductor import cpu_vec_isa

    def sure(isa: Any) -> Any:
        copied = copy.copy(isa)
        kind = type(isa)
        copied.__class__ = type(kind.__name__, (kind,), {"__bool__": lambda _: True})
        return copied

    kinds = {type(isa) for isa in cpu_vec_isa.supported_vec_isa_list}
    with ExitStack() as stack:
        for kind in kinds:
            stack.enter_context(patch.object(kind, "__bool__", lambda _: True))
        known = cpu_vec_isa.valid_vec_isa_list.__wrapped__()
    return [sure(isa) for isa in known]


def start_compiling(wrapper: str) -> None:
    """Hand the CPU kernels of a wrapper to Inductor's compile threads and come back at once.

    Whoever compiles the wrapper afterwards waits for these threads instead of starting its own. What goes wrong here
    goes wrong there again, where it is reported. Nothing is started where Inductor has one thread only, or is to use
    no cache: it would compile every kernel once more.

    Relied on: a wrapper defines such a kernel by ``name = async_compile.cpp_pybinding(argument types, source)``, all
    literals, and ``CppPythonBindingsCodeCache`` keeps what it has started under a key that these two make up.
    """
    from torch._inductor import config
    from torch._inductor.async_compile import AsyncCompile, get_compile_threads
    from torch._inductor.codecache import CppPythonBindingsCodeCache

    if get_compile_threads() <= 1 or config.force_disable_caches:
        return
    wait_for_compiler()
    try:
        for node in ast.parse(wrapper).body:
            match node:
                case ast.Assign(value=ast.Call(func=ast.Attribute(attr="cpp_pybinding"), args=arguments)):
                    types, source = map(ast.literal_eval, arguments)
                    CppPythonBindingsCodeCache.load_pybinding_async(
                        types, source, submit_fn=AsyncCompile.submit
                    )
    except Exception as error:
        log.debug("kernels are not compiled ahead", exc_info=error)


def forget_compiled() -> None:
    """Inductor forgets what this process has compiled; what is on disk it finds again."""
    from torch._inductor.utils import clear_caches

    clear_caches()


def forget_compiler() -> None:
    """Inductor will find out anew which C++ compiler there is and which vector instructions it knows."""
    from torch._inductor import cpp_builder, cpu_vec_isa

    wait_for_compiler()
    _asking_compiler.cache_clear()
    cpp_builder.cpp_compiler_search.cache_clear()
    cpu_vec_isa.valid_vec_isa_list.cache_clear()
