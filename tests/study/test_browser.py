"""What a person sees of a finished study: MLflow and the page of the study in a real browser, on a screen and on a phone."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.tour import mlflow_page, opened_browser
from tests.support.servers import CHROMIUM

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")]


def test_the_way_from_the_experiment_to_the_report_and_the_champion(driver, tmp_path):
    """At 1280 and at 400 pixels, one study. Nothing of MLflow or of the page fails in the browser."""
    result = driver.search()
    assert result.champion == "bft-test/1"
    faults: list[str] = []
    with opened_browser() as browser:
        for width in (1280, 400):
            with mlflow_page(driver.base.tracking.uri) as link:  # each link lets one browser in
                page = browser.new_page(viewport={"width": width, "height": 900})
                page.on("pageerror", lambda error: faults.append(str(error)))
                page.goto(link)
                page.wait_for_timeout(500)
                assert "token=" not in page.url
                page.goto(f"{link.partition('?')[0]}#/experiments/{driver.run().info.experiment_id}")
                with contextlib.suppress(Exception):  # a panel of MLflow's own lies over its page
                    page.get_by_role("button", name="Close", exact=True).first.click(timeout=3000)
                run = page.get_by_role("link", name="small", exact=True).first
                run.wait_for()
                run.click()
                assert page.get_by_text("Finished").first.text_content(timeout=30_000)
                with page.expect_popup() as opened:
                    page.get_by_role("link", name="Read the report").click()
                report = opened.value.frame_locator("iframe").first
                answer = report.locator(".answer")
                assert answer.text_content(timeout=30_000)
                first = result.text.splitlines()[0]
                assert re.sub(r"\W+", " ", answer.text_content() or "").startswith(re.sub(r"\W+", " ", first[:40]))
                page.goto(f"{link.partition('?')[0]}#/models/bft-test")
                page.get_by_text("champion").first.wait_for()
                page.close()
    assert not faults


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_fits_the_screen_and_reads_without_script(driver, tmp_path, width):
    driver.search()
    out = tmp_path / "report.html"
    command = [str(Path(sys.executable).parent / "bft-ray"), "report", "small/test", "--database", driver.url]
    subprocess.run([*command, "--out", str(out)], check=True, capture_output=True)
    assert out.stat().st_size < 6_000_000
    with opened_browser() as browser:
        for script in (True, False):
            page = browser.new_context(java_script_enabled=script, viewport={"width": width, "height": 900}).new_page()
            page.goto(out.as_uri())
            page.wait_for_timeout(1000 if script else 0)
            assert page.locator("figure svg").count() >= 1
            for title in ("The evidence", "What would change this answer", "What it cost", "How to use it"):
                assert page.get_by_role("heading", name=title).is_visible()
            if script:
                assert page.evaluate("document.documentElement.scrollWidth") <= width
            page.context.close()
