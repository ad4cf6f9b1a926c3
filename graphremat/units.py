"""Bytes as people write them. This module needs no torch.

Decimal units are powers of 1000 and binary units powers of 1024 (IEC 80000-13):

>>> parse_bytes("800MB"), parse_bytes("1.5 GiB")
(800000000, 1610612736)
>>> format_bytes(1610612736)
'1.50 GiB'
"""

import re
from fractions import Fraction
from types import MappingProxyType

MAX_BYTES = 2**63 - 1
"""The largest number of bytes that is accepted: what fits a signed 64-bit integer."""

UNITS = MappingProxyType(
    {"B": 1}
    | {f"{prefix}B": 1000**power for power, prefix in enumerate(("k", "M", "G", "T"), start=1)}
    | {f"{prefix}iB": 1024**power for power, prefix in enumerate(("K", "M", "G", "T"), start=1)}
)
"""Bytes of one unit."""

_UNIT_OF_UPPER_CASE = {unit.upper(): unit for unit in UNITS}
_NUMBER_AND_UNIT = re.compile(r"\s*([0-9]{1,20}(?:\.[0-9]{1,20})?)\s*([A-Za-z]{0,8})\s*")


def parse_bytes(text: str) -> int:
    """The number of bytes that ``text`` stands for: a number and, if it is not plain bytes, a unit.

    Upper and lower case mean the same. A fraction of a byte is dropped.

    Raises:
        ValueError: ``text`` is not a number with a known unit, or stands for more than :data:`MAX_BYTES`.

    >>> parse_bytes("123456"), parse_bytes(" 2 gib "), parse_bytes("0.5kB")
    (123456, 2147483648, 500)
    >>> parse_bytes("20G")
    Traceback (most recent call last):
    ValueError: unknown unit 'G': one of B, kB, MB, GB, TB, KiB, MiB, GiB, TiB
    """
    match = _NUMBER_AND_UNIT.fullmatch(text)
    if match is None:
        raise ValueError("not a number of bytes: write it like 20GiB, 800MB or 123456")
    number, unit_text = match.groups()
    unit = _UNIT_OF_UPPER_CASE.get((unit_text or "B").upper())
    if unit is None:
        raise ValueError(f"unknown unit {unit_text!r}: one of {', '.join(UNITS)}")
    n_bytes = int(Fraction(number) * UNITS[unit])
    if n_bytes > MAX_BYTES:
        raise ValueError(f"more than 2**63 - 1 bytes ({format_bytes(MAX_BYTES)})")
    return n_bytes


def format_bytes(n_bytes: int) -> str:
    """``n_bytes`` in the largest binary unit that it fills, with two decimals; bytes are written out.

    >>> format_bytes(1023), format_bytes(1024), format_bytes(-3 * 2**20)
    ('1023 B', '1.00 KiB', '-3.00 MiB')
    >>> format_bytes(2**20 - 1)
    '1.00 MiB'
    """
    if abs(n_bytes) < 1024:
        return f"{n_bytes} B"
    for unit in ("KiB", "MiB", "GiB"):
        size = n_bytes / UNITS[unit]
        if abs(round(size, 2)) < 1024:
            return f"{size:.2f} {unit}"
    return f"{n_bytes / UNITS['TiB']:.2f} TiB"
