"""Series: what is refused, and that every study of each one that comes with the package is whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from bft_ray.errors import BadConfig, BadInput
from bft_ray.space.load import load_study
from bft_ray.space.series import all_series, check_questions, find_series, load_series

SMALL = {
    "name": "two",
    "question": "Does it depend on the rows?",
    "space": "ablation",
    "conditions": {
        "few": {"at": {"rows": 50}, "overrides": {"data.train.0.limit": 50}},
        "many": {"at": {"rows": 200}, "overrides": {"data.train.0.limit": 200, "optimizer.betas": [0.9, 0.99]}},
    },
    "trends": [{"better": "bft", "than": "sft", "over": "rows"}],
}


def written(folder: Path, **more) -> Path:
    path = folder / "two.yaml"
    path.write_text(yaml.safe_dump(SMALL | more))
    return path


@pytest.mark.parametrize("name", sorted(all_series()))
def test_every_study_of_a_bundled_series_is_whole(name):
    series = load_series(all_series()[name])
    assert series.name == name
    for condition in series.conditions:
        space, _ = load_study(series.space, None, series.study_overrides(condition))
        assert space.name == f"{name}-{condition}" and space.confirmation is not None
        assert not space.confirmation.register_champion, "an experiment moves no domain's champion"
        assert len(space.confirmation.seeds) >= 5 and space.claims
        check_questions(series, condition, space)


PEAK = {"setting": "window", "arms": {"bft": 256, "sft": 8, "w64": 64}}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"trends": [{"better": "bft", "than": "stf", "over": "rows"}]},
            "trends.0` is 'stf', but must be the name of a baseline",
        ),
        (
            {"contrasts": [{"better": "w64", "than": "sft", "of": ["few"], "against": ["many"]}]},
            "contrasts.0` is 'w64'",
        ),
        ({"peaks": [PEAK]}, "peaks.0` is 'w64'"),
        (
            {"trends": [{"better": "bft", "than": "sft", "over": "rows", "metric": "general/bits_per_byte"}]},
            "trends.0.metric` is 'general/bits_per_byte', but must be the objective .choices/probability. or a metric that a claim",
        ),
    ],
)
def test_what_no_study_measures_cannot_be_asked(more, message, tmp_path):
    series = load_series(written(tmp_path, **more))
    space, _ = load_study(series.space, None, series.study_overrides("few"))
    with pytest.raises(BadInput, match=message):
        check_questions(series, "few", space)


def test_conditions_become_overrides(tmp_path):
    series = load_series(written(tmp_path, overrides={"budget.steps": 4}))
    space, base = load_study(series.space, None, series.study_overrides("many", ["budget.steps=5"]))
    assert (space.name, space.budget.steps) == ("two-many", 5)
    assert space.fixed["data.train.0.limit"] == 200 and space.fixed["optimizer.betas"] == [0.9, 0.99]
    assert base.domain == "gene_interaction"


def test_a_series_is_found_by_its_conditions(tmp_path):
    path = written(tmp_path)
    assert find_series(str(path)) == path and find_series("ablation") is None and find_series("no/such") is None
    (tmp_path / "space.yaml").write_text("name: one\n")
    assert find_series(str(tmp_path / "space.yaml")) is None


def test_a_space_beside_the_series(tmp_path):
    (tmp_path / "own.yaml").write_text("name: one\n")
    assert load_series(written(tmp_path, space="own.yaml")).space == str(tmp_path / "own.yaml")


BETWEEN = {"better": "bft", "than": "sft", "of": ["few"]}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"conditions": {"few": SMALL["conditions"]["few"]}}, "conditions"),
        ({"conditions": {"Few": SMALL["conditions"]["few"], "many": SMALL["conditions"]["many"]}}, "small letters"),
        ({"trends": [{"better": "bft", "than": "sft", "over": "passes"}]}, "at least two different places"),
        (
            {
                "conditions": {
                    name: one | {"at": one["at"] | {"seed": place}}
                    for place, (name, one) in enumerate(SMALL["conditions"].items())
                },
                "trends": [{"better": "bft", "than": "sft", "over": "rows"}],
            },
            "an axis on which conditions differ that agree on every other axis",
        ),
        ({"contrasts": [BETWEEN | {"against": ["none"]}]}, "the name of a condition: few, many"),
        ({"contrasts": [BETWEEN | {"against": ["few"]}]}, "a condition that `of` does not name"),
        ({"contrasts": [BETWEEN | {"of": ["few", "few"], "against": ["many"]}]}, "contrasts.0.of` is .* each once"),
        ({"contrasts": [BETWEEN | {"than": "bft", "against": ["many"]}]}, "contrasts.0.than` is .* another baseline"),
        ({"trends": [{"better": "bft", "than": "bft", "over": "rows"}]}, "trends.0.than` is .* another baseline"),
        ({"peaks": [PEAK | {"arms": {"a": 8, "b": 8, "c": 0}}]}, "at least three different values, all above 0"),
        ({"peaks": [PEAK | {"over": "passes"}]}, "at least two different places"),
        ({"peaks": [PEAK | {"capped_by": "longest"}]}, "at least a place, all above 0"),
        ({"question": ""}, "question"),
        ({"condition": {}}, "condition"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, more, message):
    with pytest.raises(BadConfig, match=message):
        load_series(written(tmp_path, **more))
