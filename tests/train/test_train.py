"""Training on real Ray Train workers with DeepSpeed: the record that it leaves, death and resumption, refusals."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from mlflow import MlflowClient
from safetensors.torch import load_file

from bft_ray.config import make_config
from bft_ray.errors import BadConfig, BadInput, NonFinite
from bft_ray.model.causal_lm import load_tokenizer
from bft_ray.train import progress
from bft_ray.train.checkpoint import step_name
from bft_ray.train.launch import train
from bft_ray.train.progress import Board, Watcher
from bft_ray.waits import Wait
from tests.support.alone import run_alone
from tests.support.family import train_workers
from tests.support.ranks import run_ranks
from tests.support.recorder import Recorder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ray_of_two():
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def two_workers(make_tree, tmp_path, **sections) -> dict:
    cluster = {"num_workers": 2, "gpus_per_worker": 0, "storage_path": str(tmp_path / "results")}
    return make_tree(cluster=cluster, **sections)


def history(client: MlflowClient, run_id: str, name: str) -> list[tuple[int, float]]:
    return sorted((metric.step, metric.value) for metric in client.get_metric_history(run_id, name))


def test_a_worker_that_dies_changes_nothing(ray_of_two, make_tree, tmp_path):
    """SIGKILL at a random step: the same parameters bit for bit as of two ranks without Ray, one MLflow run, every step once."""
    sections = {
        "loss": {"method": "bft_inverse", "window": 8},
        "schedule": {"steps": 100, "shape": "cosine"},
        "evaluation": {"every_steps": 50},
        "checkpoint": {"export": "last", "every_steps": 10},
        "deepspeed": {"preset": "zero2"},
    }
    tree = two_workers(make_tree, tmp_path, name="killed", **sections)
    calm, _ = run_ranks(run_alone, 2, tree, str(tmp_path / "calm"))

    recorder, victims = Recorder(), []
    moment = 10 * random.SystemRandom().randint(2, 4)
    checkpoint = tmp_path / "results/killed" / step_name(moment)
    killer = threading.Thread(target=lambda: victims.append(kill_at(checkpoint)), daemon=True)
    killer.start()
    killed = train(make_config(tree), recorder)
    killer.join(10)

    events = [event for event, _ in recorder.events]
    assert victims and "resume" in events, f"killed {victims} after step {moment}, and nothing resumed"
    ours, theirs = load_file(Path(killed.export) / "model.safetensors"), calm["weights"]
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], torch.from_numpy(theirs[name])) for name in theirs)

    client = MlflowClient(make_tree()["tracking"]["uri"])
    assert client.get_run(killed.run_id).info.status == "FINISHED"
    (experiment,) = client.search_experiments(filter_string="name = 'bft/test'")
    assert len(client.search_runs([experiment.experiment_id])) == 1
    for name in ("train/nll", "train/loss", "validation/nll"):
        told = [(values["step"], values[name]) for _, values in calm["events"] if name in values]
        assert history(client, killed.run_id, name) == told, name
    assert [step for step, _ in history(client, killed.run_id, "train/nll")] == list(range(1, 101))


def kill_at(checkpoint: Path) -> int:
    """SIGKILL to a worker when this folder is there: the news of a step may come to the driver seconds late."""
    wait_for(checkpoint)
    time.sleep(random.random() * 0.1)
    victim = random.choice(train_workers()).pid
    os.kill(victim, signal.SIGKILL)
    return victim


def wait_for(checkpoint: Path) -> None:
    end = time.monotonic() + 600
    while not checkpoint.exists():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture(scope="module")
def lora_run(ray_of_two, tree_in, tmp_path_factory):
    """A run under ZeRO-3 with LoRA and a task, on two workers: its tree and its result."""
    folder = tmp_path_factory.mktemp("lora")
    choices = folder / "choices.jsonl"
    items = [
        {"id": f"q{i}", "question": f"w{i} w2", "choices": ["w3 w4", "w5 w6 w7", "w8"], "answer": i % 3}
        for i in range(9)
    ]
    choices.write_text("\n".join(map(json.dumps, items)))
    tree = two_workers(
        partial(tree_in, folder),
        folder,
        lora={"rank": 4, "alpha": 8.0},
        deepspeed={"preset": "zero3"},
        optimizer={"learning_rate": 1e-2},
        evaluation={"every_steps": 3, "tasks": [{"kind": "choice", "name": "quiz", "path": str(choices)}]},
    )
    return tree, train(make_config(tree), Recorder())


def test_the_record_of_a_lora_run(lora_run, tmp_path):
    """What MLflow holds, what the export is, and that base weights stay as they were."""
    from peft import AutoPeftModelForCausalLM

    tree, result = lora_run
    config = make_config(tree)
    model = AutoPeftModelForCausalLM.from_pretrained(result.export)
    tokenizer = load_tokenizer(config.model.model_copy(update={"path": result.export}))
    generated = model.generate(**tokenizer("w1 w2 w3", return_tensors="pt"), max_new_tokens=5, do_sample=False)
    assert generated.shape[1] > 4
    base = load_file(Path(config.model.path) / "model.safetensors")
    own = {name.replace("base_model.model.", "").replace(".base_layer", ""): p for name, p in model.named_parameters()}
    assert all(torch.equal(own[name], value) for name, value in base.items())
    moved = [p for name, p in model.named_parameters() if "lora_B" in name]
    assert moved and all(p.abs().max() > 0 for p in moved)

    client = MlflowClient(tree["tracking"]["uri"])
    run = client.get_run(result.run_id)
    assert run.data.params["loss.method"] == "bft" and run.data.params["lora.rank"] == "4"
    assert {"quiz/accuracy", "final/quiz/accuracy", "validation/nll", "train/confidence_p50"} <= run.data.metrics.keys()
    assert run.data.metrics["final/validation/nll"] == pytest.approx(result.after["validation/nll"])
    best = min(value for step, value in history(client, result.run_id, "validation/nll") if step > 0)
    assert result.after["validation/nll"] == pytest.approx(best, rel=1e-4)  # the best weights were exported
    assert result.after["validation/nll"] < history(client, result.run_id, "validation/nll")[0][1]
    assert {entry.dataset.name for entry in run.inputs.dataset_inputs} == {"train", "validation"}
    assert "| quiz/accuracy |" in run.data.tags["mlflow.note.content"]  # the description on the run's page
    files = {item.path for item in client.list_artifacts(result.run_id)}
    assert {"config.yaml", "model_card.md", "training.html"} <= files
    page = Path(client.download_artifacts(result.run_id, "training.html", str(tmp_path))).read_text()
    assert (
        page.count("<svg viewBox") == 3
        and "`validation`" not in page
        and "<code>validation</code>, 12 of 12 items" in page
    )
    card = (Path(result.export) / "README.md").read_text()
    assert "library_name: peft" in card and "| quiz/accuracy |" in card
    assert run.outputs.model_outputs, "the exported adapter is no logged model of the run"
    tied = {
        metric.key: metric.dataset_name
        for metric in client.get_logged_model(run.outputs.model_outputs[0].model_id).metrics
    }
    assert tied["final/validation/nll"] == "validation" and tied["final/quiz/accuracy"] is None
    kept = sorted(path.name for path in Path(result.folder).glob("step-*"))
    assert kept[-1] == "step-00000006" and len(kept) <= 2  # the best and the last


def test_a_batch_with_nan_stops_the_run_and_names_its_samples(ray_of_two, make_tree, tmp_path, poisoned_model):
    cluster = {"gpus_per_worker": 0, "storage_path": str(tmp_path / "results")}
    tree = make_tree(cluster=cluster, model={"path": str(poisoned_model), "dtype": "fp32"})
    tree["data"]["validation"] = []
    tree["checkpoint"] = {"export": "last"}
    with pytest.raises(NonFinite, match=r"loss of step \d+ is not finite in the micro-batch of samples row-"):
        train(make_config(tree), Recorder())
    client = MlflowClient(tree["tracking"]["uri"])
    (experiment,) = client.search_experiments(filter_string="name = 'bft/test'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FAILED"
    assert "not finite" in run.data.tags["bft.reason"]


@pytest.mark.parametrize(
    "signum",
    [
        pytest.param(signal.SIGINT, marks=pytest.mark.long),
        pytest.param(signal.SIGKILL, marks=pytest.mark.release),  # `jobs/chaos.py` does this to searches
    ],
)
def test_an_interrupted_command_goes_on(make_tree, tmp_path, signum):
    """A true status whatever ended the driver, nothing left running, and the same command finishes the run."""
    tree = make_tree(
        cluster={"num_workers": 1, "gpus_per_worker": 0, "storage_path": str(tmp_path / "results")},
        schedule={"steps": 80},
        evaluation={"every_steps": 10},
    )
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tree))
    command = [sys.executable, "-m", "bft_ray.cli", "train", str(config)]
    client = MlflowClient(tree["tracking"]["uri"])
    said, started = interrupt(command, signum, tmp_path / f"results/run/{step_name(20)}")
    assert "resumes after step" not in said
    (experiment,) = client.search_experiments(filter_string="name = 'bft/test'")
    end = time.monotonic() + 60
    while (run := client.search_runs([experiment.experiment_id])[0]).info.status == "RUNNING":
        assert time.monotonic() < end, f"the run is still said to be running after {signum!r}"
        time.sleep(0.5)
    assert run.info.status == "KILLED" and run.data.tags["bft.reason"]

    again = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert again.returncode == 0, again.stderr
    assert "resumes after step" in again.stderr
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert [step for step, _ in history(client, run.info.run_id, "train/nll")] == list(range(1, 81))
    end = time.monotonic() + 120  # Ray's agents look for their raylet once a minute
    while left := [p for p in started if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]:
        assert time.monotonic() < end, f"processes are left behind: {left}"
        time.sleep(0.5)


def interrupt(command: list[str], signum: int, checkpoint: Path) -> tuple[str, list[psutil.Process]]:
    """Start a command, end it so when this checkpoint is on the disk; what it said, and its processes."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as driver:
        wait_for(checkpoint)
        family = psutil.Process(driver.pid).children(recursive=True)
        driver.send_signal(signum)
        _, said = driver.communicate(timeout=180)
    assert driver.returncode == (-signum if signum == signal.SIGKILL else 130), said
    return said, family


def test_a_name_cannot_be_used_for_another_run(lora_run):
    tree, first = lora_run
    again = Recorder()
    assert train(make_config(tree), again) == first and not again.events  # finished: nothing is trained twice
    with pytest.raises(BadConfig, match=r"`loss.window` was 256, and is now 3"):
        train(make_config(tree | {"loss": {"window": 3}}), Recorder())


def test_nothing_is_imported_that_only_others_need():
    """Seconds of each start: the compiler where no model is run, MLflow with DeepSpeed on the workers."""
    code = (
        "import sys\n"
        "import bft_ray.study.driver, bft_ray.profile.run, bft_ray.train.launch, bft_ray.train.worker, ray.train.torch\n"
        "assert not {'torch._dynamo', 'transformers'} & set(sys.modules)\n"
        "from bft_ray.train.imports import import_deepspeed\n"
        "import_deepspeed()\n"
        "assert 'mlflow' not in sys.modules\n"
        "import mlflow\n"
        "mlflow.MlflowClient"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_two_workers_on_one_cpu_are_refused(make_tree, tmp_path):
    import ray

    ray.shutdown()
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        with pytest.raises(BadInput, match=r"`cluster.num_workers` is 2, but must be .*1"):
            train(make_config(two_workers(make_tree, tmp_path)), Recorder())
    finally:
        ray.shutdown()


def test_no_event_is_lost_to_a_board_that_answers_late(ray_of_two, monkeypatch):
    """On a busy machine an actor may answer after seconds; it has forgotten by then what it handed out."""
    import ray

    class Slow(Board):
        def take(self):
            taken = super().take()
            time.sleep(0.3)
            return taken

    monkeypatch.setattr(progress, "_TAKE_S", 0.1)
    board, display = ray.remote(num_cpus=0)(Slow).remote(), Recorder()
    with Watcher(board, display, Wait("the first event"), interval_s=0.01) as watcher:
        for step in range(1, 9):
            ray.get(board.post.remote("step", {"step": step}))
        monkeypatch.setattr(progress, "_TAKE_S", 5.0)
    assert not watcher._thread.is_alive()
    assert [values["step"] for _, values in display.events] == list(range(1, 9))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"tracking": {"uri": "http://127.0.0.1:9", "timeout_s": 2.0}}, r"`tracking.uri` is 'http://127.0.0.1:9'"),
        ({"cluster": {"storage_path": "/proc/none"}}, r"`cluster.storage_path` is '/proc/none'"),
        ({"lora": {"targets": ["query"]}}, r"`lora.targets` is 'query'.*It has: .*q_proj"),
        ({"model": {"path": "/no/such/model"}}, r"`model.path` is '/no/such/model'"),
        ({"data": {"train": [{"path": "/no/such.jsonl"}]}}, r"/no/such.jsonl"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(make_tree, sections, message):
    import ray

    before = ray.is_initialized()
    with pytest.raises(BadInput, match=message):
        train(make_config(make_tree(**sections)), Recorder())
    assert ray.is_initialized() == before


@pytest.fixture
def poisoned_model(tiny_model, tmp_path) -> Path:
    """The tiny model with a NaN in the embedding of one word."""
    import shutil

    from safetensors.torch import save_file

    folder = tmp_path / "poisoned"
    shutil.copytree(tiny_model, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][40] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_passwords_stay_out_of_what_a_run_leaves(make_tree):
    from bft_ray.train import launch
    from bft_ray.train.record import record_text

    config = make_config(make_tree(tracking={"uri": "postgresql://user:hunter2@127.0.0.1/mlflow"}))
    written: dict[str, str] = {}

    class Tracker:  # the server is a process boundary; what is handed to it is what counts
        def log_text(self, text, file):
            written[file] = text

    launch._log_inputs(Tracker(), config, {})
    written["run.json"] = record_text(config, "id", {})
    assert json.loads(written["run.json"])["config"]["loss.method"] == "bft"
    assert "config.yaml" in written and not any("hunter2" in text for text in written.values())


def test_a_display_that_fails_is_told_once_and_ends_nothing(ray_of_two, caplog):
    """Such as a terminal that was closed: later events are still seen, and what one waits for is still known."""
    import ray

    def closed(step: int) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    board, display, wait = ray.remote(num_cpus=0)(Board).remote(), Recorder(closed), Wait("the first event")
    with caplog.at_level(logging.WARNING), Watcher(board, display, wait):
        for step in (1, 2, 3):
            ray.get(board.post.remote("step", {"step": step}))
        ray.get(board.post.remote("saving", {"step": 3}))
    assert [event for event, _ in display.events] == ["step", "step", "step", "saving"]
    assert str(wait) == "training: saving the checkpoint of step 3"
    told = [record.getMessage() for record in caplog.records if record.name == "bft_ray.train.progress"]
    assert told == ["progress cannot be shown; the training goes on"]
