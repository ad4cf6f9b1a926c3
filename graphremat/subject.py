"""What a step is planned of: a module and what it is called with, made and prepared where tensors have no data."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from graphremat.adapters import add_lora, find_dtype, quantised_bytes
from graphremat.errors import OptionError
from graphremat.optimizers import bytes_of
from graphremat.passes.torch_private import modules_changed_without_data


@dataclass(frozen=True, eq=False)
class Subject:
    """The module, what it is called with, and the bytes that a quantised base takes less than what is traced."""

    model: nn.Module
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    quantised_bytes: int = 0

    @property
    def parameter_bytes(self) -> int:
        """Of all parameters; a quantised base counts as it is held, with its largest weight made again."""
        return sum(map(bytes_of, self.model.parameters())) - self.quantised_bytes

    @property
    def trained(self) -> list[nn.Parameter]:
        """Parameters that get gradients."""
        return [p for p in self.model.parameters() if p.requires_grad]


def make_subject(
    model: nn.Module | Callable[[], Any],
    inputs: Sequence[Any] | Mapping[str, Any] | Callable[[], Any] = (),
    *,
    dtype: str | None = None,
    lora: int | None = None,
    base: str | None = None,
) -> Subject:
    """The module, its arguments and its keywords; the arguments are those of :func:`graphremat.plan`.

    Raises:
        OptionError: the model is none, or an option is wrong or would change a module that is there.
    """
    changes = {"dtype": dtype, "lora": lora, "base": base}
    asked = [name for name, value in changes.items() if value is not None]
    if isinstance(model, nn.Module) and asked:
        raise OptionError(
            f"{' and '.join(asked)} would change the module: give a function that makes it instead"
        )
    with modules_changed_without_data():
        made = model if isinstance(model, nn.Module) else model()
    given = inputs() if callable(inputs) else inputs
    if isinstance(made, (tuple, list)) and len(made) == 2:
        made, given = made
    if not isinstance(made, nn.Module):
        raise OptionError(
            f"the model is a {type(made).__name__}: give a torch.nn.Module, or a function that returns one, alone or "
            "with its inputs"
        )
    if dtype is not None:
        wanted = find_dtype(dtype)
        with modules_changed_without_data():
            made = made.to(wanted)
    if lora is not None:
        made = add_lora(made, lora)
    less_bytes, again_bytes = quantised_bytes(made, base) if base is not None else (0, 0)

    def fitted(value: Any) -> Any:
        is_real = dtype is not None and isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(find_dtype(dtype)) if dtype is not None and is_real else value

    if isinstance(given, torch.Tensor):
        given = (given,)
    if isinstance(given, Mapping):
        keywords = {name: fitted(value) for name, value in given.items()}
        return Subject(made, (), keywords, less_bytes - again_bytes)
    return Subject(made, tuple(map(fitted, given)), {}, less_bytes - again_bytes)
