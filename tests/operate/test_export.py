"""A champion that leaves the house: merged, as plain transformers loads it, stopping where it should, and "
"pushed to a hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from bft_ray.cli import main
from bft_ray.config import Config, make_config, to_yaml
from bft_ray.errors import BftError
from bft_ray.model.causal_lm import load_model, load_tokenizer
from bft_ray.model.export import export_model
from bft_ray.model.release import check_release, release
from bft_ray.operate import export
from bft_ray.tracking.registry import register_champion
from bft_ray.tracking.run import Tracker
from tests.support.upload_hub import upload_hub

pytestmark = pytest.mark.slow
TAGS = {
    "study": "s/test", "metric": "choices/probability", "value": "0.46611", "gain": "0.0123", "interval": "[0.001, 0.02]",
    "detectable": "0.011", "arm": "w64", "verdict": "candidate", "data_fingerprint": "9" * 64,
}  # fmt: skip


def adapter(config: Config, folder: Path) -> None:
    """An adapter that moves the model, written as a study writes it."""
    model: Any = load_model(config.model, config.lora, 0)
    torch.manual_seed(0)
    weights = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            weights[name] = 0.05 * torch.randn_like(parameter)
    from peft import get_peft_model_state_dict

    model.load_state_dict(weights, strict=False)
    export_model(model, get_peft_model_state_dict(model), load_tokenizer(config.model), config.model, folder)


@pytest.fixture
def champion(make_tree, tmp_path, monkeypatch) -> Config:
    """A champion `bft-test/1` whose weights are an adapter."""
    monkeypatch.chdir(tmp_path)
    tree = make_tree(lora={"rank": 4, "alpha": 8.0}, name=None)
    tree["model"] = {**tree["model"], "dtype": "fp32"}
    config = make_config(tree)
    adapter(config, tmp_path / "weights")
    with Tracker.start(config.tracking, config.experiment, "s", {}, {"bft.kind": "study"}, keeper=False) as tracker:
        register_champion(
            config.tracking, "test", run_id=tracker.run_id, model_id=None, source=str(tmp_path / "weights"), tags=TAGS,
            config_yaml=to_yaml(config), description="why",
        )  # fmt: skip
    return config


def test_the_merged_model_is_the_adapter_on_its_base(champion, tmp_path, capsys):
    assert main(["export", "test", "--uri", champion.tracking.uri, "--out", "out"]) == 0
    out = tmp_path / "out"
    code = (  # another process, with nothing of bft-ray in it
        "import sys, json, torch; from transformers import AutoModelForCausalLM as M, AutoTokenizer as T;"
        "m = M.from_pretrained('out', dtype=torch.float32); t = T.from_pretrained('out');"
        "p = m(torch.arange(20)[None]).logits[0, -1].tolist();"
        "print(json.dumps([p, type(m).__name__, 'bft_ray' in sys.modules]))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=540,
        check=True,
        env=os.environ | {"TQDM_DISABLE": "1"},
    )
    logits, kind, has_bft = json.loads(found.stdout.splitlines()[-1])
    assert not has_bft and "Peft" not in kind
    with torch.no_grad():
        expected = load_model(champion.model.model_copy(update={"path": str(tmp_path / "weights")}))(
            torch.arange(20)[None]
        ).logits[0, -1]
        base = load_model(champion.model)(torch.arange(20)[None]).logits[0, -1]
    assert torch.tensor(logits) == pytest.approx(expected, abs=1e-4) and (expected - base).abs().max() > 1e-2
    assert not (out / "adapter_config.json").exists()
    said = capsys.readouterr().out
    assert "checked   loads with transformers; stops at <" in said and "vLLM" in said

    card = (out / "README.md").read_text()
    for line in (
        "| gain over the default | 0.0123 |",
        "| interval of the gain | [0.001, 0.02] |",
        "| mean over seeds and items | 0.4661 |",
    ):
        assert line in card
    assert str(tmp_path) not in card  # no path of this machine
    assert oct(out.stat().st_mode & 0o777) == "0o700"
    assert main(["export", "test", "--uri", champion.tracking.uri, "--out", "out"]) == 2  # it is not empty
    assert "a new or empty folder" in capsys.readouterr().err


def test_a_model_that_does_not_stop_where_it_should_is_refused(champion, tmp_path):
    release(tmp_path / "weights", champion.model, tmp_path / "out")
    settings = GenerationConfig.from_pretrained(tmp_path / "out")
    ends = settings.eos_token_id
    settings.eos_token_id = 7  # none of those that end answers in training
    settings.save_pretrained(tmp_path / "out")
    with pytest.raises(BftError, match="generation does not stop at "):
        check_release(tmp_path / "out", tmp_path / "weights", champion)
    settings.eos_token_id = ends
    settings.save_pretrained(tmp_path / "out")
    found = check_release(tmp_path / "out", tmp_path / "weights", champion)
    assert found.difference < 1e-4 and found.num_parameters == sum(
        p.numel() for p in load_model(champion.model).parameters()
    )


def test_a_model_with_other_weights_is_refused(champion, tmp_path):
    release(tmp_path / "weights", champion.model, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        next(model.parameters()).mul_(3)
    model.save_pretrained(tmp_path / "out")
    with pytest.raises(BftError, match="other probabilities than the export"):
        check_release(tmp_path / "out", tmp_path / "weights", champion)


def test_weights_that_are_gone_or_changed_are_named(champion, tmp_path, capsys):
    (weights,) = (tmp_path / "weights").glob("*.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert main(["export", "test", "--uri", champion.tracking.uri]) == 2
    assert "unchanged since it was written" in capsys.readouterr().err
    (tmp_path / "weights").rename(tmp_path / "away")
    assert main(["export", "test", "--uri", champion.tracking.uri]) == 2
    assert "a folder with the weights of bft-test/1" in capsys.readouterr().err
    assert not (tmp_path / "bft-test-1").exists()


@pytest.mark.release  # three commands; the test after it pushes in this process
def test_it_is_pushed_to_a_private_repository(champion, tmp_path, monkeypatch, capsys):
    with upload_hub() as hub:
        words = ["export", "test", "--uri", champion.tracking.uri, "--push", "lab/model"]
        run = [sys.executable, "-m", "bft_ray.cli", *words, "--out", "out"]
        env = os.environ | {
            "HF_ENDPOINT": hub.address,
            "HF_TOKEN": "hf_loopback",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
        }
        found = subprocess.run(run, capture_output=True, text=True, timeout=900, env=env)
        assert found.returncode == 0, found.stderr[-2000:]
        assert hub.repositories == {"lab/model": True} and hub.tokens == {"Bearer hf_loopback"}
        assert {name: len(content) for name, content in hub.files.items() if name != ".gitattributes"} == {
            file.name: file.stat().st_size for file in (tmp_path / "out").iterdir()
        }
        assert f"pushed    {hub.address}/lab/model" in found.stdout
        hub.refuses = 403
        refused = subprocess.run([*run[:-1], "other"], capture_output=True, text=True, timeout=900, env=env)
    assert refused.returncode == 2 and "`--push` is 'lab/model'" in refused.stderr
    assert "to push it again: `hf upload lab/model other`" in refused.stderr
    assert AutoTokenizer.from_pretrained(tmp_path / "other")  # what was made stays
    away = subprocess.run([*run[:-1], "third"], capture_output=True, text=True, timeout=900, env=env)
    assert away.returncode == 1 and "the hub does not answer" in away.stderr and "Nothing was merged" in away.stderr
    assert not (tmp_path / "third").exists()  # so the same command can be given again


def test_a_push_that_breaks_off_says_how_to_go_on(champion, tmp_path, monkeypatch):
    """The merged model stays, and is not merged again."""
    monkeypatch.setattr(export, "_require_repository", lambda repository: repository)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_TOKEN", "hf_loopback")
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", refuse_connection)
    with pytest.raises(BftError, match="`hf upload lab/model 'my out'`"):
        export.export_champion("test", champion.tracking.uri, None, "my out", "lab/model", print)
    assert AutoTokenizer.from_pretrained(tmp_path / "my out")


def refuse_connection(*args, **options):
    raise ConnectionError("refused")
