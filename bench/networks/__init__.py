"""The ten networks that tests and benchmarks run on, each in several sizes, all made from a seed.

``NETWORKS["llama"].build("tiny")`` gives a :class:`Case`: a module in training mode, its inputs, and what to call
backward on. The loss is inside every network, so one compiled graph holds the whole step. All compile with
``fullgraph=True``. No shape depends on data, also where tokens are routed.

Sizes:

* ``one_block``: ``tiny`` with a single block, the least that the exact solver can be asked about.
* ``tiny``: two blocks and narrow, but with activations that outweigh the parameters: seconds to trace, few kernels.
* ``small``: the size of the full table; one compiled step well under 100 ms on two cores.
* ``large``: 0.3 to 1.5 seconds an eager step on two cores.
* ``gpu``: for a data-center GPU in bfloat16, 50 to 100 ms a step: ``llama``, ``dropout_gpt`` and ``unet`` alone.
* Some networks have more: ``linear_stack`` ``wide_batch`` (at ``large`` its gradients are 400 MiB against 12 MiB of
  activations, so no plan can help there); ``llama`` ``reference`` (8 blocks, d=512, batch 4 x 256);
  ``post_norm`` ``large20`` and ``large40``, which are meant to be planned on fake tensors and never run.

``python -m bench.describe_networks`` measures what the sizes come to. In MiB, what the eager forward
leaves alive for the backward, and what is alive after it:

==================  ================  ===============  =================  ================
network             tiny activations   tiny gradients  small activations   small gradients
==================  ================  ===============  =================  ================
linear_stack                    0.75             0.05              25.00              1.59
post_norm                       1.66             0.10              12.56              3.03
llama                           3.09             0.11              23.30              3.32
dropout_gpt                     5.58             0.12              31.29              3.34
resnet                          0.53             0.02               8.38              0.67
unet                            3.14             0.11               6.95              1.86
encoder_decoder                 2.80             0.14              20.59              3.85
mixture_of_experts              3.17             0.18              17.96              3.02
two_losses                      1.55             0.10              36.20              4.55
called_twice                    2.29             0.05              17.07              1.58
==================  ================  ===============  =================  ================
"""

from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from bench.networks import images, llama, routed, stacks, transformers
from bench.networks.parts import Inputs


@dataclass(frozen=True)
class Case:
    """One network in one size: ``loss(model(*inputs)).backward()`` is a step."""

    name: str
    size: str
    summary: str
    model: nn.Module
    inputs: Inputs
    loss: Callable[[Any], Tensor]
    random: bool

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Case":
        """The same case elsewhere, with a ``dtype`` for all that has a fraction. The model is moved in place."""
        inputs = tuple(
            x.to(device, dtype if dtype is not None and x.is_floating_point() else x.dtype)
            for x in self.inputs
        )
        return replace(self, model=self.model.to(device, dtype), inputs=inputs)

    def step_of(self, call: Callable[..., Any]) -> Callable[[], None]:
        """A step, forward and backward, through what is called like the model: no gradients before, the same random
        numbers each time."""

        def step() -> None:
            self.model.zero_grad(set_to_none=True)
            torch.manual_seed(0)
            self.loss(call(*self.inputs)).backward()  # type: ignore[no-untyped-call]

        return step

    def describe(self) -> str:
        """One line: name and size, what it is, parameters and the shapes of the inputs."""
        count = sum(parameter.numel() for parameter in self.model.parameters())
        shapes = ", ".join("x".join(map(str, value.shape)) for value in self.inputs)
        return f"{self.name}/{self.size}: {self.summary}; {count:,} parameters; inputs {shapes}"


@dataclass(frozen=True)
class Network:
    """A network and its sizes. ``make(**sizes[size])`` gives the module and its inputs.

    Attributes:
        random: each step draws random numbers (dropout), so two steps agree only from the same seed.
    """

    name: str
    summary: str
    make: Callable[..., tuple[nn.Module, Inputs]]
    sizes: Mapping[str, Mapping[str, int]]
    loss: Callable[[Any], Tensor] = lambda output: output
    random: bool = False

    def build(self, size: str, *, seed: int = 0) -> Case:
        """The case of this size, equal for equal seeds; the global random state is left as it was.

        It may be called inside ``torch.device("meta")`` or ``FakeTensorMode`` to plan without memory.

        Raises:
            ValueError: a size that this network does not have.
        """
        if size not in self.sizes:
            raise ValueError(f"{self.name} has no size {size!r}; it has {', '.join(self.sizes)}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, inputs = self.make(**self.sizes[size])
        return Case(self.name, size, self.summary, model.train(), inputs, self.loss, self.random)


def _sizes(fields: str, **rows: tuple[int, ...]) -> Mapping[str, Mapping[str, int]]:
    """A small table: the names of the columns, and one row a size."""
    return MappingProxyType({size: dict(zip(fields.split(), row, strict=True)) for size, row in rows.items()})


_ALL = (
    Network(
        "linear_stack",
        "linear and ReLU layers of one width",
        stacks.linear_stack,
        _sizes(
            "layers width batch",
            one_block=(4, 32, 512),
            tiny=(12, 32, 512),
            small=(100, 64, 1024),
            large=(100, 1024, 32),
            wide_batch=(100, 256, 4096),
        ),
    ),
    Network(
        "post_norm",
        "post-norm transformer with nn.MultiheadAttention and a ReLU feed-forward",
        transformers.post_norm,
        _sizes(
            "layers width heads batch length",
            one_block=(1, 32, 4, 8, 64),
            tiny=(2, 32, 4, 8, 64),
            small=(4, 128, 4, 4, 128),
            large=(6, 512, 8, 4, 256),
            large20=(20, 1024, 16, 4, 512),
            large40=(40, 2048, 32, 8, 1024),
        ),
    ),
    Network(
        "llama",
        "Llama-style decoder with RMSNorm, rotary positions and SwiGLU",
        llama.llama,
        _sizes(
            "layers width heads hidden vocabulary batch length",
            one_block=(1, 32, 4, 88, 64, 8, 64),
            tiny=(2, 32, 4, 88, 64, 8, 64),
            small=(4, 128, 4, 352, 256, 4, 128),
            large=(6, 512, 8, 1408, 4096, 4, 256),
            reference=(8, 512, 8, 1408, 2048, 4, 256),
            gpu=(8, 2048, 16, 5632, 32000, 8, 2048),
        ),
    ),
    Network(
        "dropout_gpt",
        "GPT with dropout 0.1 everywhere",
        transformers.dropout_gpt,
        _sizes(
            "layers width heads vocabulary batch length",
            one_block=(1, 32, 4, 64, 8, 64),
            tiny=(2, 32, 4, 64, 8, 64),
            small=(4, 128, 4, 256, 4, 128),
            large=(6, 384, 6, 2048, 4, 256),
            gpu=(8, 1024, 16, 32000, 16, 1024),
        ),
        random=True,
    ),
    Network(
        "resnet",
        "ResNet with BatchNorm",
        images.resnet,
        _sizes(
            "stages blocks channels batch side",
            one_block=(1, 1, 8, 8, 16),
            tiny=(2, 1, 8, 8, 16),
            small=(3, 2, 16, 8, 32),
            large=(3, 3, 48, 16, 64),
        ),
    ),
    Network(
        "unet",
        "U-Net with long skips",
        images.unet,
        _sizes(
            "levels channels batch side",
            one_block=(1, 8, 4, 32),
            tiny=(2, 8, 4, 32),
            small=(3, 16, 4, 32),
            large=(3, 32, 8, 96),
            gpu=(4, 128, 64, 128),
        ),
    ),
    Network(
        "encoder_decoder",
        "encoder-decoder with cross attention",
        transformers.encoder_decoder,
        _sizes(
            "layers width heads vocabulary batch length",
            one_block=(1, 32, 4, 64, 8, 64),
            tiny=(1, 32, 4, 64, 8, 64),
            small=(2, 128, 4, 256, 4, 128),
            large=(4, 384, 6, 2048, 4, 256),
        ),
    ),
    Network(
        "mixture_of_experts",
        "decoder with top-k routed experts",
        routed.mixture_of_experts,
        _sizes(
            "layers width heads hidden experts chosen vocabulary batch length",
            one_block=(1, 32, 4, 64, 4, 2, 64, 8, 64),
            tiny=(2, 32, 4, 64, 4, 2, 64, 8, 64),
            small=(4, 96, 4, 192, 4, 2, 256, 4, 128),
            large=(6, 384, 6, 1024, 8, 2, 2048, 4, 256),
        ),
    ),
    Network(
        "two_losses",
        "one trunk, two heads, two losses",
        stacks.two_losses,
        _sizes(
            "layers width batch",
            one_block=(1, 32, 512),
            tiny=(4, 32, 512),
            small=(12, 128, 1024),
            large=(24, 512, 1024),
        ),
        loss=stacks.weighted_sum,
    ),
    Network(
        "called_twice",
        "one module called twice, shared weights",
        transformers.called_twice,
        _sizes(
            "layers width heads batch length",
            one_block=(1, 32, 4, 8, 64),
            tiny=(1, 32, 4, 8, 64),
            small=(2, 128, 4, 4, 128),
            large=(3, 512, 8, 4, 256),
        ),
    ),
)

NETWORKS: Mapping[str, Network] = MappingProxyType({network.name: network for network in _ALL})
"""Every network by name, in the order of the tables."""


def names_of(text: str) -> list[str]:
    """The names in a comma-separated list of networks, or those of all; a type of ``argparse``.

    >>> names_of("llama,resnet")
    ['llama', 'resnet']
    >>> names_of("all") == list(NETWORKS)
    True
    """
    names = list(NETWORKS) if text == "all" else text.split(",")
    if unknown := [name for name in names if name not in NETWORKS]:
        raise ArgumentTypeError(f"unknown networks {', '.join(unknown)}; known: {', '.join(NETWORKS)}")
    return names
