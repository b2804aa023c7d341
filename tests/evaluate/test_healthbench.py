"""HealthBench's scores, against a plain re-derivation of the published rules on random rubrics; its rows; a template."""

from __future__ import annotations

import json
import random
from collections import defaultdict

import numpy as np
import pytest

from bft_ray.config.metrics import describe
from bft_ray.config.tasks import JudgeConfig, RubricTask
from bft_ray.data.rows import Row
from bft_ray.errors import BadInput
from bft_ray.evaluate.rubrics import bootstrap_deviation, clipped_mean, length_adjusted, means_by_tag, slug
from bft_ray.evaluate.tasks.rubric import RubricItem, _asks, from_template, item_columns, read_rubrics

TAGS = ["axis:accuracy", "axis:completeness", "level:cluster", "axis:communication_quality"]
THEMES = ["theme:hedging", "theme:emergency_referrals"]


def drawn(draw: random.Random) -> tuple[RubricItem, list[bool]]:
    """An item, one criterion at least with positive points, and verdicts."""
    count = draw.randint(1, 12)
    points = [draw.choice([-10, -6, -3, 1, 2, 5, 8, 10]) for _ in range(count)]
    if max(points) < 0:
        points[0] = 4
    own = [tuple(draw.sample(TAGS, draw.randint(0, 3))) for _ in points]
    tags = tuple(draw.sample(THEMES, draw.randint(0, 2)))
    criteria = tuple((f"c{place}", float(one)) for place, one in enumerate(points))
    item = RubricItem(Row("i", "f:1", prompt="?"), criteria, tags, tuple(own))
    return item, [draw.random() < 0.5 for _ in points]


def published(items: list[tuple[RubricItem, list[bool]]]) -> dict[str, float]:
    """By the words of the publication, a criterion at a time: the overall score and that of every tag."""
    values: dict[str, list[float]] = defaultdict(list)
    for item, met in items:
        possible = sum(points for _, points in item.criteria if points > 0)
        overall = sum(points for (_, points), is_met in zip(item.criteria, met, strict=True) if is_met) / possible
        values["overall"].append(overall)
        for tag in item.tags:
            values[tag].append(overall)
        by_tag: dict[str, list[tuple[float, bool]]] = defaultdict(list)
        for (_, points), is_met, tags in zip(item.criteria, met, item.criterion_tags, strict=True):
            for tag in tags:
                by_tag[tag].append((points, is_met))
        for tag, own in by_tag.items():
            most = sum(points for points, _ in own if points > 0)
            if most > 0:
                values[tag].append(sum(points for points, is_met in own if is_met) / most)
    return {tag: min(max(sum(own) / len(own), 0.0), 1.0) for tag, own in values.items()}


@pytest.mark.parametrize("seed", range(40))
def test_scores_are_the_published_ones(seed):
    draw = random.Random(seed)
    items = [drawn(draw) for _ in range(draw.randint(1, 12))]
    verdicts = [verdict for _, met in items for verdict in met]
    columns, tags = item_columns([item for item, _ in items], [verdicts], [["answer"]] * len(items))
    expected = published(items)
    assert clipped_mean(columns["rubric_score"]) == pytest.approx(expected.pop("overall"), abs=1e-12)
    assert means_by_tag(tags) == pytest.approx({slug(tag): value for tag, value in expected.items()}, abs=1e-12)


def test_the_deviation_is_that_of_clipped_means():
    """Of values far inside [0, 1] it is the standard error; of values at the border the clipping counts."""
    draw = np.random.default_rng(0)
    values = draw.normal(0.5, 0.1, 400)
    assert bootstrap_deviation(values) == pytest.approx(0.1 / 20, rel=0.1)
    assert bootstrap_deviation(values) == bootstrap_deviation(values)
    assert bootstrap_deviation(values - 5) == 0.0
    border = draw.normal(0.0, 0.1, 400)
    assert bootstrap_deviation(border) < 0.8 * np.std(border) / 20


def test_length_by_hand():
    """0.0147 for each 500 characters: 2,000 cost nothing, 3,000 cost 0.0294, 1,000 give as much."""
    scores = length_adjusted(np.array([0.5, 0.5, 0.5]), np.array([2000, 3000, 1000]))
    assert scores == pytest.approx([0.5, 0.5 - 0.0294, 0.5 + 0.0294])
    item, met = drawn(random.Random(1))
    columns, _ = item_columns([item], [met], [["x" * 2500]])
    assert columns["length_adjusted_score"][0] == pytest.approx(columns["rubric_score"][0] - 0.0147)


def task(folder, **more) -> RubricTask:
    judge = JudgeConfig(url="http://127.0.0.1:1/v1", model="m")
    return RubricTask(name="health", path=str(folder / "rows.jsonl"), judges=[judge], **more)


def test_published_rows_are_read_as_they_are(tmp_path):
    row = {
        "example_tags": THEMES,
        "ideal_completions_data": None,
        "prompt": [{"content": "I have a cough", "role": "user"}],
        "prompt_id": "p-1",
        "rubrics": [
            {"criterion": "asks how long", "points": 5, "tags": ["level:example", "axis:context_awareness"]},
            {"criterion": "is alarming", "points": -3, "tags": []},
        ],
        "canary": "x",
    }
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    [item] = read_rubrics(task(tmp_path), "f")
    assert (item.row.id, item.tags) == ("p-1", tuple(THEMES))
    assert item.criteria == (("asks how long", 5.0), ("is alarming", -3.0))
    assert item.criterion_tags == (("level:example", "axis:context_awareness"), ())
    row["rubrics"][0]["tags"] = "axis"
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(BadInput, match=r"rubric\.0\.tags"):
        read_rubrics(task(tmp_path), "f")


def test_a_template_is_filled_in_once(tmp_path):
    (tmp_path / "template.txt").write_text("\nJudge <<conversation>> by <<rubric_item>>. Again: <<conversation>>\n")
    ask = _asks(task(tmp_path, template=str(tmp_path / "template.txt")), "evaluation.tasks.health")
    [message] = ask(
        [{"role": "user", "content": "what is <<rubric_item>>?"}], "an answer", "says <<conversation>>", 5.0
    )
    said = "user: what is <<rubric_item>>?\n\nassistant: an answer"
    assert message == {"role": "user", "content": f"Judge {said} by [5] says <<conversation>>. Again: {said}"}
    assert from_template("<<conversation>>|<<rubric_item>>", "hi", "yo", "c", -2.5)[0]["content"] == (
        "user: hi\n\nassistant: yo|[-2.5] c"
    )
    (tmp_path / "template.txt").write_text("Judge <<conversation>>")
    with pytest.raises(BadInput, match="a text with <<rubric_item>>"):
        _asks(task(tmp_path, template=str(tmp_path / "template.txt")), "f")
    with pytest.raises(BadInput, match="a text file in UTF-8"):
        _asks(task(tmp_path, template=str(tmp_path / "none.txt")), "f")


def test_a_score_of_a_tag_is_a_metric():
    metric = describe("health/tag_theme_hedging")
    assert metric is not None and metric.unit == "share" and not metric.is_judged
    assert describe("health/tag_") is None and describe("health/rubric_score_deviation") is not None
    assert slug("theme:emergency_referrals") == "theme_emergency_referrals"


def read_tags(folder, *rows: tuple[list, list]) -> list[RubricItem]:
    """Items with these tags, of the item and of its one criterion."""
    written = [
        {"prompt": "?", "tags": tags, "rubric": [{"criterion": "x", "points": 1, "tags": own}]} for tags, own in rows
    ]
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in written))
    return read_rubrics(task(folder), "f")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [(["A-b", "a b"], [])],
            r"rows\.jsonl:1 tags\.1` is 'a b'.*tag_a_b.*'A-b', the tag of an item at .*:1 tags\.0",
        ),
        ([(["C"], []), (["C++"], [])], r"rows\.jsonl:2 tags\.0` is 'C\+\+'.*tag_c, .*'C'.*:1 tags\.0\. Rename one"),
        ([([], ["C", "C#"])], r"rubric\.0\.tags\.1` is 'C#'.*'C', the tag of a criterion at .*:1 rubric\.0\.tags\.0"),
        ([(["x"], ["x"])], r"rubric\.0\.tags\.0` is 'x', but as the tag of a criterion .*tag_x.*the tag of an item at"),
        ([([], ["x"]), (["x"], [])], r"rows\.jsonl:2 tags\.0` is 'x', but as the tag of an item"),
        ([(["caf\u00e9", "cafe\u0301"], [])], r"tag_caf\u00e9"),
    ],
)
def test_two_tags_of_one_metric_are_refused(tmp_path, rows, message):
    with pytest.raises(BadInput, match=message):
        read_tags(tmp_path, *rows)


def test_a_tag_may_come_again(tmp_path):
    first, second = read_tags(tmp_path, (["x", "x"], ["y"]), (["x"], ["y"]))
    assert first.tags == second.tags == ("x",) and first.criterion_tags == (("y",),)


@pytest.mark.slow
def test_tags_of_all_scripts_are_metrics(tmp_path):
    from mlflow.utils.validation import validate_param_and_metric_name

    written = ["癌症", "Hôpital: Élevé", "cafe\u0301", "कैंसर", "İ", "θεραπεία", "лечение_2"]
    [item] = read_tags(tmp_path, (written, []))
    names = [slug(tag) for tag in item.tags]
    assert names[:3] == ["癌症", "hôpital_élevé", "café"] and len(set(names)) == len(written)
    assert all(validate_param_and_metric_name(f"health/tag_{name}") for name in names)


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        (
            ["a", "***"],
            r"rows\.jsonl:1 tags\.1` is '\*\*\*', but must be a text with a letter or a digit.*Rename the tag",
        ),
        (["_"], r"with a letter or a digit"),
        (["a", 3], r"tags\.1` is 'a number', but must be a text\."),
        ("a", r"tags` is 'text', but must be a list of texts"),
    ],
)
def test_a_tag_without_a_name_is_refused(tmp_path, tags, message):
    with pytest.raises(BadInput, match=message):
        read_tags(tmp_path, (tags, []))
