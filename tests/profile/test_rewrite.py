"""One space: what `init` wrote is what `profile` rewrites and `search` takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from bft_ray.cli import main
from bft_ray.config import load_config
from bft_ray.errors import BadInput
from bft_ray.operate.init.settings import Device
from bft_ray.operate.init.study import Request, write_study
from bft_ray.profile.rewrite import replaced, rewrite, space_beside
from bft_ray.space.load import load_study
from tests.support.rows import questions, write_csv

PARAMETERS = {
    "loss.window": {"kind": "categorical", "values": [4, 8]},
    "loss.epsilon": {"kind": "categorical", "values": [0.05], "when": {"loss.method": ["bft_inverse"]}},
    "loss.weight_cap": {"kind": "categorical", "values": [2.0, None], "when": {"loss.method": ["bft_inverse"]}},
    "optimizer.learning_rate": {"kind": "categorical", "values": [1.0]},
}


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with what `init` makes of 60 rows."""
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "heart.csv", ["question", "answer"], questions(60))
    write_study(Request("heart.csv"), Device(False, True, 2))
    return tmp_path


def test_only_what_a_profile_owns_is_rewritten(place):
    path = place / "search_space.yaml"
    text = (
        path.read_text()
        .replace("trials: 12}", "trials: 40}")
        .replace("values: [bft, bft_inverse, bft_group]", "values: [bft_inverse, bft]")
    )
    text = text.replace("  loss.window:", "  # my own remark\n  loss.window:") + "fixed: {loss.gamma: 2.0}\n"
    path.write_text(text)
    made = rewrite(path, PARAMETERS)
    assert made.changes == (
        "loss.window: [4, 8, 16, 32] -> [4, 8]",
        "loss.epsilon: 0.01 to 0.2 -> [0.05]",
        "loss.weight_cap: [2.0, 4.0, 8.0, null] -> [2.0, null]",
    )  # the learning rates are not measured by a profile
    assert path.read_text() == text  # nothing is written before all is known
    made.save()
    before, after = text.splitlines(), path.read_text().splitlines()
    changed = [(old.split(":")[0], new) for old, new in zip(before, after, strict=True) if old != new]
    assert changed == [
        ("  loss.window", "  loss.window: {kind: categorical, values: [4, 8]}  # tokens; estimated"),
        ("  loss.epsilon", "  loss.epsilon: {kind: categorical, values: [0.05], when: {loss.method: [bft_inverse]}}"),
        (
            "  loss.weight_cap",
            "  loss.weight_cap: {kind: categorical, values: [2.0, null], when: {loss.method: [bft_inverse]}}",
        ),
    ]
    assert (place / "search_space.yaml.before").read_text() == text
    assert load_study(path)[0].budget.trials == 40
    again = rewrite(path, PARAMETERS)
    again.save()
    assert again.changes == () and (place / "search_space.yaml.before").read_text() == text


def test_a_value_in_any_style_is_replaced_and_the_rest_is_kept():
    text = """\
# top
parameters:
  loss.window:  # which
    kind: categorical
    values:
      - 64
      - 128  # long
  # between
  other: {kind: int,
          low: 1, high: 3}  # end
config: bft.yaml
"""
    first = replaced(text, ("parameters", "loss.window"), {"kind": "categorical", "values": [1, 2]})
    assert yaml.safe_load(first)["parameters"]["loss.window"] == {"kind": "categorical", "values": [1, 2]}
    assert "# which" in first and "# between" in first and "high: 3}  # end" in first and "# long" in first
    second = replaced(first, ("parameters", "other"), {"kind": "categorical", "values": ["true", None, "a b"]})
    assert yaml.safe_load(second)["parameters"]["other"]["values"] == ["true", None, "a b"]
    third = replaced(second, ("config",), "/a folder/bft.yaml")
    assert yaml.safe_load(third) == yaml.safe_load(second) | {"config": "/a folder/bft.yaml"}
    with pytest.raises(BadInput, match="a key of the search space"):
        replaced(text, ("parameters", "none"), 1)


def test_only_the_space_of_this_config_is_its_space(place):
    assert space_beside("bft.yaml") == Path("search_space.yaml")
    Path("other.yaml").write_text(Path("bft.yaml").read_text())
    assert space_beside("other.yaml") is None and space_beside("starter") is None
    path = place / "search_space.yaml"
    path.write_text("# mine\n" + path.read_text())
    assert space_beside("bft.yaml") is None


@pytest.mark.slow
def test_the_command_rewrites_the_space_and_names_the_next_one(place, capsys):
    text = Path("search_space.yaml").read_text()
    words = ["profile", "bft.yaml", "--no-mlflow", "profile.epsilons=[0.05, 0.2]", "--out", "out"]
    assert main(words) == 0
    said = capsys.readouterr().out.splitlines()
    start = next(place for place, line in enumerate(said) if line.startswith("space "))
    assert said[start] == "space     search_space.yaml (rewritten; what it was: search_space.yaml.before)"
    assert said[start + 1].startswith("          loss.window: [4, 8, 16, 32] -> [")
    assert said[-2:] == [
        "next      bft-ray search search_space.yaml --dry-run",
        "          bft-ray search search_space.yaml",
    ]
    space, base = load_study("search_space.yaml")
    assert base == load_config("bft.yaml") and Path("search_space.yaml.before").read_text() == text
    old, new = yaml.safe_load(text), yaml.safe_load(Path("search_space.yaml").read_text())
    owned = ("loss.window", "loss.epsilon", "loss.weight_cap")
    for tree in (old, new):
        tree["parameters"] = {name: one for name, one in tree["parameters"].items() if name not in owned}
    assert old == new and set(space.parameters["loss.epsilon"].ends()) <= {0.05, 0.2}
    # the copy in the folder of the profile says the same from there
    assert load_study("out/search_space.yaml")[0] == space
    assert main(words) == 0
    assert "space     search_space.yaml (as it was: " in capsys.readouterr().out
    # of other data or another model it tells nothing about this space
    kept = Path("search_space.yaml").read_bytes()
    assert main([*words[:3], "data.train.0.limit=9", "--out", "less"]) == 0
    said = capsys.readouterr().out
    assert "search_space.yaml stays as it is: this profile is of other settings than its config's" in said
    assert "bft-ray search less/search_space.yaml" in said and Path("search_space.yaml").read_bytes() == kept
    own, _ = load_study("less/search_space.yaml")
    validation = own.confirmation.overrides["data.validation.0.path"]
    assert validation == str(place / "bft_confirmation.jsonl")  # beside the validation file, and named like it


@pytest.mark.slow
def test_a_proposal_of_its_own_confirms_where_there_are_splits_and_says_what_is_missing(place, capsys):
    small = ["data.train.0.limit=6", "data.validation.0.limit=4", "data.max_length=128", "profile.windows=[8, 32]"]
    assert main(["profile", "starter", *small, "--no-mlflow", "--out", "out"]) == 0
    capsys.readouterr()
    space, base = load_study("out/search_space.yaml")
    assert space.confirmation.overrides == {"data.validation.0.path": "starter:gene_interaction/confirmation"}
    assert space.confirmation.test == {"data.validation.0.path": "starter:gene_interaction/test"}
    assert len(space.confirmation.seeds) == 5 and space.scheduler.grace_steps == base.schedule.steps // 9 == 5
    for name in ("bft_confirmation.jsonl", "bft_test.jsonl", "search_space.yaml"):
        Path(name).unlink()
    assert main(["profile", "bft.yaml", "data.train.0.limit=9", "--no-mlflow", "--out", "own"]) == 0
    said = capsys.readouterr().out
    assert "No confirmation: there is no file of the confirmation split beside the validation data" in said
    assert "with at least 5 seeds" in said
    assert load_study("own/search_space.yaml")[0].confirmation is None
