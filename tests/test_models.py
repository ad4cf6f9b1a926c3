"""Models by name: sizes against published counts, the network against the library's, and what is asked for wrongly."""

import json
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import graphremat
from graphremat.cli import app
from graphremat.errors import OptionError
from graphremat.llama import LLAMAS, llama
from graphremat.measure import measure_peak
from graphremat.models import find_model
from graphremat.passes.torch_private import FakeTensorMode
from graphremat.subject import make_subject

PUBLISHED = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
}
"""Parameters, as the repositories' ``model.safetensors`` have them."""

TINY = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 4, "vocab_size": 256,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
}  # fmt: skip
"""The configuration of ``llama-tiny``."""

FILE = """
import torch
from torch import nn

def by_batch(batch, width=8):
    return nn.Linear(width, 1), (torch.ones(batch, width),)

def by_both(batch=2, sequence=3):
    return nn.Linear(sequence, 1), (torch.ones(batch, sequence),)

def fixed():
    return nn.Linear(5, 1), (torch.ones(4, 5),)
"""


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_sizes_are_the_published_ones(name: str) -> None:
    with FakeTensorMode():
        model, inputs = find_model(name, batch=3, sequence=16)()
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[name]
    assert [tuple(i.shape) for i in inputs] == [(3, 16)] * 2


def test_adapters_have_as_many_parameters_as_peft_says() -> None:
    with FakeTensorMode():
        subject = make_subject(find_model("llama-3-8b"), lora=16)
    assert (
        sum(p.numel() for p in subject.trained) == 41_943_040
    )  # peft 0.21, target_modules="all-linear", r=16


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    return tmp_path


def test_the_network_is_the_librarys(config: Path) -> None:
    pytest.importorskip("transformers")
    ours, (tokens, targets) = llama("llama-tiny", 2, 32)
    theirs, _ = find_model(str(config))()
    names = {
        "model.model.embed_tokens": "embedding", "model.model.norm": "norm", "model.lm_head": "head",
        **{
            f"model.model.layers.{k}.{theirs_}": f"blocks.{k}.{ours_}"
            for k in range(LLAMAS["llama-tiny"].layers)
            for theirs_, ours_ in (
                ("input_layernorm", "attention_norm"), ("post_attention_layernorm", "feed_forward_norm"),
                ("self_attn.q_proj", "attention.query"), ("self_attn.k_proj", "attention.key"),
                ("self_attn.v_proj", "attention.value"), ("self_attn.o_proj", "attention.output"),
                ("mlp.gate_proj", "gate"), ("mlp.up_proj", "up"), ("mlp.down_proj", "down"),
            )
        },
    }  # fmt: skip
    weights = ours.state_dict()
    theirs.load_state_dict({f"{a}.weight": weights[f"{b}.weight"] for a, b in names.items()})
    losses = [model(tokens, targets) for model in (ours, theirs)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    pairs = dict(theirs.named_parameters()), dict(ours.named_parameters())
    for a, b in names.items():
        torch.testing.assert_close(pairs[0][f"{a}.weight"].grad, pairs[1][f"{b}.weight"].grad)


@pytest.mark.usefixtures("fresh_compiler")
def test_a_configuration_is_planned(config: Path) -> None:
    pytest.importorskip("transformers")
    command = [
        "plan",
        str(config / "config.json"),
        "--batch",
        "2",
        "--sequence",
        "32",
        "--dtype",
        "bf16",
        "--lora",
        "4",
    ]
    told = CliRunner().invoke(app, [*command, "--base", "nf4", "--json"])
    assert told.exit_code == 0, told.output
    answer = json.loads(told.stdout)
    own = graphremat.plan(find_model("llama-tiny", batch=2, sequence=32), dtype="bf16", lora=4, base="nf4")
    assert answer["parameter_bytes"] == own.parameter_bytes
    assert answer["trained_bytes"] == own.trained_bytes
    assert answer["peak_bytes"] == pytest.approx(own.peak_bytes, rel=0.1)


def test_without_the_library(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(OptionError, match=r"pip install 'graphremat\[libraries\]'"):
        find_model(str(config))


def test_a_configuration_of_something_else(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(OptionError, match="knows no causal language model|is no configuration"):
        find_model(str(tmp_path))


def test_sizes_reach_a_function(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(FILE)
    assert find_model(f"{path}:by_batch", batch=7)()[1][0].shape == (7, 8)
    assert find_model(f"{path}:by_batch", batch=7)(9)[1][0].shape == (9, 8)
    assert find_model(f"{path}:by_both", sequence=6)(9)[1][0].shape == (9, 6)
    assert find_model(f"{path}:by_both", batch=7, sequence=6)()[1][0].shape == (7, 6)
    assert find_model(f"{path}:fixed")()[1][0].shape == (4, 5)
    with pytest.raises(OptionError, match="takes no sequence: its parameters are batch, width"):
        find_model(f"{path}:by_batch", sequence=6)
    with pytest.raises(OptionError, match="takes no batch: its parameters are none"):
        find_model(f"{path}:fixed", batch=2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("llama-3-8", "did you mean 'llama-3-8b'"),
        ("net.py", "write FILE.py:FACTORY"),
        ("graphremat", "config.json"),
    ],
)
def test_a_model_that_is_not_there(name: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        find_model(name)


def test_a_batch_of_nothing() -> None:
    with pytest.raises(OptionError, match="batch=0: it is at least 1"):
        find_model("llama-tiny", batch=0)


@pytest.mark.inductor
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(("lora", "budget"), [(None, 0.5), (8, 0.0)])
def test_a_planned_step_is_the_measured_one(lora: int | None, budget: float) -> None:
    factory = find_model("llama-tiny", batch=4, sequence=256)
    found = graphremat.plan(factory, budget=budget, lora=lora)
    subject = make_subject(factory, lora=lora)
    torch.compiler.reset()
    options = {"memory_budget": found.peak_bytes}
    step = torch.compile(subject.model, backend="graphremat", options=options)

    def run() -> None:
        step(*subject.arguments).backward()

    run()
    peak = measure_peak(run, clear=subject.model.zero_grad).peak_bytes + found.problem.input_bytes
    assert peak == pytest.approx(found.peak_bytes, rel=0.005)
