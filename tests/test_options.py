"""Every option: what is allowed, what is refused and in which words, and that nothing else ever comes out."""

import json
import os
from dataclasses import fields, replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphremat import OptionError
from graphremat.options import DUMP_VARIABLE, Options

NAMES = tuple(option.name for option in fields(Options))

arbitrary = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-5, 300),
    st.floats(),
    st.text(),
    st.text(alphabet="0123456789. kKMGTiBb"),
    st.sampled_from(["auto", "AUTO", "inductor", "error", "ignore", "off", "1GiB", "0", "cpu"]),
    st.binary(),
    st.complex_numbers(),
    st.decimals(),
    st.fractions(),
    st.lists(st.integers()),
    st.sampled_from([10**5000, -(10**5000), Fraction(10**400), object(), int, np.arange(3), np.float32(0.5)]),
    st.sampled_from(
        [np.int64(5), np.bool_(True), Path("dump"), b"dump", float("nan"), ("inductor",), {}, set()]
    ),
)


class BytesPath:
    """A path that is bytes, which pathlib refuses."""

    def __fspath__(self) -> bytes:
        return b"dump"


@pytest.fixture(autouse=True)
def no_dump_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DUMP_VARIABLE, raising=False)


def test_nothing_named_gives_the_defaults() -> None:
    assert Options.parse(None) == Options.parse({}) == Options()


@pytest.mark.parametrize(
    ("given_budget", "budget"),
    [
        (None, None),
        ("20GiB", 20 * 2**30),
        ("800MB", 800 * 10**6),
        ("1.5 GiB", 3 * 2**29),
        ("123456", 123456),
        (1, 1),
        (np.int64(4096), 4096),
        (0.0, 0.0),
        (-0.0, 0.0),
        (0.25, 0.25),
        (1.0, 1.0),
        (np.float32(0.5), 0.5),
        ("auto", "auto"),
        (" Auto ", "auto"),
    ],
)
def test_budgets(given_budget: object, budget: object) -> None:
    found = Options.parse({"memory_budget": given_budget}).memory_budget
    assert found == budget
    assert type(found) is type(budget)
    assert str(found) == str(budget)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("memory_budget", True, "fraction from 0 to 1 as float"),
        ("memory_budget", 2e9, "give bytes as int or a string with a unit"),
        ("memory_budget", -0.1, "give bytes as int or a string with a unit"),
        ("memory_budget", float("nan"), "not a fraction from 0 to 1"),
        ("memory_budget", 0, "for the lowest peak say 0.0"),
        ("memory_budget", "0 GiB", "for the lowest peak say 0.0"),
        ("memory_budget", -5, "an int of at least 0 and below 2\\*\\*63 bytes"),
        ("memory_budget", 2**63, "below 2\\*\\*63 bytes"),
        pytest.param("memory_budget", 10**5000, "<an int of 16610 bits>", id="a long int"),
        ("memory_budget", "20G", "unknown unit 'G'"),
        ("memory_budget", "lots", "write it like 20GiB"),
        ("memory_budget", Decimal("0.5"), "not allowed"),
        ("memory_budget", [1], "not allowed"),
        ("memory_reserve", 0.5, "an int"),
        ("memory_reserve", None, "an int"),
        ("memory_reserve", "auto", "write it like 20GiB"),
        ("dump_dir", "", "path of a folder"),
        ("dump_dir", "a\0b", "path of a folder"),
        ("dump_dir", BytesPath(), "path of a folder"),
        ("dump_dir", 3, "path of a folder"),
        ("lowering", "triton", "'inductor' or 'aot_eager'"),
        ("lowering", None, "'inductor' or 'aot_eager'"),
        ("on_infeasible", "warn", "'error' or 'min_peak'"),
        ("annotations", True, "'honour' or 'ignore'"),
        ("on_failure", "raise", "'fallback' or 'error'"),
        ("device_costs", " ", "name of a device"),
        ("device_costs", 100, "name of a device"),
        ("max_plans", 1, "from 2 to 256"),
        ("max_plans", 257, "from 2 to 256"),
        ("max_plans", True, "from 2 to 256"),
        ("planner_seconds", 0, "a number of seconds above 0"),
        ("exact_seconds", "60", "a number of seconds above 0"),
        ("exact_seconds", float("nan"), "a number of seconds above 0"),
        ("max_lowerings", 0, "from 1 to 64"),
        ("max_lowerings", 8.0, "from 1 to 64"),
        ("fence", 1, "True or False"),
        ("verify", "very", "True or False"),
    ],
)
def test_a_bad_value_names_the_option_the_value_and_what_is_allowed(
    option: str, value: object, words: str
) -> None:
    with pytest.raises(OptionError, match=words) as caught:
        Options.parse({option: value})
    assert str(caught.value).startswith(f"{option}=")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("memory_bugdet", "did you mean 'memory_budget'"),
        ("budget", "did you mean 'memory_budget'"),
        ("activation_memory_budget", "did you mean 'memory_budget'"),
        ("dumpdir", "did you mean 'dump_dir'"),
        ("mode", "the options are memory_budget, memory_reserve"),
        (7, "unknown option 7: the options are"),
    ],
)
def test_an_unknown_option_names_the_nearest(name: object, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        Options.parse({name: 1})


def test_options_that_are_no_mapping() -> None:
    with pytest.raises(OptionError, match="must be a mapping"):
        Options.parse([("memory_budget", 1)])  # type: ignore[arg-type]


def test_dump_dir_falls_back_to_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DUMP_VARIABLE, "from-environment")
    assert Options.parse({}).dump_dir == Path("from-environment")
    assert Options.parse({"dump_dir": None}).dump_dir == Path("from-environment")
    assert Options.parse({"dump_dir": "named"}).dump_dir == Path("named")
    assert Options.parse({"dump_dir": Path("named")}).dump_dir == Path("named")
    monkeypatch.setenv(DUMP_VARIABLE, "")
    assert Options.parse({}).dump_dir is None


def test_ops_are_not_timed_here_for_a_device_that_is_elsewhere() -> None:
    with pytest.raises(OptionError, match="device_costs, which names another one, must be None"):
        Options.parse({"costs": "measure", "device_costs": "A100-40GB"})


CHANGED = Options(
    memory_budget=0.5,
    memory_reserve=1,
    dump_dir=Path("dump"),
    lowering="aot_eager",
    on_infeasible="min_peak",
    on_failure="error",
    annotations="ignore",
    repeatable=("mine::op",),
    costs="measure",
    device_costs="A100-40GB",
    max_plans=2,
    most_recomputations=None,
    planner_seconds=1.0,
    exact_seconds=1.0,
    max_lowerings=1,
    autotune=2,
    profile=True,
    fence=False,
    verify="off",
)


@pytest.mark.parametrize("name", NAMES)
def test_the_cache_key_covers_what_changes_the_plan(name: str) -> None:
    changed = replace(Options(), **{name: getattr(CHANGED, name)})
    assert changed != Options(), "CHANGED must differ from the default in every option"
    assert (changed.cache_key() == Options().cache_key()) == (name == "dump_dir")


def test_the_cache_key_is_stable_text() -> None:
    said = {name: getattr(CHANGED, name) for name in NAMES if name != "dump_dir"}
    assert json.loads(CHANGED.cache_key()) == {**said, "repeatable": ["mine::op"]}
    assert Options(memory_budget=1).cache_key() != Options(memory_budget=1.0).cache_key()


@given(st.sampled_from(NAMES), arbitrary)
def test_any_value_gives_options_or_an_option_error(name: str, value: object) -> None:
    try:
        options = Options.parse({name: value})
    except OptionError as error:
        assert name in str(error)
        assert len(str(error)) < 500
        return
    json.loads(options.cache_key())
    again = getattr(options, name)
    assert Options.parse({name: again}) == options
    assert name == "dump_dir" or isinstance(again, (int, float, str, type(None)))


@given(st.dictionaries(st.one_of(st.sampled_from(NAMES), st.text(), st.integers()), arbitrary))
def test_any_mapping_gives_options_or_an_option_error(mapping: dict[str, object]) -> None:
    try:
        Options.parse(mapping)
    except OptionError:
        assert mapping


def test_the_environment_is_left_alone() -> None:
    assert DUMP_VARIABLE not in os.environ
