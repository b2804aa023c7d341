"""Answers side by side: the same prompts to each model, in a page for its user alone, and nowhere else."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from bft_ray.cli import main
from bft_ray.config import make_config, to_yaml
from bft_ray.tracking.registry import DEFAULT_SOURCE, register_champion
from bft_ray.tracking.run import Tracker

pytestmark = pytest.mark.slow
SECRET = "w11 w12 w13 w14 w15"


@pytest.fixture
def models(make_tree, tiny_model, tmp_path, monkeypatch) -> dict[str, Path]:
    """Two trained models, of which the second is the champion and the first the default of `test`; and prompts."""
    monkeypatch.chdir(tmp_path)
    found = {}
    for place, name in enumerate(("default", "champion")):
        model = AutoModelForCausalLM.from_pretrained(tiny_model)
        torch.manual_seed(place)
        with torch.no_grad():
            model.lm_head.weight.add_(0.5 * torch.randn_like(model.lm_head.weight))
        model.save_pretrained(found.setdefault(name, tmp_path / name))
        AutoTokenizer.from_pretrained(tiny_model).save_pretrained(found[name])
    rows = [{"id": f"row-{n}", "prompt": f"{SECRET} w{n}", "completion": f"w{n + 1}"} for n in range(3)]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "train.jsonl").write_text(json.dumps({"prompt": f"{SECRET}  W1", "completion": "w5"}))
    tree = make_tree(name=None)
    tree["data"]["train"], tree["data"]["validation"] = [{"path": str(tmp_path / "train.jsonl")}], []
    tree["checkpoint"], tree["evaluation"] = {"export": "last"}, {}
    config = make_config(tree)
    with Tracker.start(config.tracking, config.experiment, "s", {}, {"bft.kind": "study"}, keeper=False) as tracker:
        register_champion(
            config.tracking, "test", run_id=tracker.run_id, model_id=None, source=str(found["champion"]),
            tags={DEFAULT_SOURCE: str(found["default"])}, config_yaml=to_yaml(config), description="why",
        )  # fmt: skip
    return found


def said(page: str) -> list[dict[str, str]]:
    """A mapping a prompt: title -> text."""
    found = []
    for section in re.findall(r"<section.*?</section>", page, re.S):
        boxes = re.findall(r"<h4>(.*?)</h4><pre>(.*?)</pre>", section, re.S)
        found.append({html.unescape(title): html.unescape(text) for title, text in boxes})
    return found


def greedy(model: Path, prompt: str) -> str:
    """What transformers says by itself."""
    tokenizer, loaded = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    tokens = tokenizer(f"{prompt}\n", return_tensors="pt").input_ids
    made = loaded.generate(tokens, max_new_tokens=8, do_sample=False, pad_token_id=0)[0, tokens.shape[1] :]
    return tokenizer.decode(made, skip_special_tokens=True)


def test_base_default_and_champion_answer_the_same_prompts(models, tiny_model, tmp_path, capsys):
    words = ["compare", "--champion", "test", "--uri", f"sqlite:///{tmp_path}/mlflow.db", "--prompts", "test.jsonl"]
    assert main([*words, "--max-new-tokens", "8", "--out", "a/page.html"]) == 0
    told = capsys.readouterr()
    path = tmp_path / "a" / "page.html"
    assert told.out.strip() == "a/page.html" and path.stat().st_mode & 0o777 == 0o600
    found = said(path.read_text())
    assert [list(row) for row in found] == [["prompt", "gold answer", "base", "default", "champion"]] * 3
    for n, row in enumerate(found):
        assert row["prompt"] == f"{SECRET} w{n}" and row["gold answer"] == f"w{n + 1}"
        for name, model in (("base", tiny_model), ("default", models["default"]), ("champion", models["champion"])):
            assert row[name].removesuffix(" [cut off]") == greedy(model, row["prompt"])
    assert found[0]["default"] != found[0]["champion"]
    # the same question in another spelling is in the training data
    assert (
        "1 of 3 prompts are questions of the training data" in told.err
        and "1 of them are questions" in path.read_text()
    )
    assert SECRET not in told.out + told.err
    assert SECRET.encode() not in (tmp_path / "mlflow.db").read_bytes()
    assert not list((tmp_path / "mlartifacts").rglob("*.html"))


def test_any_models_and_a_page_that_was_readable_for_all(models, tmp_path):
    (tmp_path / "page.html").write_text("old")
    (tmp_path / "page.html").chmod(0o644)
    words = ["compare", str(models["default"]), str(models["champion"]), "--prompts", "test.jsonl", "--limit", "1"]
    assert main([*words, "--max-new-tokens", "4", "--out", "page.html"]) == 0
    assert (tmp_path / "page.html").stat().st_mode & 0o777 == 0o600
    (row,) = said((tmp_path / "page.html").read_text())
    assert list(row) == ["prompt", "gold answer", "default", "champion"]


def test_questions_with_options_are_asked_as_they_are_measured(models, tmp_path):
    item = {"context": "c0", "question": "w1?", "choices": ["w2", "w3"], "answer": 1}
    (tmp_path / "choices.jsonl").write_text(json.dumps(item))
    words = [
        "compare",
        str(models["default"]),
        "--prompts",
        "choices.jsonl",
        "--max-new-tokens",
        "4",
        "--out",
        "page.html",
    ]
    assert main(words) == 0
    (row,) = said((tmp_path / "page.html").read_text())
    assert (row["prompt"], row["gold answer"]) == ("c0\n\nw1?", "w3")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--prompts", "test.jsonl"], "one model at least, or --champion DOMAIN"),
        (["starter", "--prompts", "none.jsonl"], "`--prompts` is 'none.jsonl'"),
        (["starter", "--prompts", "empty.jsonl"], "`--prompts` is 'empty.jsonl'"),
        (["starter", "--prompts", "test.jsonl", "--limit", "0"], "`--limit` is 0, but must be at least 1"),
        (
            ["starter", "--prompts", "test.jsonl", "--max-new-tokens", "-1"],
            "`--max-new-tokens` is -1, but must be at least 1",
        ),
        (["--champion", "other", "--prompts", "test.jsonl"], "a domain with a champion"),
    ],
)
def test_what_cannot_be_compared(models, tmp_path, capsys, monkeypatch, words, says):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    (tmp_path / "empty.jsonl").touch()
    assert main(["compare", *words]) == 2
    assert says in capsys.readouterr().err and not list(tmp_path.glob("*.html"))


def test_every_model_is_checked_before_the_first_one_answers(models, tmp_path, capsys):
    weights = models["champion"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    for second, says in ((models["champion"], "model.safetensors"), (tmp_path / "nowhere", "nowhere")):
        assert main(["compare", str(models["default"]), str(second), "--prompts", "test.jsonl"]) == 2
        told = capsys.readouterr().err
        assert says in told and "asking" not in told
    assert not list(tmp_path.glob("*.html"))


def test_prompt_and_answer_fit_into_the_positions_of_each_model(models, tmp_path, capsys):
    """Learned positions end; rotary ones go on, which is told. `data.max_length`, which compare has not, bounds neither."""
    learned = tmp_path / "learned"
    size = len(AutoTokenizer.from_pretrained(models["default"]))
    GPT2LMHeadModel(
        GPT2Config(vocab_size=size, n_positions=64, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    ).save_pretrained(learned)
    AutoTokenizer.from_pretrained(models["default"]).save_pretrained(learned)
    rotary = models["default"] / "config.json"
    rotary.write_text(json.dumps(json.loads(rotary.read_text()) | {"max_position_embeddings": 64}))
    (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": " ".join(["w1"] * 50), "completion": "w2"}))
    words = ["--prompts", "long.jsonl", "--out", "page.html", "--max-new-tokens"]
    assert main(["compare", str(models["default"]), str(learned), *words, "40"]) == 2
    told = capsys.readouterr().err
    assert "a prompt of 52 tokens and an answer of up to 40', but must be at most 64 tokens together" in told
    assert "asking" not in told
    assert main(["compare", str(models["default"]), *words, "40"]) == 0
    assert "default was made for 64 positions, and answers badly beyond them" in capsys.readouterr().err
    assert main(["compare", str(models["default"]), str(learned), *words, "4"]) == 0
    assert "positions" not in capsys.readouterr().err
