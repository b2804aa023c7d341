"""Search spaces: strict, held against the real config, counted right, and every shipped file valid."""

from __future__ import annotations

import importlib.util
import json
import random
import shutil
import subprocess
import sys
import zipfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bft_ray.config import Config, LossConfig, load_config, loss, make_config
from bft_ray.config.load import set_field, validate
from bft_ray.config.measured import is_measured, measured_names, source_of
from bft_ray.config.metrics import is_judged
from bft_ray.config.steps import num_steps, steps_if_known
from bft_ray.domains import DOMAINS
from bft_ray.errors import BadConfig, BadInput
from bft_ray.space.assign import active, baseline_config, config_of, with_overrides
from bft_ray.space.cost import cost_of, describe
from bft_ray.space.definition import LEARNING_RATE, SearchSpace
from bft_ray.space.duplicates import run_key
from bft_ray.space.grid import baseline_assignments, grid, num_combinations, representatives
from bft_ray.space.load import check_space, load_base, load_space, load_study, spaces
from bft_ray.space.parts import Asha, NoScheduler
from bft_ray.space.series import all_series
from tests.support.paths import ROOT

MINIMAL: dict[str, Any] = {
    "name": "x",
    "parameters": {"loss.window": {"kind": "categorical", "values": [64, 128]}},
    "objective": {"metric": "validation/token_accuracy"},
    "budget": {"trials": 8},
}
WITH_FORMS = {
    "loss.method": {"kind": "categorical", "values": ["bft", "bft_inverse"]},
    "loss.window": {"kind": "categorical", "values": [64, 128, 256]},
    "loss.epsilon": {"kind": "float", "low": 0.1, "high": 0.3, "step": 0.1, "when": {"loss.method": ["bft_inverse"]}},
}
CONFIRMATION = {"overrides": {"data.validation.0.path": "starter:gene_interaction/confirmation"}}


def make_space(**fields: Any) -> SearchSpace:
    return validate(SearchSpace, deepcopy({**MINIMAL, **fields}), "the space")


def with_parameters(**parameters: Any) -> dict[str, Any]:
    return {"parameters": {name.replace("__", "."): value for name, value in parameters.items()}}


def floats(**fields: Any) -> dict[str, Any]:
    return {"kind": "float", **fields}


# ---- what is wrong is said, without a config -----------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"paramters": {}}, "`paramters` is not a known key. Did you mean `parameters`?"),
        ({"budget": {"trails": 3}}, "`budget.trails` is not a known key. Did you mean `budget.trials`?"),
        ({"parameters": {}}, "`parameters` is {}"),
        (with_parameters(loss__window={"values": [1]}), "`parameters.loss.window.kind` is missing"),
        (
            with_parameters(loss__window={"kind": "categoric", "values": [1]}),
            "`parameters.loss.window.kind` is 'categoric', but must be one of 'categorical', 'int', 'float'",
        ),
        (
            with_parameters(loss__window={"kind": "int", "low": 1, "hihg": 2}),
            "`parameters.loss.window.hihg` is not a known key. Did you mean `parameters.loss.window.high`?",
        ),
        (with_parameters(loss__window={"kind": "int", "low": 1}), "`parameters.loss.window.high` is missing"),
        (
            with_parameters(loss__window={"kind": "int", "low": "1", "high": 2}),
            "`parameters.loss.window.low` is '1', but must be a valid integer",
        ),
        (
            with_parameters(loss__window={"kind": "int", "low": 4, "high": 4}),
            "`parameters.loss.window.high` is 4, but must be above low (4)",
        ),
        (
            with_parameters(loss__gamma=floats(low=0.0, high=1.0, log=True)),
            "`parameters.loss.gamma.low` is 0.0, but must be above 0 on a logarithmic scale",
        ),
        (
            with_parameters(loss__gamma=floats(low=0.1, high=1.0, log=True, step=0.1)),
            "`parameters.loss.gamma.step` is 0.1, but must be left out on a logarithmic scale",
        ),
        (
            with_parameters(loss__gamma=floats(low=0.1, high=1.0, step=0.4)),
            "`parameters.loss.gamma.step` is 0.4, but must be a whole part of high - low",
        ),
        (
            with_parameters(loss__window={"kind": "categorical", "values": [64, 64.0]}),
            "`parameters.loss.window.values.1` is 64.0, but must be given once",
        ),
        (
            with_parameters(loss__window={"kind": "categorical", "values": [[64]]}),
            "`parameters.loss.window.values.0` is [64], but must be text, a finite number",
        ),
        (with_parameters(loss__window={"kind": "categorical", "values": []}), "`parameters.loss.window.values` is []"),
        (
            with_parameters(loss__window={"kind": "categorical", "values": [1], "when": {"loss.metod": ["bft"]}}),
            "`parameters.loss.window.when.loss.metod` is ['bft'], but must be about a parameter of this space. There are: "
            "loss.window.",
        ),
        (
            {"parameters": {**WITH_FORMS, "loss.epsilon": floats(low=0.1, high=1.0, when={"loss.method": ["dft"]})}},
            "`parameters.loss.epsilon.when.loss.method` is 'dft', but must be one of the values of loss.method: bft, ",
        ),
        (
            with_parameters(
                loss__window={"kind": "categorical", "values": [1], "when": {"loss.gamma": [1.0]}},
                loss__gamma={"kind": "categorical", "values": [1.0], "when": {"loss.window": [1]}},
            ),
            "`parameters.loss.window.when` is ['loss.gamma'], but must be free of circles",
        ),
        (
            with_parameters(loss__gamma=floats(low=0.5, high=2.0)) | {"sampler": {"kind": "grid"}},
            "`parameters.loss.gamma` is 'continuous', but must be finite for a grid",
        ),
        ({"budget": {}}, "`budget.trials` is None, but must be given for the sampler tpe"),
        (
            {"budget": {"trials": 4}},
            "`budget.trials` is 4, but must be at least sampler.startup_trials (8)",
        ),
        ({"sampler": {"kind": "tpee"}}, "`sampler.kind` is 'tpee', but must be 'tpe', 'random' or 'grid'"),
        (
            {"objective": {"metric": "validation/acuracy_x"}},
            "`objective.metric` is 'validation/acuracy_x', but must be a metric of the metrics table",
        ),
        (
            {"objective": {"metric": "train/loss"}},
            "`objective.metric` is 'train/loss', but must be a metric with a better and a worse direction",
        ),
        (
            {"objective": {"metric": "validation/nll", "second": {"metric": "train/loss", "largest_loss": 0.1}}},
            "`objective.second.metric` is 'train/loss', but must be a metric with a better and a worse direction",
        ),
        (
            {"objective": {"metric": "validation/nll", "second": {"metric": "validation/nll", "largest_loss": 0.1}}},
            "`objective.second.metric` is 'validation/nll', but must be another metric",
        ),
        (
            {"fixed": {"loss.window": 3}},
            "`fixed.loss.window` is 3, but must be left out, because `parameters` varies it",
        ),
        ({"fixed": {"seed": 3}}, "`fixed.seed` is 'given', but must be left out. Use `seeds`"),
        (
            {"fixed": {"schedule.steps": 5}, "budget": {"trials": 8, "steps": 5}},
            "`budget.steps` is 5, but must be left out where schedule.steps is set",
        ),
        (
            {"budget": {"trials": 8, "steps": 5}, "scheduler": {"kind": "asha", "grace_steps": 5}},
            "`scheduler.grace_steps` is 5, but must be below budget.steps (5)",
        ),
        ({"scheduler": {"kind": "asah"}}, "`scheduler.kind` is 'asah', but must be one of 'asha', 'none'"),
        ({"seeds": [0, 0]}, "`seeds` is [0, 0], but must be different seeds"),
        ({"seeds": [2**32]}, "`seeds` is [4294967296], but must be different seeds, none below 0 or above 4294967295"),
        (
            {"confirmation": {**CONFIRMATION, "seeds": [1, 2, 3, 4, 2**32]}},
            "4294967296], but must be different seeds, none below 0 or above 4294967295",
        ),
        (
            {"confirmation": {**CONFIRMATION, "seeds": [1, 2, 3]}},
            "`confirmation.seeds` is [1, 2, 3], but must be at least 5 seeds. Add seeds, or say `min_seeds_waived: true`",
        ),
        (
            {"confirmation": {**CONFIRMATION, "seeds": [1, 2], "min_seeds_waived": True}},
            "`confirmation.seeds` is [1, 2], but must be at least 5 seeds, or 3 for a demonstration",
        ),
        *(
            (
                with_parameters(**{name: {"kind": "categorical", "values": values}})
                | {"scheduler": {"kind": "asha", "grace_steps": 3}},
                f"`parameters.{name.replace('__', '.')}` is 'varied', but must be fixed where ASHA compares runs at a rung: they "
                "would be at different points of their decay. Use `scheduler: {kind: none}`, or fix it.",
            )
            for name, values in (
                ("schedule__steps", [10, 20]),
                ("schedule__epochs", [1.0, 2.0]),
                ("data__global_batch_size", [4, 8]),
                ("data__train__0__limit", [10, 20]),
                ("data__train__0__ratio", [0.5, 1.0]),
            )
        ),
        (
            {"confirmation": {**CONFIRMATION, "seeds": [0, 1, 2, 3, 4]}},
            "`confirmation.seeds` is [0], but must be fresh: the search has used these seeds",
        ),
        ({"confirmation": {}}, "`confirmation.overrides` is missing: dotted fields of the confirmation split"),
        ({"confirmation": CONFIRMATION, "baselines": []}, "`baselines` is [], but must be given with one named `bft`"),
        (
            {"learning_rates": [1e-3]},
            "`learning_rates` is [0.001], but must be left out where optimizer.learning_rate is no parameter",
        ),
        (
            with_parameters(optimizer__learning_rate=floats(low=1e-4, high=1e-2, log=True)),
            "`parameters.optimizer.learning_rate` is 'continuous', but must be finite: baselines are tuned over its "
            "values too. Give `learning_rates`.",
        ),
        (
            with_parameters(optimizer__learning_rate=floats(low=1e-4, high=1e-2, log=True))
            | {"learning_rates": [1e-3, 1e-1]},
            "`learning_rates` is [0.001, 0.1], but must be different values that optimizer.learning_rate can take",
        ),
        (
            with_parameters(optimizer__learning_rate={"kind": "categorical", "values": [1e-4, 1e-3]})
            | {"learning_rates": [1e-3]},
            "`learning_rates` is [0.001], but must be the values of optimizer.learning_rate: 0.0001, 0.001",
        ),
    ],
)
def test_what_is_wrong_is_said(fields, message):
    with pytest.raises(BadConfig) as caught:
        make_space(**fields)
    assert message in str(caught.value)


@pytest.mark.parametrize("place", ["parameters", "fixed"])
def test_a_field_that_the_study_owns_is_told_whatever_is_given_for_it(place):
    known = {"loss.window": {"kind": "int", "values": [16, 64]}} if place == "parameters" else {}
    with pytest.raises(BadConfig, match=rf"`{place}.seed` is 'given', but must be left out. Use `seeds` and"):
        make_space(**{place: {**known, "seed": 3}})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"fixed": {"loss": {"gamma": 2}}},
            "`fixed.loss` is {'gamma': 2}, but must be left out, because `parameters` varies",
        ),
        (
            {"fixed": {"schedule": {"warmup_ratio": 0}}},
            "must be dotted fields. For example fixed: {schedule.warmup_ratio: VALUE}.",
        ),
        (
            with_parameters(model__path={"kind": "categorical", "values": ["a", "b"]})
            | {"fixed": {"model": {"path": "c"}}},
            "varies model.path",
        ),
        (
            with_parameters(data__validation__0__path={"kind": "categorical", "values": ["a", "b"]}),
            "measured in different ways",
        ),
        (with_parameters(evaluation__every_steps={"kind": "int", "low": 1, "high": 4}), "measured in different ways"),
    ],
)
def test_a_field_within_another_or_of_how_trials_are_measured(fields, message):
    with pytest.raises(BadConfig) as caught:
        make_space(**fields)
    assert message in str(caught.value)


def test_a_field_is_set_in_a_copy():
    """A field within a fixed mapping was set in the space itself: for each later trial, and for the baselines."""
    tree, given = {}, {"rank": 8}
    set_field(tree, "lora", given)
    set_field(tree, "lora.alpha", 4.0)
    assert tree == {"lora": {"rank": 8, "alpha": 4.0}} and given == {"rank": 8}


def test_no_scheduler_and_none_are_the_same():
    assert make_space(scheduler=None) == make_space(scheduler={"kind": "none"}) == make_space()
    with pytest.raises(BadConfig, match="`scheduler` is 3, but must be a mapping of names to values"):
        make_space(scheduler=3)


def test_all_problems_are_told_at_once():
    with pytest.raises(BadConfig, match="has 3 problems"):
        make_space(budget={"trials": 0}, seeds=[], objective={"metric": "nonsense"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nname: y", "the key 'name' is given twice"),
        ("- x", "a YAML mapping"),
        ("? [a, b]\n: 1", "space.yaml:1` is 'a key that is a list or mapping'"),
        ("parameters:\n  loss.window: {kind: int}\n  loss.window: {kind: int}", "the key 'loss.window' is given twice"),
    ],
)
def test_text_that_is_no_space(tmp_path, text, message):
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(BadInput, match=message):
        load_space(path)


def test_a_config_in_place_of_a_space_and_the_other_way_round(tmp_path):
    """One sentence, where each key would be unknown."""
    files = {"bft.yaml": "domain: a\nmodel: {path: starter}\n", "space.yaml": "name: a\nparameters: {}\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(BadInput, match=r"a search space, and this is the config of a run\. Give the search space"):
        load_space(tmp_path / "bft.yaml")
    with pytest.raises(BadInput, match=r"the config of a run, and this is a search space\. Give the config"):
        load_config(tmp_path / "space.yaml")


def test_a_shipped_space_is_suggested():
    with pytest.raises(BadInput, match=r"Did you mean `window`\?"):
        load_space("windw")


# ---- what is wrong is said, against the config ---------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            with_parameters(loss__windw={"kind": "int", "low": 1, "high": 4}),
            "`loss.windw` is not a known key. Did you mean `loss.window`? (Under loss.windw=1.)",
        ),
        (
            with_parameters(loss__window={"kind": "int", "low": 0, "high": 4}),
            "`loss.window` is 0, but must be greater than or equal to 1. Leave it out for its default, 256. (Under loss.window=0.)",
        ),
        (
            with_parameters(loss__window={"kind": "categorical", "values": [64, "all"]}),
            "`loss.window` is 'all', but must be a valid integer. Leave it out for its default, 256. (Under loss.window=all.)",
        ),
        (
            with_parameters(data__train__7__limit={"kind": "int", "low": 1, "high": 4}),
            "`data.train.7.limit` is '7', but must be an index from 0 to 0",
        ),
        (
            with_parameters(loss__weight_cap=floats(low=0.5, high=2.0)),
            "`loss.weight_cap` is 2.0, but must be below 1 with `sample_weight: complement`",
        ),
        ({"fixed": {"loss.gama": 1.0}}, "`loss.gama` is not a known key. Did you mean `loss.gamma`?"),
        (
            {"baselines": [{"name": "bft", "overrides": {"loss.windw": 3}}]},
            "`loss.windw` is not a known key. Did you mean `loss.window`? (Of baseline bft.)",
        ),
        (
            {"objective": {"metric": "pairs/auroc"}},
            "`objective.metric` is 'pairs/auroc', but must be measured by the runs of the config. Measured are "
            "validation/nll, validation/perplexity, validation/token_accuracy, validation/bits_per_byte, "
            "choices/probability,",
        ),
        (
            {"scheduler": {"kind": "asha", "grace_steps": 5, "metric": "names/probability"}},
            "`scheduler.metric` is 'names/probability', but must be measured",
        ),
        (
            {"scheduler": {"kind": "asha", "grace_steps": 45}},
            "`scheduler.grace_steps` is 45, but must be below the steps of the shortest trial (45)",
        ),
        (
            {"confirmation": {"overrides": {"evaluation.tasks.0.path": "other.jsonl"}}},
            "but must be such that validation/token_accuracy is measured on other data than in the search",
        ),
        (
            {"confirmation": {**CONFIRMATION, "test": CONFIRMATION["overrides"]}},
            "measured on other data than in the confirmation",
        ),
        (
            {"confirmation": {"overrides": {"loss.gamma": 2.0, **CONFIRMATION["overrides"]}}},
            "`confirmation.overrides.loss.gamma` is 2.0, but must be a field of data.validation or evaluation",
        ),
        (
            {"confirmation": CONFIRMATION, "objective": {"metric": "validation/perplexity"}},
            "`objective.metric` is 'validation/perplexity', but must be a mean over items",
        ),
        (
            {"confirmation": {"overrides": {"data.validation.0.pth": "a"}}},
            "`data.validation.0.pth` is not a known key. Did you mean `data.validation.0.path`? (Under confirmation.over",
        ),
    ],
)
def test_what_does_not_fit_the_config_is_said(fields, message):
    with pytest.raises(BadConfig) as caught:
        check_space(make_space(**fields), load_config("starter"))
    assert message in str(caught.value)


def test_a_second_objective_needs_the_base_model():
    second = {"metric": "choices/accuracy", "largest_loss": 0.1}
    space = make_space(
        objective={"metric": "validation/token_accuracy", "second": second}, fixed={"evaluation.before": False}
    )
    with pytest.raises(BadConfig, match=r"`evaluation.before` is False, but must be true with a second objective"):
        check_space(space, load_config("starter"))


# ---- from an assignment to a config --------------------------------------------------------------------


def test_an_assignment_becomes_a_config():
    space = make_space(
        parameters=WITH_FORMS,
        fixed={"loss.gamma": 2.0, "lora.rank": 4},
        domain="my_genes",
        budget={"trials": 8, "steps": 7},
    )
    base = load_config("starter")
    config = config_of(base, space, {"loss.method": "bft_inverse", "loss.window": 64, "loss.epsilon": 0.2}, seed=5)
    assert (config.domain, config.seed, config.schedule.steps) == ("my_genes", 5, 7)
    assert config.loss == LossConfig(method="bft_inverse", window=64, epsilon=0.2, gamma=2.0)
    assert config.lora is not None and config.lora.rank == 4
    assert base == load_config("starter")
    unchanged = {"domain", "seed", "loss", "lora", "schedule"}
    assert config.model_dump(exclude=unchanged) == base.model_dump(exclude=unchanged)


METHODS = {"loss.method": {"kind": "categorical", "values": ["bft", "sft", "bft_inverse"]}}


@pytest.fixture(scope="module")
def odd() -> Config:
    """The loss of a config that differs from every method; dumped, it names every field."""
    loss = {"method": "bft_inverse", "weight_cap": 3.0, "token_weight": "none", "window": 99}
    return make_config(load_config("starter").model_dump() | {"loss": loss})


@pytest.mark.parametrize("method", ["bft", "sft", "bft_inverse"])
def test_a_method_brings_its_whole_form(odd, method):
    """The fields of the old form must not stay behind; the window is of no form, and stays."""
    assert config_of(odd, make_space(parameters=METHODS), {"loss.method": method}).loss == LossConfig(
        method=method, window=99
    )


def test_where_no_method_is_searched_the_form_of_the_config_stays(odd):
    space = make_space(**{**MINIMAL, "fixed": {}})
    assert config_of(odd, space, {"loss.window": 64}).loss == odd.loss.model_copy(update={"window": 64})


def test_what_is_fixed_lies_over_the_form_of_a_method(odd):
    space = make_space(parameters=METHODS).model_copy(update={"fixed": {"loss.weight_cap": 0.5}})
    assert config_of(odd, space, {"loss.method": "bft"}).loss == LossConfig(method="bft", window=99, weight_cap=0.5)


def test_the_form_of_the_weight_brings_its_defaults():
    space = make_space(parameters={"loss.sample_weight": {"kind": "categorical", "values": ["complement", "inverse"]}})
    base = load_config("starter")
    assert config_of(base, space, {"loss.sample_weight": "inverse"}).loss == LossConfig(sample_weight="inverse")
    assert config_of(base, space, {"loss.sample_weight": "complement"}).loss == LossConfig()


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ({"loss.method": "bft"}, "`loss.window` is None, but must be given"),
        ({"loss.method": "bft", "loss.window": 65}, "`loss.window` is 65, but must be one of the values of the space"),
        (
            {"loss.method": "bft", "loss.window": 64, "loss.epsilon": 0.1},
            "`loss.epsilon` is 0.1, but must be left out unless loss.method is in \\['bft_inverse'\\]",
        ),
        ({"loss.method": "bft", "loss.window": 64, "seed": 1}, "`seed` is 1, but must be left out"),
        ({"loss.method": "bft_inverse", "loss.window": 64, "loss.epsilon": 0.15}, "`loss.epsilon` is 0.15"),
    ],
)
def test_assignments_are_checked(assignment, message):
    with pytest.raises(BadInput, match=message):
        config_of(load_config("starter"), make_space(parameters=WITH_FORMS), assignment)


def test_epochs_that_are_searched_are_not_hidden_by_steps():
    space = make_space(parameters={"schedule.epochs": {"kind": "categorical", "values": [1.0, 3.0]}})
    config = config_of(load_config("starter"), space, {"schedule.epochs": 3.0})  # the recipe gives steps
    assert (config.schedule.steps, config.schedule.epochs) == (None, 3.0)
    assert (steps_if_known(config, None), num_steps(config, [33])) == (None, 7)


def test_a_baseline_takes_nothing_from_the_loss_of_the_config():
    space = make_space(
        parameters={
            "loss.window": {"kind": "categorical", "values": [64, 128]},
            "optimizer.learning_rate": {"kind": "categorical", "values": [1e-4, 1e-3]},
        },
        fixed={"loss.gamma": 2.0, "model.dtype": "fp32"},
    )
    odd = make_config(load_config("starter").model_dump() | {"loss": {"method": "bft_inverse", "gamma": 3.0}})
    rates = baseline_assignments(space)
    assert rates == [{"optimizer.learning_rate": 1e-4}, {"optimizer.learning_rate": 1e-3}]
    found = [baseline_config(odd, space, baseline, rates[1], seed=3) for baseline in space.baselines]
    assert [config.loss for config in found] == [
        LossConfig(method="sft"),
        LossConfig(method="dft"),
        LossConfig(method="bft", window=256),
    ]
    assert {(config.optimizer.learning_rate, config.seed) for config in found} == {(1e-3, 3)}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"loss.method": "sft"}, "`baselines.0.overrides.loss.method` is 'sft', but must be bft, as published"),
        ({"loss.window": 64}, "`baselines.0.overrides.loss.window` is 64, but must be 256, as published"),
        ({"loss.gamma": 2.0}, "`baselines.0.overrides.loss.gamma` is 2.0, but must be 1.0"),
        ({"loss.weight_cap": 0.5}, "`baselines.0.overrides.loss.weight_cap` is 0.5, but must be null"),
        ({"loss": {"method": "dft"}}, "`baselines.0.overrides.loss.method` is 'dft', but must be bft"),
    ],
)
def test_what_is_called_bft_is_the_published_method(overrides, message):
    with pytest.raises(BadConfig) as caught:
        make_space(baselines=[{"name": "bft", "overrides": overrides}])
    assert message in str(caught.value) and "Give a baseline with other settings another name." in str(caught.value)
    make_space(baselines=[{"name": "bft", "overrides": {"loss.method": "bft"}}, {"name": "b", "overrides": overrides}])


@pytest.mark.parametrize(
    "overrides",
    [
        {"loss.window": 256, "lora.dropout": 0.1},
        {"optimizer.weight_decay": 0.1},
        {"loss.epsilon": 0.2},  # without effect on bft
    ],
)
def test_what_leaves_the_published_method_may_be_called_bft(overrides):
    (baseline,) = make_space(baselines=[{"name": "bft", "overrides": overrides}]).baselines
    assert (baseline.name, baseline.overrides) == ("bft", overrides)


def test_learning_rates_of_baselines_come_from_a_range_or_a_list():
    rate = floats(low=1e-4, high=1e-2, log=True)
    space = make_space(parameters={"optimizer.learning_rate": rate}, learning_rates=[1e-4, 1e-3, 1e-2])
    assert [found["optimizer.learning_rate"] for found in baseline_assignments(space)] == [1e-4, 1e-3, 1e-2]
    assert baseline_assignments(make_space()) == [{}]


# ---- combinations --------------------------------------------------------------------------------------


def test_the_grid_heeds_conditions():
    space = make_space(parameters=WITH_FORMS)
    found = list(grid(space))
    assert len(found) == num_combinations(space) == 3 + 3 * 3
    assert found[0] == {"loss.method": "bft", "loss.window": 64}
    assert [entry["loss.epsilon"] for entry in found if entry.get("loss.window") == 64 and len(entry) == 3] == [
        0.1,
        0.2,
        0.3,
    ]
    assert representatives(space, 12) == found
    assert active(space, {"loss.method": "bft"}) == ["loss.method", "loss.window"]


def test_a_condition_on_a_parameter_that_is_not_there_is_not_met():
    chain = {
        "loss.epsilon": {"kind": "categorical", "values": [0.1, 0.2], "when": {"loss.method": ["bft_inverse"]}},
        "loss.gamma": {"kind": "categorical", "values": [1.0, 2.0, 3.0], "when": {"loss.epsilon": [0.2]}},
        "loss.method": {"kind": "categorical", "values": ["bft", "bft_inverse"]},
    }
    space = make_space(parameters=chain)
    assert num_combinations(space) == len(list(grid(space))) == 1 + 1 + 3
    with pytest.raises(BadInput, match=r"left out unless loss\.epsilon is in"):
        config_of(load_config("starter"), space, {"loss.method": "bft", "loss.gamma": 1.0})


def test_large_grids_are_counted_without_going_through_them():
    large = {
        f"loss.{name}": {"kind": "int", "low": 1, "high": 1000} for name in ("window", "gamma", "epsilon", "weight_cap")
    }
    space = make_space(parameters=large)
    assert num_combinations(space) == 10**12
    assert len(representatives(space, 100)) == 1 + 4
    endless = make_space(parameters=WITH_FORMS | {"loss.gamma": floats(low=0.5, high=2.0)})
    assert num_combinations(endless) is None


@settings(max_examples=50)
@given(st.data())
def test_representatives_are_valid_assignments_and_hold_every_end(data):
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    fields = ["loss.window", "data.global_batch_size", "schedule.steps", "lora.rank"]
    parameters: dict[str, Any] = {}
    for place, size in enumerate(sizes):
        when = {}
        if place and data.draw(st.booleans()):
            parent = fields[data.draw(st.integers(0, place - 1))]
            when = {parent: [data.draw(st.sampled_from(parameters[parent]["values"]))]}
        parameters[fields[place]] = {"kind": "categorical", "values": list(range(4, 4 + size)), "when": when}
    space = make_space(parameters=parameters, baselines=[])
    every = list(grid(space))
    assert len(every) == num_combinations(space) == len({tuple(sorted(entry.items())) for entry in every})
    some = representatives(space, 0)
    assert all(entry in every for entry in some)
    for name, parameter in parameters.items():
        assert {entry[name] for entry in some if name in entry} == set(parameter["values"])


def test_rungs():
    assert Asha(grace_steps=20, reduction=3).rungs(180) == [20, 60]
    assert Asha(grace_steps=20, reduction=3).rungs(181) == [20, 60, 180]


# ---- what is measured ----------------------------------------------------------------------------------


def test_every_measured_name_is_known_and_has_a_direction():
    tasks = [
        {"kind": "text", "name": "general", "path": "a"},
        {"kind": "choice", "path": "a"},
        {"kind": "pairs", "path": "a"},
        {"kind": "generation", "name": "solutions", "path": "a"},
        {"kind": "names", "path": "a", "encoder": "e"},
        {"kind": "embedding_pairs", "name": "described_pairs", "descriptions": "a", "train": "b", "path": "c"},
        {"kind": "cells", "path": "a", "batch": "b"},
        {"kind": "rubric", "name": "r", "path": "a", "judges": [{"url": "u", "model": "m"}]},
        {"kind": "harness", "tasks": ["mmlu"]},
    ]
    config = with_overrides(load_config("starter"), {"evaluation.tasks": tasks}, "test")
    names = measured_names(config)
    assert all(is_judged(name) for name in names if not name.endswith("/"))
    assert is_measured(config, "harness/mmlu/acc") and not is_measured(config, "other/mmlu/acc")
    headlines = {entry.headline for entry in DOMAINS.values()} - {"cell_types/probability"}
    assert headlines <= set(names)
    assert source_of(config, "general/nll") == '["a", null, null, null]' and source_of(config, "mmlu/acc") == ""


# ---- what it costs -------------------------------------------------------------------------------------


def test_the_cost_of_a_study():
    space = make_space(
        parameters=WITH_FORMS | {"optimizer.learning_rate": {"kind": "categorical", "values": [1e-4, 1e-3]}},
        sampler={"kind": "grid"},
        budget={"steps": 90},
        scheduler={"kind": "asha", "grace_steps": 10, "reduction": 3},
        seeds=[0, 1],
        confirmation={**CONFIRMATION, "top_k": 2, "test": {"data.validation.0.path": "t.jsonl"}},
    )
    base = load_config("starter")
    check_space(space, base)
    cost = cost_of(space, base, longest=100)
    assert (cost.combinations, cost.distinct, cost.trials) == (24, 16, 24)
    assert cost.duplicates == ((8, "windows 128 and 256 both hold the longest sample (100 tokens) whole"),)
    assert cost.rungs == (10, 30)
    assert (cost.search_runs, cost.search_steps) == (32, 32 * 90)
    assert cost.search_steps_stopped == 2 * (16 * 10 + 6 * 20 + 2 * 60)
    assert (cost.tuning_runs, cost.tuning_steps) == (3 * 2 * 2, 12 * 90)
    assert (cost.confirmation_runs, cost.confirmation_steps) == (5 * 5, 25 * 90)
    assert cost.test_looks == 2
    assert cost_of(space, base).distinct == 24
    text = describe(space, base, longest=100)
    for line in (
        "combinations               24, of which 16 differ",
        "  duplicates               8: windows 128 and 256 both hold the longest sample (100 tokens) whole",
        "search, at most                  32         2,880",
        "all, at most                     69         6,210",
        "rungs                      10, 30: 1 of 3 is promoted",
    ):
        assert line in text, text


def test_an_unknown_length_is_said():
    space = make_space(sampler={"kind": "grid"}, budget={}, baselines=[])
    base = with_overrides(load_config("starter"), {"schedule.steps": None}, "test")
    text = describe(space, base)
    assert "2, of which 2 differ (the longest sample is not known" in text
    assert "3 epochs; how many steps that is follows from the data" in text
    assert cost_of(space, base, samples_per_source=[160]).search_steps == 2 * 30
    space = make_space(scheduler={"kind": "asha", "grace_steps": 90, "reduction": 3}, baselines=[])
    assert "not known without the data" in describe(space, base)
    known = with_overrides(base, {"schedule.steps": 90}, "test")
    assert "none before the last step: no trial stops early" in describe(space, known)


# ---- the shipped ones ----------------------------------------------------------------------------------

SHIPPED = sorted(spaces())


def test_what_is_shipped():
    assert set(SHIPPED) == {*DOMAINS, "starter", "ablation", "ablation_smollm2", "families"}


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_space_is_valid(name):
    space, base = load_study(name)
    assert space.name == name
    assert spaces()[name].read_text().startswith("# ")
    assert "all, at most" in describe(space, base, longest=350)
    assert validate(SearchSpace, yaml.safe_load(yaml.safe_dump(space.model_dump())), name) == space


@pytest.mark.parametrize("name", sorted(DOMAINS))
def test_domains_are_judged_by_their_headline_and_confirmed(name):
    space = load_space(name)
    assert (space.domain, space.objective.metric) == (name, DOMAINS[name].headline)
    assert space.confirmation is not None and space.confirmation.test
    assert len(space.confirmation.seeds) == 5 and not space.confirmation.min_seeds_waived
    assert [baseline.name for baseline in space.baselines] == ["sft", "dft", "bft"]
    assert len(baseline_assignments(space)) == 4


def test_the_ablation_tunes_every_published_form():
    space, base = load_study("ablation")
    assert {baseline.name for baseline in space.baselines} == loss.METHODS.keys()
    losses = [baseline_config(base, space, one, {LEARNING_RATE: 1e-3}).loss for one in space.baselines]
    assert losses == [LossConfig(method=baseline.name) for baseline in space.baselines]
    assert len(baseline_assignments(space)) == 2 and space.confirmation is not None
    assert (space.confirmation.top_k, len(space.confirmation.seeds), space.confirmation.register_champion) == (
        0,
        5,
        False,
    )
    # the trials of the search are those of the baseline bft: none is trained twice
    bft = next(baseline for baseline in space.baselines if baseline.name == "bft")
    for assignment in grid(space):
        ours, theirs = config_of(base, space, assignment, 0), baseline_config(base, space, bft, assignment, 0)
        assert run_key(ours, 230) == run_key(theirs, 230)


def test_no_two_combinations_of_the_families_are_the_same_run():
    """1,500 drawn ones, and the ends of all ranges: nothing that cannot differ."""
    space, base = load_study("families")
    draw, assignments = random.Random(0), representatives(space, 1)
    for _ in range(1500):
        chosen: dict[str, Any] = {}
        for name in space.ordered():
            one = space.parameters[name]
            if name in active(space, chosen):
                chosen[name] = draw.choice(one.finite()) if one.finite() else draw.uniform(one.low, one.high)
        assignments.append(chosen)
    configs = [config_of(base, space, chosen, 0) for chosen in assignments]
    distinct_assignments = {repr(sorted(chosen.items())) for chosen in assignments}
    assert len({run_key(config, 230) for config in configs}) == len(distinct_assignments) > 1000
    for chosen, config in zip(assignments, configs, strict=True):
        varied = {name.removeprefix("loss.") for name in chosen if name.startswith("loss.")}
        assert not varied & set(config.loss.unused_fields()), chosen
        assert config.loss.method == "bft" and config.loss.aggregate == "sample"
        assert config.loss.normalise == (config.loss.sample_weight == "inverse")
    forms = {config.loss.token_weight for config in configs}
    assert forms == {"none", "power", "prior", "entropy", "threshold", "group"}
    assert len(space.confirmation.seeds) == 5 and space.budget.trials == 24


@pytest.mark.parametrize("name", SHIPPED)
def test_spaces_fit_other_configs_too(name):
    """`--config`: any recipe with validation data, for the tasks come with the space."""
    if name in ("starter", "families", "ablation", "ablation_smollm2"):  # their tasks are on bundled data
        return
    space = load_space(name)
    check_space(space, load_base(space, "llama_8b_lora_80gb"), name)


def test_overrides_on_the_command_line(tmp_path):
    space = load_space(
        "gene_interaction",
        [
            "budget.trials=40",
            "loss.gamma=2.0",
            "data.train.0.path=my.jsonl",
            "evaluation.tasks.0.path=pairs.jsonl",
            "confirmation.overrides.data.validation.0.path=c.jsonl",
            "domain=mine",
            "parameters.loss.window={kind: int, low: 8, high: 64, log: true}",
        ],
    )
    assert (space.budget.trials, space.domain) == (40, "mine")
    assert space.confirmation is not None
    assert space.confirmation.overrides["data.validation.0.path"] == "c.jsonl"
    assert len(space.confirmation.overrides) == 2
    base = load_base(space)
    check_space(space, base)
    assignment = {"loss.method": "bft", "loss.window": 13, "optimizer.learning_rate": 1e-3}
    config = config_of(base, space, assignment)
    assert (config.loss.gamma, config.data.train[0].path, config.domain) == (2.0, "my.jsonl", "mine")
    assert source_of(config, "pairs/auroc") == '["pairs.jsonl", null, null, null]'
    with pytest.raises(BadConfig, match=r"`fixed.loss.window` is 3, but must be left out"):
        load_space("gene_interaction", ["loss.window=3"])


def test_no_scheduler_on_the_command_line():
    """The fields of the scheduler in the file go with it; those that are given after it are an error."""
    assert isinstance(load_space("gene_interaction").scheduler, Asha)
    assert load_space("gene_interaction", ["scheduler.kind=none"]).scheduler == NoScheduler()
    with pytest.raises(BadConfig, match=r"`scheduler\.grace_steps` is not a known key"):
        load_space("gene_interaction", ["scheduler.kind=none", "scheduler.grace_steps=4"])


def test_a_field_of_a_parameter_on_the_command_line():
    changes = ["values=[8, 16]", "values.1=32"]
    space = load_space("gene_interaction", [f"parameters.loss.window.{change}" for change in changes])
    assert space.parameters["loss.window"].values == [8, 32]
    with pytest.raises(BadInput, match="an index from 0 to 1"):
        load_space(
            "gene_interaction", [f"parameters.loss.window.{change}" for change in ("values=[8, 16]", "values.2=1")]
        )


def test_the_config_may_lie_beside_the_space(tmp_path):
    (tmp_path / "base.yaml").write_text(
        yaml.safe_dump({"domain": "d", "data": {"train": [{"path": "a"}], "validation": [{"path": "b"}]}})
    )
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(MINIMAL | {"config": "base.yaml"}))
    space, base = load_study(tmp_path / "study.yaml")
    assert Path(space.config) == tmp_path / "base.yaml" and base.domain == "d"


def test_loading_needs_no_heavy_library():
    code = "import sys; from bft_ray.space.load import load_study; from bft_ray.space.cost import describe\n"
    code += "print(describe(*load_study('starter')))\n"
    code += (
        "assert not {'torch', 'ray', 'numpy', 'optuna', 'transformers', 'mlflow'} & set(sys.modules), 'heavy import'"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(importlib.util.find_spec("setuptools") is None, reason="setuptools is not installed")
def test_spaces_are_found_in_an_installed_wheel(tmp_path):
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("__pycache__", "*.safetensors", "*.jsonl")
    for name in ("bft_ray", "search_spaces"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "from setuptools import build_meta; print(build_meta.build_wheel('../wheels'))"
    (tmp_path / "wheels").mkdir()
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    [wheel] = (tmp_path / "wheels").glob("*.whl")
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    code = f"import sys; sys.path.insert(0, {str(installed)!r})\n"
    code += "import bft_ray; from bft_ray.space.load import load_study, spaces\n"
    code += "print(bft_ray.__file__, *sorted(spaces())); load_study('ablation')\n"
    code += "from bft_ray.space.series import all_series, load_series; [load_series(path) for path in all_series().values()]"
    code += "; print(*sorted(all_series()))"
    out = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert out.split() == [str(installed / "bft_ray" / "__init__.py"), *SHIPPED, *sorted(all_series())]


@pytest.mark.parametrize("scheduler", [None, {"kind": "none"}, {"kind": "asha", "grace_steps": 2}])
def test_what_is_set_of_a_space_makes_the_same_space(scheduler):
    """A study keeps this of its space, and is read from it again."""
    space, _ = load_study("starter", overrides=[f"scheduler={json.dumps(scheduler)}"])
    again = SearchSpace.model_validate(space.model_dump(mode="json", exclude_unset=True))
    assert again == space


@pytest.mark.parametrize("name", spaces())
def test_what_is_set_of_a_shipped_space_makes_the_same_space(name):
    space = load_space(name)
    assert SearchSpace.model_validate(space.model_dump(mode="json", exclude_unset=True)) == space
