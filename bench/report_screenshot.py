"""Take the picture of a report's page that the README shows.

    python -m bench.report_screenshot --network llama --size small --budget 0.3 --out docs/report.png

The step is planned for graphs that run op by op, so that no compiler is needed. Needs the extra ``bench`` and a
Chromium on the path.
"""

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from playwright.sync_api import sync_playwright

from bench.networks import NETWORKS

WIDTH, HEIGHT = 1360, 900
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_chromium() -> str | None:
    """The path of an installed Chromium; None if there is none."""
    return next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)


def write_page(network: str, size: str, budget: float, folder: Path) -> Path:
    """Plan a network's step and return the page of its dump."""
    case = NETWORKS[network].build(size)
    torch.compiler.reset()
    options = {"memory_budget": budget, "lowering": "aot_eager", "dump_dir": str(folder)}
    case.loss(torch.compile(case.model, backend="graphremat", options=options)(*case.inputs))
    (page,) = folder.glob("graph-*/report.html")
    return page


def take_picture(page: Path, chromium: str, out: Path, *, dark: bool = False) -> None:
    """A picture of the page from its top to the end of its plans."""
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        opened = browser.new_page(
            viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="dark" if dark else "light"
        )
        opened.goto(page.resolve().as_uri())
        opened.wait_for_selector("html[data-ready]")
        end = opened.evaluate("document.getElementById('plans').getBoundingClientRect().bottom")
        out.parent.mkdir(parents=True, exist_ok=True)
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": end}
        opened.screenshot(path=out, full_page=True, clip=clip)
        browser.close()


def main(arguments: Sequence[str] | None = None) -> None:
    """Plan, open, picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="llama", choices=sorted(NETWORKS))
    parser.add_argument("--size", default="small")
    parser.add_argument("--budget", type=float, default=0.3)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("docs/report.png"))
    chosen = parser.parse_args(arguments)
    chromium = find_chromium()
    if chromium is None:
        parser.exit(1, f"no Chromium on the path (looked for {', '.join(CHROMIUM_NAMES)})\n")
    with tempfile.TemporaryDirectory() as folder:
        page = write_page(chosen.network, chosen.size, chosen.budget, Path(folder))
        take_picture(page, chromium, chosen.out, dark=chosen.dark)


if __name__ == "__main__":
    main()
