"""Bytes as people write them: exact units, a round trip, and nothing but ValueError for what is not a size."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphremat.units import MAX_BYTES, UNITS, format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("0", 0),
        ("7B", 7),
        ("20GiB", 20 * 2**30),
        ("800MB", 800 * 10**6),
        ("1.5 GiB", 3 * 2**29),
        ("  3  tib ", 3 * 2**40),
        ("1KB", 1000),
        ("1kb", 1000),
        ("0.1 kB", 100),
        ("1.9999 B", 1),
        (str(MAX_BYTES), MAX_BYTES),
    ],
)
def test_known_sizes(text: str, n_bytes: int) -> None:
    assert parse_bytes(text) == n_bytes


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "GiB",
        "-1",
        "+1",
        "1e9",
        "1_000",
        "1,5GB",
        ".5GB",
        "5.",
        "20G",
        "1 GiB 2",
        "50%",
        "nan",
        "٣GB",
        "9" * 4000,
    ],
)
def test_what_is_not_a_size(text: str) -> None:
    with pytest.raises(ValueError):
        parse_bytes(text)


def test_too_many_bytes() -> None:
    with pytest.raises(ValueError, match="more than"):
        parse_bytes(str(MAX_BYTES + 1))


@given(st.integers(0, 10**6), st.sampled_from(sorted(UNITS)), st.sampled_from(["", " "]), st.booleans())
def test_number_and_unit_multiply(number: int, unit: str, space: str, upper: bool) -> None:
    text = f"{number}{space}{unit}"
    assert parse_bytes(text.upper() if upper else text) == number * UNITS[unit]


@given(st.integers(0, MAX_BYTES // 2))
def test_what_is_formatted_parses_to_the_digits_shown(n_bytes: int) -> None:
    text = format_bytes(n_bytes)
    unit = UNITS[text.split()[1]]
    rounding = 0 if unit == 1 else 0.005 * unit * (1 + 1e-9) + 1
    assert abs(parse_bytes(text) - n_bytes) <= rounding
    assert 1 <= float(text.split()[0]) < 1024 or n_bytes == 0 or text.endswith("TiB")


@given(st.integers(1, MAX_BYTES))
def test_a_minus_sign_changes_nothing_else(n_bytes: int) -> None:
    assert format_bytes(-n_bytes) == "-" + format_bytes(n_bytes)


@given(st.text())
def test_any_text_gives_bytes_or_a_value_error(text: str) -> None:
    try:
        n_bytes = parse_bytes(text)
    except ValueError:
        return
    assert 0 <= n_bytes <= MAX_BYTES
