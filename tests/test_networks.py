"""The networks of the bench: complete, deterministic, trainable, and with activations that outweigh their gradients."""

import math
from types import ModuleType

import pytest
import torch

from bench import cold_compile, describe_networks, fence, keep_budget, on_gpu, step_times
from bench.describe_networks import eager_sizes
from bench.networks import NETWORKS, Case
from graphremat.passes.torch_private import FakeTensorMode

SIZES_OF_ALL = ("one_block", "tiny", "small", "large")
MORE_SIZES = {
    "linear_stack": ["wide_batch"],
    "post_norm": ["large20", "large40"],
    "llama": ["reference", "gpu"],
    "dropout_gpt": ["gpu"],
    "unet": ["gpu"],
}


def gradients(case: Case, seed: int = 1) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    case.model.zero_grad(set_to_none=True)
    loss = case.loss(case.model(*case.inputs))
    assert loss.shape == ()
    loss.backward()
    return {name: value.grad for name, value in case.model.named_parameters() if value.grad is not None}


def test_ten_networks_in_all_sizes() -> None:
    assert len(NETWORKS) == 10
    for name, network in NETWORKS.items():
        assert network.name == name
        assert list(network.sizes) == [*SIZES_OF_ALL, *MORE_SIZES.get(name, [])]


@pytest.mark.parametrize("command", [cold_compile, describe_networks, fence, keep_budget, on_gpu, step_times])
def test_commands_name_the_known_networks(command: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["--networks", "llama,lama"])
    assert ended.value.code == 2
    assert "unknown networks lama; known: linear_stack, post_norm, llama" in capsys.readouterr().err


def test_an_unknown_size_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unet has no size 'huge'; it has one_block, tiny, small, large"):
        NETWORKS["unet"].build("huge")


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_finite_everywhere_and_repeat(name: str) -> None:
    case = NETWORKS[name].build("tiny")
    first = gradients(case)
    assert first.keys() == dict(case.model.named_parameters()).keys()
    for parameter, gradient in first.items():
        assert gradient.isfinite().all(), parameter
        assert gradient.abs().sum() > 0.0, parameter
    again = gradients(NETWORKS[name].build("tiny"))
    for parameter, gradient in first.items():
        torch.testing.assert_close(again[parameter], gradient, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_seed_decides_and_the_global_state_is_left_alone(name: str) -> None:
    state = torch.get_rng_state()
    one, same, other = (NETWORKS[name].build("tiny", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    for left, right in zip(one.model.state_dict().values(), same.model.state_dict().values(), strict=True):
        assert torch.equal(left, right)
    assert all(map(torch.equal, one.inputs, same.inputs))
    assert not all(map(torch.equal, one.inputs, other.inputs))


@pytest.mark.parametrize("name", NETWORKS)
def test_only_what_says_so_is_random(name: str) -> None:
    case = NETWORKS[name].build("tiny")
    one, other = gradients(case, seed=1), gradients(case, seed=2)
    differ = any(not torch.allclose(one[parameter], other[parameter], rtol=1e-4) for parameter in one)
    assert differ == case.random


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", ["tiny", "small"])
def test_activations_outweigh_gradients(name: str, size: str) -> None:
    """Activations are over twice the gradients, so a budget is about activations."""
    sizes = eager_sizes(NETWORKS[name].build(size))
    assert sizes.activations_bytes > 2 * sizes.gradients_bytes
    assert sizes.peak_bytes >= max(sizes.activations_bytes, sizes.gradients_bytes)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_graph_is_whole(name: str) -> None:
    case = NETWORKS[name].build("tiny")
    torch.compiler.reset()
    whole = torch.compile(case.model, backend="eager", fullgraph=True)
    torch.manual_seed(1)
    compiled = case.loss(whole(*case.inputs))
    torch.manual_seed(1)
    torch.testing.assert_close(compiled, case.loss(case.model(*case.inputs)))
    torch.compiler.reset()


@pytest.mark.parametrize("name", NETWORKS)
def test_every_size_is_made_without_memory(name: str) -> None:
    for size in NETWORKS[name].sizes:
        with torch.device("meta"):
            on_meta = NETWORKS[name].build(size)
        with FakeTensorMode():
            fake = NETWORKS[name].build(size)
        assert all(value.is_meta for value in (*on_meta.model.parameters(), *on_meta.inputs))
        assert [value.shape for value in fake.inputs] == [value.shape for value in on_meta.inputs]
        assert on_meta.describe() == fake.describe()


def test_planned_sizes_run_on_meta() -> None:
    with torch.device("meta"):
        case = NETWORKS["post_norm"].build("large40")
    parameters = sum(value.numel() for value in case.model.parameters())
    assert parameters == 40 * (12 * 2048**2 + 13 * 2048)
    assert case.loss(case.model(*case.inputs)).shape == ()


def test_describe_names_what_it_is() -> None:
    case = NETWORKS["two_losses"].build("tiny")
    assert case.describe().startswith("two_losses/tiny: one trunk, two heads, two losses; ")
    assert case.describe().endswith("parameters; inputs 512x32, 512")


def test_experts_are_full_and_some_tokens_find_theirs_full() -> None:
    """The routing drops tokens over capacity: their expert output is zero, not another token's."""
    case = NETWORKS["mixture_of_experts"].build("tiny")
    experts = case.model.get_submodule("blocks.0.experts")
    with torch.no_grad():
        router = experts.get_parameter("router.weight")
        router.zero_()
        router[:2] = 1.0  # with positive tokens, all go to experts 0 and 1
        tokens = torch.rand(4, 32, 32)
        mixed, balance = experts(tokens)
    capacity = 4 * 32 * 2 * 5 // 16
    assert capacity < 4 * 32
    rows = mixed.flatten(0, 1)
    assert (rows[:capacity].abs().sum(-1) > 0).all()
    assert torch.equal(rows[capacity:], torch.zeros_like(rows[capacity:]))
    assert math.isclose(float(balance), 2.0, rel_tol=1e-3)
