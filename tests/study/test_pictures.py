"""The pictures of a study, from records made by hand: what is drawn where, and that no label covers another."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from bft_ray.space.definition import SearchSpace
from bft_ray.study.confirm.choose import Plan, Record, choose
from bft_ray.study.records.leaderboard import tuned
from bft_ray.study.records.record import TrialRecord
from bft_ray.study.report import pictures

METRIC = "choices/probability"
RATE, WINDOW, EPSILON = "optimizer.learning_rate", "loss.window", "loss.epsilon"


def space(rung_metric: str | None = None, **more: Any) -> SearchSpace:
    tree: dict[str, Any] = {
        "name": "study",
        "parameters": {
            RATE: {"kind": "categorical", "values": [1e-4, 1e-3]},
            WINDOW: {"kind": "categorical", "values": [64, 128, 512]},
            EPSILON: {"kind": "float", "low": 0.01, "high": 0.5, "log": True},
        },
        "fixed": {"loss.method": "bft_inverse"},
        "objective": {"metric": METRIC},
        "budget": {"trials": 20},
        "scheduler": {"kind": "asha", "grace_steps": 9, "metric": rung_metric},
    }
    return SearchSpace.model_validate(tree | more)


def trial(number, value=None, window=64, epsilon=0.05, state="complete", rungs=None, part="search", **more):
    by_seed = {seed: {METRIC: run} for seed, run in enumerate(value if isinstance(value, list) else [value])}
    mean = None if value is None else float(np.mean([run[METRIC] for run in by_seed.values()]))
    assignment = {RATE: 1e-3} | ({} if part == "baselines" else {WINDOW: window, EPSILON: epsilon})
    return TrialRecord(
        part, number, assignment, seeds=tuple(by_seed), state=state, value=mean, planned_steps=81,
        by_seed=by_seed if value is not None else {}, metrics={METRIC: mean} if value is not None else {},
        rungs={step: {0: at} for step, at in (rungs or {}).items()}, **{"name": f"w{window}", **more},
    )  # fmt: skip


SEARCH = [
    trial(0, 0.30, rungs={9: 0.2, 27: 0.28}),
    trial(1, 0.40, window=128, epsilon=0.02, rungs={9: 0.3, 27: 0.35}),
    trial(2, state="pruned", rungs={9: 0.1}),
    trial(3, 0.34, epsilon=0.4),
    trial(4, 0.40, window=512, epsilon=0.02, duplicate_of="search/1"),
    trial(5, state="failed", reason="out of memory"),
    trial(6, state="running", rungs={9: 0.25}),
]
BASELINES = [
    trial(number, value, part="baselines", extra={"baseline": name})
    for number, (name, value) in enumerate([("sft", 0.33), ("dft", 0.3521), ("bft", 0.352)])
]
PLAN = Plan(METRIC, ("w128", "w64"), ("sft", "dft", "bft"), "bft", (1, 2, 3, 4, 5))


def choice(shifts, plan=PLAN):
    random = np.random.default_rng(0)
    common = random.uniform(0.3, 0.7, 40)
    return choose(
        [
            Record(name, seed, {f"i{i}": float(v) for i, v in enumerate(common + shifts.get(name, 0) + noise)})
            for name in (*plan.candidates, *plan.baselines)
            for seed in plan.seeds
            for noise in [0.03 * random.normal(size=40)]
        ],
        plan,
        draws=200,
    )


def points(axes, label) -> list[tuple[float, float]]:
    found = [line for line in axes.lines if line.get_label() == label]
    return [(float(x), float(y)) for line in found for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)]


def drawn(figure: Figure | None) -> Any:
    assert figure is not None
    FigureCanvasAgg(figure).draw()
    return figure.axes[0]


@pytest.mark.slow
def test_which_pictures_there_are():
    records = {"search": SEARCH, "baselines": BASELINES}
    found = pictures.draw(records, space(), choice({"w128": 0.1}))
    names = ["by_window", "by_learning_rate", "by_epsilon", "history", "learning_curves", "confirmation"]
    assert list(found) == names
    for content in found.values():
        image = Image.open(io.BytesIO(content))
        image.verify()
        assert image.size[0] == 825
    assert pictures.draw({}, space(), None) == {}
    assert pictures.draw({"search": SEARCH[5:]}, space(), None) == {}
    assert list(pictures.draw({"search": [trial(0, 0.3)]}, space(), None)) == [*names[:3], "history"]


@pytest.mark.slow
def test_the_legend_of_long_names_stays_within_the_figure(monkeypatch):
    figures: list[Any] = []
    monkeypatch.setattr(pictures, "png", lambda figure: figures.append(figure) or b"")
    for long in ("bft_inverse w128 e0.0198 c14.3 lr0.0003", "bft_inverse w128 e0.0198 c14.3 lr0.0003 max_length=512"):
        search = [replace(record, name=f"{long}{record.number}") for record in SEARCH]
        won = replace(choice({"w128": 0.1}), champion=search[3].name)  # in another column than the best
        pictures.draw({"search": search, "baselines": BASELINES}, space(), won)
    assert len(figures) == 12
    for figure in figures:
        FigureCanvasAgg(figure).draw()
        (legend,) = figure.legends
        box = legend.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1, legend.get_texts()


def test_objective_against_window():
    runs = [*SEARCH, trial(7, [0.2, 0.36], epsilon=0.1)]
    axes = drawn(pictures._by_setting(runs, tuned(BASELINES, METRIC), space(), WINDOW))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["64", "128", "256", "512"]  # with the default
    assert points(axes, "a run") == [(-0.1, 0.3), (0.9, 0.4), (-0.1, 0.34), (-0.1, 0.2), (-0.1, 0.36)]
    assert points(axes, "a duplicate: the run of another trial") == [(2.9, 0.4)]
    (bars,) = axes.containers
    assert bars.get_label() == "mean, least and largest"
    assert list(bars.lines[0].get_xdata()) == [0.1] and bars.lines[0].get_ydata()[0] == pytest.approx(0.3)
    assert bars.lines[2][0].get_segments()[0].tolist() == [[0.1, pytest.approx(0.2)], [0.1, pytest.approx(0.36)]]
    marks = {text.get_text(): text.get_position()[0] for text in axes.texts if text.get_text() == "default bft"}
    assert marks == {"default bft": 2.0}
    levels = {float(line.get_ydata()[0]) for line in axes.lines if list(line.get_xdata()) == [0, 1]}
    assert levels >= {0.33, 0.3521, 0.352}
    assert axes.get_ylabel() == "choices/probability\n(share, higher is better)"
    assert axes.get_xlabel() == "loss.window (supervised tokens)"


def test_an_endless_setting_has_a_scale_and_no_means():
    axes = drawn(pictures._by_setting(SEARCH, {}, space(), EPSILON))
    assert axes.get_xscale() == "log" and not axes.containers
    assert points(axes, "a run") == [(0.05, 0.3), (0.02, 0.4), (0.4, 0.34)]
    assert all(text.get_text() != "default bft" for text in axes.texts)  # it has no epsilon
    rate = drawn(pictures._by_setting(SEARCH, tuned(BASELINES, METRIC), space(), RATE))
    assert [text.get_position()[0] for text in rate.texts if text.get_text() == "default bft"] == [0.0]  # tuned to 1e-3


def test_labels_of_near_baselines_do_not_cover_each_other():
    for figure in (
        pictures._by_setting(SEARCH, tuned(BASELINES, METRIC), space(), WINDOW),
        pictures._history(SEARCH, tuned(BASELINES, METRIC), space()),
    ):
        axes = drawn(figure)
        labels = [text for text in axes.texts if text.get_text() in ("sft 0.330", "dft 0.352", "bft 0.352")]
        boxes = [Text.get_window_extent(text) for text in labels]  # without the line that leads to it
        assert len(boxes) == 3
        assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])
        assert all(box.x0 >= axes.get_window_extent().x1 for box in boxes)  # beside the axis
        assert all(box.x1 <= figure.bbox.x1 for box in boxes)


def test_history():
    axes = drawn(pictures._history(SEARCH, {}, space()))
    assert points(axes, "best so far") == [(0, 0.3), (1, 0.4), (6.5, 0.4)]
    assert points(axes, "complete") == [(0, 0.3), (1, 0.4), (3, 0.34)]
    assert points(axes, "duplicate") == [(4, 0.4)]
    assert points(axes, "stopped early, at its last rung") == [(2, 0.1)]
    assert points(axes, "failed") == [(5, 0.02)]  # share of the height
    other = drawn(pictures._history(SEARCH, {}, space(rung_metric="validation/nll")))
    assert points(other, "stopped early") == [(2, 0.02)]  # in another metric: no value here
    lower = space(objective={"metric": "validation/nll"})
    nll = [
        TrialRecord("search", n, {}, state="complete", metrics={"validation/nll": v}) for n, v in enumerate([2, 3, 1])
    ]
    assert points(drawn(pictures._history(nll, {}, lower)), "best so far") == [(0, 2), (2, 1), (2.5, 1)]


def test_learning_curves():
    axes = drawn(pictures._curves(SEARCH, space(), "w64"))
    assert points(axes, "best: w128") == [(9, 0.3), (27, 0.35), (81, 0.4)]
    assert points(axes, "champion: w64")[:3] == [(9, 0.2), (27, 0.28), (81, 0.3)]
    assert points(axes, "stopped early") == []  # its name is the champion's here
    axes = drawn(pictures._curves(SEARCH, space(), None))
    assert points(axes, "stopped early") == [(9, 0.1)]
    assert points(axes, "other trials") == [(9, 0.2), (27, 0.28), (81, 0.3), (81, 0.34), (9, 0.25)]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["9", "27", "81"]
    assert points(drawn(pictures._curves(SEARCH, space(), "w128")), "best and champion: w128")[-1] == (81, 0.4)


def test_the_confirmation():
    found = choice({"w128": 0.1, "sft": -0.05})
    axes = drawn(pictures._forest(found))
    assert [label.get_text() for label in axes.get_yticklabels()] == [arm.name for arm in found.arms]
    assert found.champion == "w128" and axes.get_yticklabels()[0].get_weight() == "bold"
    gain = found.arm("w128").gain
    assert gain is not None
    assert points(axes, "champion") == [(gain.gain, 0.0)]
    intervals = [list(line.get_xdata()) for line in axes.lines if list(line.get_ydata()) == [0, 0]]
    assert intervals == [[gain.low, gain.high]]
    place = [arm.name for arm in found.arms].index("bft")
    assert points(axes, "default") == [(0.0, float(place))]
    least = [arm.gain.detectable for arm in found.arms if arm.gain]  # not a number where skewness counts: no bar
    assert any(map(math.isnan, least)) and not all(map(math.isnan, least))
    for bar, seen in zip(axes.patches, least, strict=True):
        width = 0.0 if math.isnan(seen) else seen
        assert (bar.get_x(), bar.get_width()) == (pytest.approx(-width), pytest.approx(2 * width))
    texts = [text.get_text() for text in axes.texts]
    assert texts[0] == f"{gain.gain:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]" and texts[place] == "the default"
    broken = choose([], PLAN)
    assert pictures._forest(broken) is None
