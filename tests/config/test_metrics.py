"""The metrics table and the domains."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from bft_ray.config.metrics import METRICS, describe, format_value, higher_is_better, is_better
from bft_ray.domains import DOMAINS, domain
from bft_ray.errors import BadInput


def test_every_metric_is_found_by_its_own_name_and_stands_in_the_table_once():
    for metric in METRICS:
        name = metric.name.replace("<set>", "some_set").replace("<tag>", "some_tag")
        found = describe(name)
        assert found is not None
        assert (found.name, found.help) == (name, metric.help)
    assert len({metric.name for metric in METRICS}) == len(METRICS)


def test_patterns_do_not_swallow_what_is_no_metric():
    assert describe("choices/accuracy_of_nothing") is None
    assert describe("a b/accuracy") is None
    for name, direction in [
        ("final/choices/accuracy", "higher"),
        ("train/nll", "none"),
        ("validation/nll", "lower"),
    ]:
        metric = describe(name)
        assert metric is not None and metric.direction == direction


@pytest.mark.parametrize(
    ("name", "a", "b", "better"),
    [
        ("validation/nll", 1.0, 2.0, True),
        ("validation/nll", 2.0, 2.0, False),
        ("choices/accuracy", 0.3, 0.2, True),
        ("choices/accuracy", 0.2, 0.3, False),
        ("choices/accuracy", math.nan, 0.1, False),
        ("choices/accuracy", 0.1, math.nan, True),
        ("choices/accuracy", math.nan, math.nan, False),
    ],
)
def test_is_better(name, a, b, better):
    assert is_better(name, a, b) is better


def test_a_metric_without_a_direction_decides_nothing():
    with pytest.raises(BadInput, match=r"train/loss.*better and a worse direction"):
        higher_is_better("train/loss")
    with pytest.raises(BadInput, match=r"validation/nil.*a name of the metrics table.*<set>/nll"):
        higher_is_better("validation/nil")


def test_format_value():
    assert format_value("choices/accuracy", 0.25) == "0.250"
    assert format_value("choices/num_items", 1273.0) == "1,273"
    assert format_value("validation/nll", 2.345678) == "2.346"
    assert format_value("train/learning_rate", 2e-5) == "2e-05"
    assert format_value("mine/score", math.nan) == "nan"


def test_a_domain_names_metrics_that_the_table_knows():
    for entry in DOMAINS.values():
        for name in (entry.headline, *entry.metrics):
            assert describe(name) is not None, name
        assert higher_is_better(entry.headline)


def test_a_domain_of_ones_own_is_judged_by_token_accuracy():
    own = domain("my_assay")
    assert (own.headline, own.title) == ("validation/token_accuracy", "my assay")


def test_neither_needs_torch_or_ray():
    code = "import sys, bft_ray.metrics, bft_ray.domains; print({'torch', 'ray', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
