"""What a person sees: the MLflow page in a real browser, on a real server over PostgreSQL."""

from __future__ import annotations

import pytest

from bft_ray.config import TrackingConfig
from bft_ray.tracking.run import Tracker
from tests.support.servers import CHROMIUM, HAS_POSTGRES, mlflow_server, page_text, postgres

pytestmark = pytest.mark.release  # tests/study/test_browser.py opens the pages of a study


@HAS_POSTGRES
@pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")
def test_a_run_as_its_page_shows_it(tmp_path):
    with postgres(tmp_path) as store, mlflow_server(tmp_path, store) as url:
        tracking = TrackingConfig(uri=url)
        with Tracker.start(
            tracking, experiment="bft/page", run_name="a-run", params={"loss.window": 64}, tags={"bft.method": "bft"}
        ) as tracker:
            for step in range(1, 4):
                tracker.log_metrics({"train/nll": 3.0 / step}, step=step)
            tracker.log_text("# A card", "model_card.md")
        experiment = tracker.client.get_experiment_by_name("bft/page")
        text = page_text(f"{url}/#/experiments/{experiment.experiment_id}/runs/{tracker.run_id}", tmp_path)
    for shown in ("a-run", "train/nll", "loss.window", "Finished"):
        assert shown in text, f"{shown!r} is not on the page"
    assert "secret" not in text
