"""What is trained: the ten networks, and networks of libraries in sizes that two cores can train."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from torch import nn

from bench.contest.libraries import LIBRARIES
from bench.contest.workload import Workload
from bench.networks import NETWORKS, Case

CHAINS: Mapping[str, tuple[str, ...]] = {
    "linear_stack": ("layers",),
    "post_norm": ("blocks",),
    "llama": ("blocks",),
    "dropout_gpt": ("blocks",),
    "resnet": ("blocks",),
    "encoder_decoder": ("encoder", "decoder"),
    "two_losses": ("trunk", "decoder"),
    "called_twice": ("shared",),
}
"""Of each network, the lists whose modules run one behind the other."""
BLOCKS: Mapping[str, tuple[str, ...]] = {
    "unet": ("down", "bottom", "up"),
    "mixture_of_experts": ("blocks",),
}
"""The lists whose modules do something else between them, or hand on more than a tensor; a module is itself."""
LARGE: Mapping[str, str] = {"linear_stack": "wide_batch", "llama": "reference"}
"""What is large, where the size of that name has more gradients than activations, or another is known better."""


def of_network(case: Case) -> Workload:
    """One of the ten networks as a workload."""
    blocks = []
    for path in BLOCKS.get(case.name, ()):
        module = case.model.get_submodule(path)
        is_list = isinstance(module, nn.ModuleList)
        blocks += [f"{path}.{inner}" for inner, _ in module.named_children()] if is_list else [path]
    chains = CHAINS.get(case.name, ())
    return Workload(
        case.name, case.size, case.summary, case.model, case.inputs, case.loss, case.random, chains, tuple(blocks)
    )  # fmt: skip


def _network(name: str, size: str) -> Workload:
    return of_network(NETWORKS[name].build(size))


WORKLOADS: Mapping[str, Callable[[str], Workload]] = MappingProxyType(
    {**{name: partial(_network, name) for name in NETWORKS}, **LIBRARIES}
)
"""Every workload by name: a function of the size."""


def build(name: str, size: str) -> Workload:
    """The workload, where ``large`` is the size that takes 0.5 to 5 seconds a step on two cores.

    Raises:
        ValueError: no such workload, or no such size of it.
    """
    if name not in WORKLOADS:
        raise ValueError(f"no workload {name!r}; there are {', '.join(WORKLOADS)}")
    return WORKLOADS[name](LARGE.get(name, size) if size == "large" else size)
