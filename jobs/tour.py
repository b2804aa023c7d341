"""The pictures of docs/tour.md: what a person sees after `make quickstart`, photographed with a real browser.

    cd FOLDER && python -m jobs.tour --out docs/img

FOLDER holds a finished quickstart (bft_studies.db and mlflow.db). Needs the extra `dev` and Chromium or Chrome on the PATH.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bft_ray.errors import BadInput, BftError

STUDY = "starter/gene_interaction"
_WIDE, _NARROW = {"width": 1280, "height": 900}, {"width": 400, "height": 800}
_START_S = 60.0  # until the page of MLflow answers
_COLOURS = 255  # of a picture: half the size, and nobody sees it


def main(arguments: list[str] | None = None) -> int:
    """Take all pictures; prints their paths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/img"), help="folder of the pictures")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, opened_browser() as browser:
        report = Path(folder) / "report.html"
        subprocess.run([_command(), "report", STUDY, "--out", str(report)], check=True, capture_output=True)
        _report(browser, report.as_uri(), options.out)
        with mlflow_page("sqlite:///mlflow.db") as link:
            _mlflow_pages(browser, link, options.out)
    for picture in sorted(options.out.glob("tour-*.png")):
        _reduce(picture)
        print(picture, f"{picture.stat().st_size / 1000:.0f} kB")
    return 0


def _command() -> str:
    return str(Path(sys.executable).parent / "bft-ray")


@contextlib.contextmanager
def opened_browser() -> Iterator[Any]:
    """A real browser, by Playwright.

    Raises:
        BadInput: there is none on the PATH.
    """
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        raise BadInput("browser", None, "Chromium or Chrome on the PATH")
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=quiet)
        yield browser
        browser.close()


@contextlib.contextmanager
def mlflow_page(uri: str) -> Iterator[str]:
    """`bft-ray ui` on a database; yields its link, which serves once.

    Raises:
        BftError: it does not answer in time.
    """
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen([_command(), "ui", "--uri", uri], stdout=said, stderr=said)
        try:
            end = time.monotonic() + _START_S
            while True:
                said.seek(0)
                if found := re.search(r"http://\S+token=\S+", said.read()):
                    break
                if process.poll() is not None or time.monotonic() > end:
                    raise BftError("bft-ray ui has not printed its link")
                time.sleep(0.2)
            yield found[0]
        finally:
            process.terminate()
            process.wait(30)


def _report(browser: Any, address: str, out: Path) -> None:
    page = browser.new_page(viewport=_WIDE)
    page.goto(address)
    page.wait_for_timeout(1500)  # live figures take the places of the static ones
    page.screenshot(path=out / "tour-report.png")
    for name in ("settings", "course", "cost"):
        page.locator(f"#{name}").screenshot(path=out / f"tour-{name}.png")
    page.close()
    phone = browser.new_page(viewport=_NARROW)
    phone.goto(address)
    phone.wait_for_timeout(1500)
    phone.screenshot(path=out / "tour-phone.png")
    phone.close()


def _mlflow_pages(browser: Any, link: str, out: Path) -> None:
    page = browser.new_page(viewport=_WIDE)
    page.goto(link)
    page.get_by_text("bft/gene_interaction").first.click()
    with contextlib.suppress(Exception):  # a panel of MLflow's own, which hides half of the page
        page.get_by_role("button", name="Close", exact=True).first.click(timeout=3000)
    run = page.get_by_role("link", name=STUDY.partition("/")[0], exact=True).first
    run.wait_for()
    page.wait_for_timeout(1000)
    page.screenshot(path=out / "tour-experiment.png")
    run.click()
    page.get_by_text("Read the report").wait_for()
    page.wait_for_timeout(1000)
    page.screenshot(path=out / "tour-run.png", full_page=False)
    page.goto(f"{link.partition('?')[0]}#/models/bft-{STUDY.partition('/')[2]}")
    page.get_by_text("champion").first.wait_for()
    page.wait_for_timeout(1000)
    page.screenshot(path=out / "tour-registry.png")
    page.close()


def _reduce(picture: Path) -> None:
    from PIL import Image

    image = Image.open(picture).convert("RGB")
    small = image.quantize(_COLOURS, method=Image.Quantize.FASTOCTREE, kmeans=3, dither=Image.Dither.NONE)
    small.save(picture, optimize=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BftError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
