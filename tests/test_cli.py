"""The commands as a user types them: exit status, messages, speed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from bft_ray.cli import main


def bft_ray(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "bft_ray.cli", *arguments], capture_output=True, text=True, cwd=cwd, timeout=360
    )


def test_help_names_every_command_and_is_quick():
    taken = []
    for _ in range(3):
        began = time.perf_counter()
        result = bft_ray("--help")
        taken.append(time.perf_counter() - began)
    for command in ("train", "evaluate", "config", "doctor", "init"):
        assert f"\n    {command}" in result.stdout
    modules = subprocess.check_output(
        [sys.executable, "-c", "import sys, bft_ray.cli; bft_ray.cli.make_parser(); print(*sys.modules)"], text=True
    )
    assert not {"torch", "ray", "pydantic", "yaml", "numpy"} & set(modules.split())


LONG = "x" * 300


@pytest.mark.parametrize("command", ["train", "evaluate", "config", "doctor", "init"])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert "usage: bft-ray " + command in capsys.readouterr().out


def test_nobody_who_reads_is_no_error():
    """`bft-ray config --schema | head -1`, and with a reader that is gone before the first word."""
    for arguments in (["config", "--schema"], ["config", "--help"]):
        process = subprocess.Popen(
            [sys.executable, "-m", "bft_ray.cli", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait(60) in (0, 141)
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "bft_ray.cli", "config", "--recipes"]
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 1 and ended.stderr.startswith("error: a disk is full"), ended.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_closed_stream_is_no_error(closed, tmp_path):
    command = f"{sys.executable} -c 'from bft_ray.cli import entry; entry()' config --schema {closed}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=180, cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""


@pytest.mark.parametrize("command", ["train", "search"])
def test_a_job_without_a_place_that_outlasts_it_is_refused(command, tmp_path, monkeypatch, capsys):
    job = tmp_path / "_ray_pkg_0123"
    job.mkdir()
    monkeypatch.chdir(job)
    monkeypatch.delenv("STUDY_DATABASE", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    given = ["--database", f"sqlite:///{tmp_path}/studies.db"] if command == "search" else []
    assert main([command, "starter", *given]) == 2
    said = capsys.readouterr().err
    assert "`cluster.storage_path` is 'bft_results', but must be outside of the job's working directory" in said
    assert main([command, "starter", f"cluster.storage_path={tmp_path}/results", *given]) == 2
    assert "`tracking.uri` is 'sqlite:///mlflow.db', but must be outside" in capsys.readouterr().err
    assert not list(job.iterdir()) and not (tmp_path / "results").exists()


def test_no_command_shows_the_help(capsys):
    assert main([]) == 2
    assert "COMMAND" in capsys.readouterr().out


def test_config_shows_schema_recipes_and_the_resolved_config(capsys):
    assert main(["config", "--recipes"]) == 0
    assert "starter" in capsys.readouterr().out
    assert main(["config", "--schema"]) == 0
    assert '"LossConfig"' in capsys.readouterr().out
    assert main(["config", "starter", "loss.window=64"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["loss"]["window"] == 64


@pytest.mark.parametrize("command", ["train", "evaluate", "config", "doctor"])
def test_a_typo_ends_with_status_2_and_without_a_traceback(command):
    result = bft_ray(command, "starter", "loss.windw=64")
    assert result.returncode == 2
    assert "`loss.windw` is not a known key. Did you mean `loss.window`?" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_init_then_config(tmp_path):
    data = tmp_path / "qa.csv"
    data.write_text("question,answer\n" + "".join(f"what is {i}?,it is {i}\n" for i in range(40)))
    made = bft_ray("init", str(data), "--out", "bft.yaml", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    shown = bft_ray("config", "bft.yaml", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    again = bft_ray("init", str(data), "--out", "bft.yaml", cwd=tmp_path)
    assert again.returncode == 2 and "--force" in again.stderr


@pytest.mark.slow
def test_evaluate_prints_metrics_and_writes_records(make_tree, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(make_tree()))
    result = bft_ray("evaluate", str(config), "--out", str(tmp_path / "out"))
    assert result.returncode == 0, result.stderr
    assert "validation/nll" in result.stdout
    assert (tmp_path / "out" / "metrics.json").is_file()
    records = (tmp_path / "out" / "records.jsonl").read_text()
    assert records.count("\n") == 12 and '"row-0"' in records


def test_evaluate_one_task_against_an_earlier_evaluation(make_tree, tmp_path, capsys):
    exam, config = tmp_path / "exam.jsonl", tmp_path / "config.yaml"
    items = [{"question": f"w{n}", "choices": ["w1", f"w{n} w2"], "answer": n % 2} for n in range(6)]
    exam.write_text("".join(json.dumps(item) + "\n" for item in items))
    config.write_text(yaml.safe_dump(make_tree(evaluation={"tasks": [{"kind": "choice", "path": str(exam)}]})))
    out = str(tmp_path / "before")
    assert main(["evaluate", str(config), "--task", "choices", "--out", out]) == 0
    shown = capsys.readouterr().out
    assert "choices/accuracy" in shown and "validation/nll" not in shown
    assert main(["evaluate", str(config), "--against", out]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[:3] == ["metric", "before", "after"] and len(table) == 5
    assert "at 95 % one of 20 differs by chance" in table[4]
    assert table[1].split()[-3:] == ["0", "0", "6"]
    config.write_text(yaml.safe_dump(make_tree()))
    assert main(["evaluate", str(config), "--task", "validation", "--against", out]) == 2
    said = capsys.readouterr()
    assert (
        "validation/nll" in said.out and "an evaluation with a metric of this one: nothing can be compared" in said.err
    )
    config.write_text(yaml.safe_dump(make_tree(evaluation={"tasks": [{"kind": "choice", "path": str(exam)}]})))
    assert main(["evaluate", str(config), "--task", "chioces"]) == 2
    assert "one of validation, choices" in capsys.readouterr().err
    assert main(["evaluate", str(config), "--against", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "metrics.json: No such file or directory. Write one with" in said and "Error" not in said
    for words, message in (
        (["--against", out, "--question", "choices/nonsense"], "These are: validation/nll,"),
        (["--against", out, "--task", "choices", "--question", "validation/nll"], "These are: choices/probability,"),
        (["--against", out, "--question", "validation/nll"], "It has: choices/accuracy,"),
        (["--question", "choices/accuracy"], "left out without --against"),
    ):
        assert main(["evaluate", str(config), *words, "--out", str(tmp_path / "refused")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "refused").exists()  # told before anything was measured


def test_what_is_required_is_named_alone(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate"])
    assert capsys.readouterr().err.endswith("the following arguments are required: CONFIG\n")


def test_overrides_may_stand_behind_options(capsys):
    assert main(["config", "starter", "seed=3", "--show", "loss.window=77"]) == 0
    shown = capsys.readouterr().out
    assert "window: 77" in shown and "seed: 3" in shown
    for wrong in (["config", "starter", "--shw", "loss.window=77"], ["init", "x.jsonl", "--force", "a=b"]):
        with pytest.raises(SystemExit):
            main(wrong)
        assert "unrecognized arguments" in capsys.readouterr().err


def test_a_training_whose_record_lacks_something_ends_with_status_1(make_tree, tmp_path, monkeypatch, capsys):
    """What was trained is told all the same; the run itself is what `train` gives back."""
    from bft_ray.train import launch

    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(make_tree()))
    missing = {"the model bft-test": "PermissionError: [Errno 13] Permission denied: '/mlruns'"}
    monkeypatch.chdir(tmp_path)
    result = launch.TrainResult("run", "1" * 32, "results/run", "results/run/export", 6, {}, {}, missing)
    monkeypatch.setattr(launch, "train", lambda config: result)
    assert main(["train", str(path)]) == 1
    said = capsys.readouterr()
    assert "exported  results/run/export (weights of step 6)" in said.out
    assert f"bft-ray evaluate {path} --model results/run/export --against before" in said.out.splitlines()[-1]
    assert said.err == (
        "error: the model is trained and exported, but MLflow lacks: the model bft-test (PermissionError: "
        "[Errno 13] Permission denied: '/mlruns')\n"
    )


@pytest.mark.parametrize(
    "words",
    [
        ("config", LONG),
        ("search", LONG, "--dry-run"),
        ("search", "starter", "--config", LONG, "--dry-run", "--no-measure"),
        ("search", "starter", "--database", f"sqlite:///{LONG}", "--status"),
        ("train", "starter", f"model.path={LONG}"),
        ("train", "starter", f"model.adapter={LONG}"),
        ("train", "starter", f"name={LONG}"),
        ("train", "starter", f"data.train.0.path={LONG}"),
        ("evaluate", "starter", "--model", LONG),
        ("evaluate", "starter", f"evaluation.tasks.0.path={LONG}"),
        ("compare", "starter", "--prompts", LONG),
        ("init", LONG),
        ("report", LONG),
        ("after-rl", LONG, "--dry-run"),
    ],
    ids=lambda words: " ".join(word for word in words if "x" * 9 not in word),
)
def test_a_name_that_is_too_long_is_one_error(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "but must be " in said and "Traceback" not in said, said
