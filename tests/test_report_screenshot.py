"""The picture of the report in the README: that its command takes it, and that it is small."""

from pathlib import Path

import pytest

pytest.importorskip("plotly")
pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra bench)")

from bench.report_screenshot import find_chromium, main

ROOT = Path(__file__).resolve().parents[1]
NO_CHROMIUM = "no Chromium on the path (on Debian: apt install chromium)"


@pytest.mark.browser
@pytest.mark.skipif(find_chromium() is None, reason=NO_CHROMIUM)
def test_the_picture_of_the_readme_is_taken_by_its_command(tmp_path: Path) -> None:
    taken, committed = tmp_path / "docs" / "report.png", ROOT / "docs" / "report.png"
    main(["--network", "linear_stack", "--size", "tiny", "--out", str(taken)])
    assert taken.read_bytes()[:8] == committed.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    widths = [int.from_bytes(path.read_bytes()[16:20], "big") for path in (taken, committed)]
    assert widths[0] == widths[1]
    assert committed.stat().st_size < 300_000
