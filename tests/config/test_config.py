"""The config: strict, helpful, fast to load, and every shipped file valid."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import yaml

from bft_ray.config import METHODS, LossConfig, flatten, load_config, make_config, schema, to_yaml
from bft_ray.config.load import _TEXT_BY_NAME, recipes
from bft_ray.errors import BadConfig, BadInput

MINIMAL = {"domain": "x", "data": {"train": [{"path": "a.jsonl"}]}, "checkpoint": {"export": "last"}}


def problems(**sections) -> str:
    with pytest.raises(BadConfig) as caught:
        make_config({**MINIMAL, **sections})
    return str(caught.value)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"loss": {"windw": 64}}, "`loss.windw` is not a known key. Did you mean `loss.window`?"),
        ({"los": {}}, "`los` is not a known key. Did you mean `loss`?"),
        ({"learning_rate": 1e-4}, "`learning_rate` is not a known key. Did you mean `optimizer.learning_rate`?"),
        ({"loss": {"rank": 8}}, "`loss.rank` is not a known key. Did you mean `lora.rank`?"),
        ({"lern": {}}, "`lern` is not a known key. Known: domain, name, seed, model, "),
        ({"kind": "x"}, "`kind` is not a known key. Known: domain, name, "),
        (
            {"checkpoint": {"metric": "validation/nnl"}},
            "`checkpoint.metric` is 'validation/nnl', but must be 'validation/nll'",
        ),
        ({"name": "x" * 101}, "text of at most 100 letters"),
        (
            {"data": {"train": [{"pth": "a"}]}},
            "`data.train.0.pth` is not a known key. Did you mean `data.train.0.path`?",
        ),
        ({"loss": {"window": "64"}}, "`loss.window` is '64', but must be a valid integer."),
        ({"schedule": {"epochs": 1e308}}, "`schedule.epochs` is 1e+308, but must be less than or equal to 1000000."),
        (
            {"loss": {"window": 0}},
            "`loss.window` is 0, but must be greater than or equal to 1. Leave it out for its default, 256.",
        ),
        ({"seed": -1}, "`seed` is -1, but must be greater than or equal to 0. Leave it out for its default, 0."),
        ({"schedule": {"steps": 0}}, "`schedule.steps` is 0, but must be greater than or equal to 1. That is: "),
        ({"loss": {"gamma": float("inf")}}, "`loss.gamma` is inf, but must be a finite number."),
        ({"loss": {"method": "bff"}}, "`loss.method` is 'bff', but must be 'sft', 'dft'"),
        (
            {"loss": {"weight_cap": 1.0}},
            "`loss.weight_cap` is 1.0, but must be below 1 with `sample_weight: complement`",
        ),
        (
            {"model": {"dtype": "bf16"}, "deepspeed": {"preset": "zero0"}},
            "`deepspeed.preset` is 'zero0', but must be zero1",
        ),
        (
            {"model": {"quantization": "nf4"}},
            "`model.quantization` is 'nf4', but must be null where all weights train: no step is as small",
        ),
        (
            {"model": {"quantization": "nf4"}, "lora": {}, "deepspeed": {"preset": "zero3", "offload": "all"}},
            "`deepspeed.preset` is 'zero3', but must be zero0 to zero2 with model.quantization",
        ),
        ({"deepspeed": {"offload": "all"}}, "`deepspeed.offload` is 'all', but must be none or optimizer below zero3."),
        (
            {"deepspeed": {"overlay": {"train_batch_size": 8}}},
            "`deepspeed.overlay.train_batch_size` is 8, but must be left out: bft-ray sets it. Use data.global_batch_size",
        ),
        (
            {"data": {"train": [{"path": "a"}], "micro_batch_tokens": 64, "max_length": 128}},
            "`data.micro_batch_tokens` is 64, but must be at least data.max_length (128)",
        ),
        (
            {"cluster": {"num_workers": 32}},
            "`cluster.num_workers` is 32, but must be at most data.global_batch_size (16)",
        ),
        ({"checkpoint": {}}, "`checkpoint.export` is 'best', but must be `last` without validation data"),
        ({"optimizer": {"betas": [0.9, 1.0]}}, "`optimizer.betas` is [0.9, 1.0], but must be two numbers in [0, 1)."),
        ({"optimizer": {"betas": [0.9]}}, "`optimizer.betas` is [0.9], but must be two numbers in [0, 1)."),
        ({"data": {"train": []}}, "`data.train` is [], but must be a list or mapping of at least 1 entry."),
        ({"lora": {"targets": 3}}, "`lora.targets` is 3, but must be a list, as in [a, b]."),
        (
            {"data": {"train": [{"path": "a"}], 1: 2}},
            "`data.1` is 1, but must be the name of a field: a number is none.",
        ),
        ({"evaluation": {"choices": []}}, "`evaluation.choices` is not a known key."),
        (
            {"evaluation": {"tasks": [{"kind": "choice", "pth": "a"}]}},
            "`evaluation.tasks.0.pth` is not a known key. Did you mean `evaluation.tasks.0.path`?",
        ),
        ({"evaluation": {"tasks": [{"path": "a"}]}}, "`evaluation.tasks.0.kind` is missing"),
        (
            {"evaluation": {"tasks": [{"kind": "chioce", "path": "a"}]}},
            "`evaluation.tasks.0.kind` is 'chioce', but must be one of 'text', 'choice', 'pairs'",
        ),
        (
            {"evaluation": {"tasks": [{"kind": "pairs", "path": "a", "question": "really?"}]}},
            "`evaluation.tasks.0.question` is 'really?', but must be a template with {gene_a} and {gene_b}.",
        ),
        (
            {"evaluation": {"tasks": [{"kind": "pairs", "path": "a", "yes": "no"}]}},
            "`evaluation.tasks.0.no` is 'no', but must be another answer than `yes`",
        ),
        (
            {"evaluation": {"tasks": [{"kind": "rubric", "name": "r", "path": "a", "judges": [{"url": "u"}]}]}},
            "`evaluation.tasks.0.judges.0.model` is missing: model name",
        ),
        (
            {"evaluation": {"tasks": [{"kind": "choice", "path": "a"}, {"kind": "choice", "path": "b"}]}},
            "`evaluation.tasks` is ['choices', 'choices'], but must be tasks with different names",
        ),
        (
            {"evaluation": {"tasks": [{"kind": "text", "name": "validation", "path": "a"}]}},
            "`evaluation.tasks` is ['validation'], but must be tasks of other names",
        ),
        ({"seed": 2**32}, "`seed` is 4294967296, but must be less than 4294967296."),
        ({"domain": None}, "`domain` is None, but must be a valid string."),
        ({"data": {"train": []}}, "`data.train` is []"),
    ],
)
def test_what_is_wrong_is_said(sections, message):
    assert message in problems(**sections)


def test_all_problems_are_told_at_once():
    text = problems(loss={"window": 0}, seed=-1, model={"dtyp": "bf16"})
    assert "has 3 problems" in text


def test_a_missing_field_is_named_with_its_meaning():
    with pytest.raises(BadConfig, match="`domain` is missing: biomedical sub-domain"):
        make_config({"data": {"train": [{"path": "a"}]}})


def test_overrides(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    config = load_config(
        path,
        [
            "loss.window=64",
            "optimizer.learning_rate=1e-4",
            "data.train.0.limit=5",
            "lora.rank=8",
            "cluster.address=null",
        ],
    )
    assert (config.loss.window, config.optimizer.learning_rate) == (64, 1e-4)
    assert config.data.train[0].limit == 5 and config.lora is not None and config.lora.rank == 8
    for override, message in [
        ("loss.window", "of the form section.field=value"),
        ("data.train.7.limit=5", "an index from 0 to 0"),
        ("data.train.².limit=5", "an index from 0 to 0"),
        ("domain.x=1", "its parent is a value"),
        ("data.date=2026-02-30", "`data.date` is '2026-02-30', but must be a YAML value.*no timestamp"),
        ("seed=!!int x", "`seed` .* no int"),
        ("lora={[a]: 1}", "`lora` .* a key that is a list or mapping"),
    ]:
        with pytest.raises(BadInput, match=message):
            load_config(path, [override])


def test_an_alias_is_a_copy_and_a_merge_key_may_be_replaced(tmp_path):
    """An override of the validation rows changed the training rows too, where both named one anchor."""
    path = tmp_path / "config.yaml"
    path.write_text(
        "domain: test\ndata:\n  train: [&rows {path: a.jsonl, limit: 3}]\n  validation: [*rows, {<<: *rows, limit: 4}]\n"
    )
    train, (one, two) = (load_config(path, ["data.validation.0.path=b.jsonl"]).data.model_dump()[x] for x in PARTS)
    assert (train[0]["path"], one["path"], two["path"]) == ("a.jsonl", "b.jsonl", "a.jsonl")
    assert (train[0]["limit"], one["limit"], two["limit"]) == (3, 3, 4)


PARTS = ("train", "validation")
BOMB = "".join(f"{new}: &{new} [{', '.join(10 * [f'*{old}'])}]\n" for old, new in zip("abcdef", "bcdefg", strict=True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", r"config.yaml:\d+"),
        ("a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + BOMB, "more than 1,000,000 values"),
        ("a: &a [*a]", "nested too deep|recursive"),
        ("seed: 1\nseed: 2", "the key 'seed' is given twice"),
        ("- a", "a YAML mapping"),
        ("a: 1\ndata: {date: 2026-02-30}", "config.yaml:2` is '2026-02-30, which is no timestamp that there is'"),
        ("a: !!bool perhaps", "config.yaml:1` is 'perhaps, which is no bool that there is'"),
        ("a: !!timestamp soon", "soon, which is no timestamp"),
        ("? [a, b]\n: 1", "config.yaml:1` is 'a key that is a list or mapping'"),
        ("a: !!set {? {b: 1}}", "a key that is a list or mapping"),
        ("a: " + 5000 * "[", "nested too deep"),
        ("!!python/object/apply:os.system ['true']", "could not determine a constructor"),
    ],
)
def test_text_that_is_no_config(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(BadInput, match=message):
        load_config(path)


def test_numbers_with_an_exponent_are_numbers(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(MINIMAL) + "optimizer: {learning_rate: 1e-4, eps: 1E-9, weight_decay: .5e-1}\n")
    optimizer = load_config(path).optimizer
    assert (optimizer.learning_rate, optimizer.eps, optimizer.weight_decay) == (1e-4, 1e-9, 0.05)


def test_a_recipe_is_suggested():
    with pytest.raises(BadInput, match=r"Did you mean `starter`\?"):
        load_config("startr")


@pytest.mark.parametrize("name", sorted(recipes()))
def test_every_recipe_is_valid_and_round_trips(name):
    config = load_config(name)
    assert make_config(yaml.safe_load(to_yaml(config))) == config
    assert recipes()[name].read_text().startswith("# ")  # `bft-ray config --recipes` shows the first line


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_a_set_of_defaults(method):
    config = LossConfig(method=method)
    for field, value in METHODS[method].items():
        assert getattr(config, field) == value
    assert LossConfig.model_validate(config.model_dump()) == config
    assert config.normalise == (config.sample_weight == "inverse")
    assert config.weight_cap == (8.0 if method == "bft_inverse" else None)


def test_the_form_of_the_weight_decides_its_defaults():
    assert LossConfig(method="bft", sample_weight="inverse").normalise is True
    assert LossConfig(method="bft_inverse", sample_weight="complement").weight_cap is None
    assert LossConfig(method="bft_inverse", weight_cap=None).weight_cap is None
    assert LossConfig(method="sft").unused_fields().count("window") == 1
    assert "window" not in LossConfig(method="bft").unused_fields()


def test_configs_cannot_be_changed():
    config = make_config(MINIMAL)
    with pytest.raises(ValueError, match="frozen"):
        config.loss.window = 3


def test_flat_form_and_schema():
    flat = flatten(make_config(MINIMAL))
    assert flat["loss.window"] == 256 and flat["data.train.0.path"] == "a.jsonl" and flat["lora"] is None
    described = json.loads(schema())
    assert described["$defs"]["LossConfig"]["properties"]["window"]["description"]
    missing = [
        f"{section}.{name}"
        for section, content in described["$defs"].items()
        for name, field in content["properties"].items()
        if "description" not in field
    ]
    assert not missing, "every field has one line of help"


def _fresh(code: str) -> float:
    """Seconds that `code` takes in a new process, without the interpreter's own start; best of three."""
    script = f"import time; t = time.perf_counter()\n{code}\nprint(time.perf_counter() - t)"
    return min(float(subprocess.check_output([sys.executable, "-c", script], text=True)) for _ in range(3))


def test_loading_needs_no_heavy_library():
    code = "import sys, bft_ray.config as c; c.load_config('starter')\n"
    code += "assert not {'torch', 'ray', 'numpy', 'transformers', 'mlflow'} & set(sys.modules), 'heavy import'"
    assert _fresh(code) > 0


def test_importing_the_package_loads_nothing():
    code = "import sys, bft_ray, bft_ray.cli; assert not {'torch', 'ray', 'pydantic', 'yaml'} & set(sys.modules)"
    assert _fresh(code) > 0


def test_a_name_that_is_none_is_told_with_one_that_is_near(make_tree):
    with pytest.raises(BadConfig) as caught:
        make_config(make_tree(domain="My Domain", name="../a b"))
    assert caught.value.problems == [
        "`domain` is 'My Domain', but must be made of small letters, digits and _ (a letter or digit first). "
        "For example my_domain.",
        "`name` is '../a b', but must be made of small letters, capital letters, digits and _ . - (a letter or digit "
        "first). For example a_b.",
    ]


@pytest.mark.parametrize("value", ["/data/" + "deep/" * 40 + "rows.jsonl", "s3://bucket/" + "deep/" * 40])
def test_a_path_is_told_whole(value):
    assert f"is '{value}', but must be" in str(BadInput("data.train", value, "a file"))


@pytest.mark.parametrize(
    "value", ["word " * 40, "ACGT" * 40, "https://user:secret@host/" + "x" * 90, "/a?" + "token" * 40]
)
def test_a_text_is_not(value):
    assert value not in str(BadInput("x", value, "a file"))


def test_what_stands_behind_a_mapping_of_text_is_one_key(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    config = load_config(path, ["tracking.tags.mlflow.note.content=a note", "cluster.resources_per_worker.v5.8=1"])
    assert config.tracking.tags == {"mlflow.note.content": "a note"}
    assert config.cluster.resources_per_worker == {"v5.8": 1.0}


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("name=2024_11", "`name` is 202411, but must be text, which YAML does not take this for. Quote it"),
        (
            "name=2024-11-05",
            "`name` is datetime.date(2024, 11, 5), but must be text, which YAML does not take this for",
        ),
        ("data.train.0.columns.prompt={question}", "must be text. Where it holds braces or brackets, quote it"),
        ("data.train.0.columns.prompt={a}: {b}", """is quoted twice: data.train.0.columns.prompt='"{a} {b}"'."""),
        (
            "evaluation.tasks.0.kind=choice",
            "the list is empty. For example evaluation.tasks='[{...}]', an entry between",
        ),
    ],
)
def test_a_value_that_yaml_takes_for_another_is_told_with_its_quotes(tmp_path, override, told):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(MINIMAL | {"evaluation": {"tasks": []}}))
    with pytest.raises((BadConfig, BadInput)) as caught:
        load_config(path, [override])
    assert told in str(caught.value)


@pytest.mark.parametrize(("text", "read"), [("010", 8), ("1:30", 90), ("-0_17", -15), ("1:30.5", 90.5)])
def test_numbers_that_yaml_reads_in_another_base_are_refused(text, read, tmp_path):
    told = f"{text}, which YAML reads as {read} (quote it, or use base 10)"
    with pytest.raises(BadInput, match=re.escape(told)):
        load_config("starter", [f"seed={text}"])
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(MINIMAL) + f"seed: {text}\n")
    with pytest.raises(BadInput, match=re.escape(told)):
        load_config(path)


def test_the_same_signs_as_text_are_text():
    assert load_config("starter", ["tracking.tags.time='1:30'", "name='010'"]).tracking.tags == {"time": "1:30"}
    assert load_config("starter", ["seed=0", "optimizer.eps=0.01"]).seed == 0


def test_the_fields_whose_overrides_keep_their_dots_are_the_mappings_of_the_config():
    def mappings(tree: dict, name: str = "") -> set[str]:
        own = {name} if "additionalProperties" in tree and isinstance(tree["additionalProperties"], dict) else set()
        inner = [mappings(part, key) for key, part in tree.get("properties", {}).items()]
        unions = [mappings(part, name) for part in tree.get("anyOf", [])]
        return own.union(*inner, *unions)

    whole = json.loads(schema())
    assert set().union(*map(mappings, [whole, *whole["$defs"].values()])) == set(_TEXT_BY_NAME)
