"""Reading the page of a report in tests."""

import json
import re
from typing import Any


def data_of(page: str) -> dict[str, Any]:
    """What a page was made of, read from its text."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, flags=re.DOTALL)
    return json.loads(text)  # type: ignore[no-any-return]


def alive_bytes(data: dict[str, Any], position: int) -> int:
    """Bytes alive while the run at a position lasts, put together from the parts that the page has."""
    moment = data["runs"]["moment"][position]
    lifetimes = zip(*(data["buffers"][column] for column in ("bytes", "from", "to")), strict=True)
    alive = sum(size for size, first, last in lifetimes if first <= moment <= last)
    engine = data["engine_bytes"] if position >= data["forward_length"] else 0
    scratch = data["ops"]["scratch_bytes"][data["runs"]["op"][position]]
    return int(alive + data["input_bytes"] + data["outside_bytes"] + engine + scratch)
