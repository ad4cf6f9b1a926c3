"""A model by its name on a command line: ``package.module:factory`` or ``path/to/file.py:factory``. Needs no torch."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from graphremat.errors import OptionError


def load_factory(text: str) -> Callable[..., Any]:
    """The function that ``text`` names; modules are looked for in the current folder as well.

    Raises:
        OptionError: there is no such module, file or function.

    >>> load_factory("graphremat.units")
    Traceback (most recent call last):
    graphremat.errors.OptionError: 'graphremat.units' names no function: write MODULE:FACTORY or FILE.py:FACTORY
    """
    where, colon, name = text.rpartition(":")
    if not colon or not where or not name:
        raise OptionError(f"{text!r} names no function: write MODULE:FACTORY or FILE.py:FACTORY")
    module = _from_file(Path(where)) if where.endswith(".py") else _from_path(where)
    factory = getattr(module, name, None)
    if not callable(factory):
        functions = sorted(k for k, v in vars(module).items() if callable(v) and not k.startswith("_"))
        raise OptionError(f"{where} has no function {name!r}; it has {', '.join(functions[:12]) or 'none'}")
    return factory  # type: ignore[no-any-return]


def _from_path(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there, and something that it needs is not
        raise OptionError(f"there is no module {name!r} here or among what is installed") from error


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise OptionError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
