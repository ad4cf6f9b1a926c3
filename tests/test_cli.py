"""The command line: exit codes, help, and what each command prints."""

import json
import subprocess
import sys
from dataclasses import replace
from importlib import metadata

import pytest
import torch
from typer.testing import CliRunner

import graphremat
import graphremat.cli
import graphremat.demo
import graphremat.doctor
from graphremat import PlanningError
from graphremat.cli import app
from graphremat.doctor import Device, Health, examine

runner = CliRunner()

HEALTHY = Health(
    graphremat="0.1.0",
    python="3.11.7",
    platform="Linux",
    torch="2.13.0+cpu",
    torch_supported=True,
    triton=None,
    backend_registered=True,
    compiler="/usr/bin/g++ (g++ 12.2.0)",
    devices=(Device("cpu", "x86_64, 2 cores", 2**34),),
    inductor_cache_dir="/tmp/cache",
    inductor_cache_bytes=2**20,
)


def test_help_lists_the_commands() -> None:
    result = runner.invoke(app, ["--help"])
    assert result.exit_code == 0
    for command in ("doctor", "demo"):
        assert command in result.output


def test_version() -> None:
    result = runner.invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"graphremat {graphremat.__version__}\n")


@pytest.mark.parametrize("arguments", [["nothing"], ["doctor", "--nothing"], ["demo", "extra"], []])
def test_a_mistake_in_the_command_exits_with_2(arguments: list[str]) -> None:
    assert runner.invoke(app, arguments).exit_code == 2


def test_doctor_looks_at_this_machine() -> None:
    health = examine()
    assert health.torch == metadata.version("torch")
    assert torch.__version__.startswith(health.torch)
    assert health.devices[0].memory_bytes > 2**28
    result = runner.invoke(app, ["doctor"])
    assert health.torch in result.output
    assert result.exit_code == (1 if health.problems() else 0)


def test_doctor_as_json_has_every_field() -> None:
    found = json.loads(runner.invoke(app, ["doctor", "--json"]).output)
    assert set(found) == {*Health.__dataclass_fields__, "problems"}
    assert found["torch"] == metadata.version("torch")


def test_a_healthy_machine_has_no_problems() -> None:
    assert HEALTHY.problems() == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"torch": None, "torch_supported": False}, "torch is not installed"),
        (
            {"torch": "2.9.1", "torch_supported": False},
            "torch 2.9.1 was never tried: the supported versions are 2.13",
        ),
        ({"backend_registered": False}, "install graphremat with pip"),
        ({"compiler": None}, "install g++"),
        ({"devices": (Device("cuda:0", "NVIDIA A100", 2**35),)}, "triton"),
    ],
)
def test_doctor_names_each_problem_and_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, object], words: str
) -> None:
    sick = replace(HEALTHY, **change)
    monkeypatch.setattr(graphremat.doctor, "examine", lambda: sick)
    result = runner.invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert words in " ".join(result.output.split())
    assert any(words in problem for problem in sick.problems())


@pytest.mark.parametrize("exit_code", [0, 1])
def test_demo_exits_as_the_demo_says(monkeypatch: pytest.MonkeyPatch, exit_code: int) -> None:
    monkeypatch.setattr(graphremat.demo, "main", lambda into: exit_code)
    assert runner.invoke(app, ["demo"]).exit_code == exit_code


def test_an_error_of_graphremat_is_told_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise PlanningError("stage cut: no plan [at all]")

    monkeypatch.setattr(graphremat.cli, "app", fail)
    with pytest.raises(SystemExit) as caught:
        graphremat.cli.main()
    assert caught.value.code == 1
    assert capsys.readouterr().err == "error: stage cut: no plan [at all]\n"


def test_the_module_runs_as_a_program() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "graphremat", "--version"], capture_output=True, text=True, check=True
    )
    assert shown.stdout == f"graphremat {graphremat.__version__}\n"
