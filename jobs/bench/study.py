"""Parts of `jobs.bench.search` that run whole studies."""

from __future__ import annotations

import argparse
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from bft_ray.config import Config, make_config
from bft_ray.space.definition import SearchSpace
from bft_ray.space.duplicates import distinct
from bft_ray.study.agenda import PARTS
from bft_ray.study.checks.ready import inspect_study
from bft_ray.study.controller import Controller, segments_ahead
from bft_ray.study.definition import Study
from bft_ray.study.records.database import Database
from bft_ray.study.records.ranking import best
from bft_ray.study.records.record import TrialRecord
from bft_ray.study.records.store import SEARCH, Store

OBJECTIVE = "validation/token_accuracy"
_STUDY_S = 3600  # bound of a study


def run_study(space: SearchSpace, base: Config, folder: Path, *, merge: bool = True, actor: Any = None) -> Controller:
    """A study without MLflow and without a choice; within `bft_ray.workers.spread.connect` only.

    Args:
        merge: False: windows are not known to hold the longest sample.
        actor: what carries out segments instead of training.
    """
    from bft_ray.study.execute import ray_tune
    from bft_ray.study.execute.slots import num_slots

    facts = inspect_study(space, base)
    database = Database(f"sqlite:///{folder}/{space.name}.db")
    store = Store.create(database, space, base, facts.fingerprints)
    longest = facts.longest if merge else None
    study = Study(space.name, space, base, longest, facts.samples_per_source, str(folder / space.name))
    slots = num_slots(facts.first.cluster)
    controller = Controller(study, store, slots, ahead=segments_ahead(facts.first))
    ray_tune.run(controller, facts.first, actor=actor or ray_tune.TrialActor)
    return controller


def make_space(name: str, parameters: dict[str, list[Any]], **more: Any) -> SearchSpace:
    """A grid without baselines and confirmation."""
    tree = {
        "name": name,
        "parameters": {field: {"kind": "categorical", "values": values} for field, values in parameters.items()},
        "objective": {"metric": OBJECTIVE},
        "sampler": {"kind": "grid"},
        "budget": {},
        "baselines": [],
    }
    return SearchSpace.model_validate(tree | more)


def write_study(folder: Path, space: SearchSpace, base: dict[str, Any]) -> list[str]:
    """The command that runs a study, from files."""
    (folder / "config.yaml").write_text(yaml.safe_dump(base))
    path = folder / f"{space.name}.yaml"
    path.write_text(yaml.safe_dump(space.model_dump(mode="json") | {"config": "config.yaml"}))
    url = f"sqlite:///{folder}/studies.db"
    return [sys.executable, "-m", "bft_ray.cli", "search", str(path), "--database", url, "--no-profile"]


def records_of(folder: Path, name: str) -> list[TrialRecord]:
    with Database(f"sqlite:///{folder}/studies.db") as database:
        return Store.find(database, f"{name}/bench").open_part(SEARCH).records()


# --- against fresh processes --------------------------------------------------------------------------------


def fresh_trainers(trees: Sequence[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Each run by a fresh TorchTrainer with DeepSpeed, one after the other in one Ray; seconds, losses, metrics."""
    from bft_ray.evaluate.run import evaluate_model
    from bft_ray.workers.connect import connect
    from jobs.fresh import fresh_run

    done = []
    with connect(make_config(trees[0]).cluster):
        for number, tree in enumerate(trees):
            config = make_config(tree)
            began = time.perf_counter()
            train = fresh_run(config, str(folder / f"run-{number}"))
            model = config.model.model_copy(update={"path": str(folder / f"run-{number}" / "export"), "adapter": None})
            metrics = evaluate_model(config.model_copy(update={"model": model})).metrics
            seconds = time.perf_counter() - began
            done.append({"losses": [step["train/loss"] for step in train], "metrics": metrics, "seconds": seconds})
    return done


def study_part(args: argparse.Namespace, folder: Path, trees: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Trials an hour of a study on all cores, against a fresh TorchTrainer for each; the same losses?"""
    from bft_ray.study.records.segment import Run
    from bft_ray.workers.connect import connect

    base = make_config({key: value for key, value in trees[0].items() if key != "loss"})
    losses = [tree["loss"] for tree in trees]
    values = {
        f"loss.{field}": sorted({loss[field] for loss in losses}) for field in ("window", "epsilon", "weight_cap")
    }
    space = make_space("rate", values, fixed={"loss.method": "bft_inverse"}, budget={"trials": 2 * args.trials})
    with connect(base.cluster):
        controller = run_study(space, base, folder)
    ran = [record for record in controller.records(SEARCH) if not record.duplicate_of]
    warm = [record for record in ran[args.trials :] if record.finished and record.started]
    span = max(one.finished or 0 for one in warm) - min(one.started or 0 for one in warm)
    configs = [controller.study.config(record, 0, {}) for record in ran[: args.fresh]]
    fresh = fresh_trainers([config.model_dump(mode="json") for config in configs], folder)
    runs = [run for record in ran if (run := Run.of("rate", controller.study.files_of(record, 0)))]
    assert len(runs) == len(ran)
    losses = [[step["train/loss"] for step in run.train] for run in runs]
    same = [own == one["losses"] for own, one in zip(losses, fresh, strict=False)]
    fresh_s = statistics.mean(one["seconds"] for one in fresh)
    return {
        "fresh_s": fresh_s,
        "fresh_trials_per_hour": 3600 / fresh_s,
        "study_trials_per_hour": 3600 * len(warm) / span,
        "ratio": fresh_s * len(warm) / span,
        "warm_start_s": statistics.median(run.seconds["start"] for run in runs[args.trials :]),
        "losses_identical": all(same),
        "num_compared": len(same),
    }


def study_table(found: dict[str, Any]) -> str:
    return (
        f"fresh TorchTrainer + DeepSpeed: {found['fresh_s']:.1f} s a trial, {found['fresh_trials_per_hour']:,.0f} an hour\n"
        f"study: {found['study_trials_per_hour']:,.0f} an hour, each starts in {found['warm_start_s']:.2f} s: "
        f"{found['ratio']:.1f} times as many; "
        f"losses of {found['num_compared']} identical: {found['losses_identical']}"
    )


# --- a grid -------------------------------------------------------------------------------------------------


def grid_part(args: argparse.Namespace, folder: Path, trees: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """5 windows x 3 epsilons x 3 caps: from the command to the best configuration, against one fresh run after another.

    How good that is: the same grid without early stops says what there was to find, and other seeds how much is noise.
    """
    base = {key: value for key, value in trees[0].items() if key != "loss"} | {"schedule": {"steps": args.grid_steps}}
    base["tracking"] = {"uri": f"sqlite:///{folder}/mlflow.db"}
    base["cluster"] = base["cluster"] | {"storage_path": str(folder / "results")}
    values: dict[str, list[Any]] = {
        "loss.window": [8, 16, 32, 64, 128],
        "loss.epsilon": [0.01, 0.05, 0.2],
        "loss.weight_cap": [2.0, 4.0, 8.0],
    }
    asha = {"kind": "asha", "grace_steps": max(1, args.grid_steps // 9), "reduction": 3}
    fixed = {"loss.method": "bft_inverse"}
    stopped, whole = (
        make_space("stopped", values, fixed=fixed, scheduler=asha),
        make_space("whole", values, fixed=fixed),
    )
    seconds = {}
    for space in (stopped, whole) if args.exhaustive else (stopped,):
        began = time.time()
        command = write_study(folder, space, base)
        subprocess.run(command, check=True, cwd=folder, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        seconds[space.name] = max(one.finished or 0 for one in records_of(folder, space.name)) - began
    found = {name: best(records_of(folder, name), OBJECTIVE) for name in seconds}
    fresh = []
    for number in range(args.fresh // 2):
        began = time.time()
        loss = ["loss.method=bft_inverse", f"loss.window={values['loss.window'][number]}"]
        command = [sys.executable, "-m", "bft_ray.cli", "train", "config.yaml", f"name=fresh-{number}", *loss]
        subprocess.run(command, check=True, cwd=folder, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        fresh.append(time.time() - began)
    num, each = len(records_of(folder, "stopped")), statistics.mean(fresh)
    top, all_of_it = found["stopped"], found.get("whole")
    assert top is not None
    result = {
        "configurations": num,
        "study_s": seconds["stopped"],
        "fresh_run_s": each,
        "fresh_grid_s": num * each,
        "share": seconds["stopped"] / (num * each),
        "best": top.value,
    }
    if all_of_it is not None:
        result |= {
            "study_without_stops_s": seconds["whole"],
            "best_without_stops": all_of_it.value,
            "sd_over_seeds": _noise(base, dict(all_of_it.assignment) | fixed),
        }
    return result


def _noise(base: dict[str, Any], assignment: dict[str, Any]) -> float:
    from jobs.bench.search import run_in_turn

    loss = {field.removeprefix("loss."): value for field, value in assignment.items()}
    done = run_in_turn([base | {"loss": loss, "seed": seed} for seed in (1, 2, 3, 4)])
    return statistics.stdev(max(one["metrics"].items())[1][OBJECTIVE] for one in done)


def grid_table(found: dict[str, Any]) -> str:
    text = (
        f"{found['configurations']} configurations: {found['study_s']:.0f} s from the command to the best; one fresh run "
        f"after another {found['fresh_grid_s']:.0f} s ({found['fresh_run_s']:.1f} s each): 1/{1 / found['share']:.1f}\n"
        f"best {OBJECTIVE} {found['best']:.4f}"
    )
    if "best_without_stops" in found:
        text += (
            f"; without early stops {found['best_without_stops']:.4f} in {found['study_without_stops_s']:.0f} s, "
            f"one standard deviation over seeds is {found['sd_over_seeds']:.4f}"
        )
    return text


# --- duplicates ---------------------------------------------------------------------------------------------


def merge_part(args: argparse.Namespace, folder: Path, trees: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Windows 64 to 1024 on data with short samples, with and without merging: steps saved, and the same winner?"""
    from bft_ray.workers.connect import connect

    windows = [64, 128, 256, 512, 1024]
    found = {}
    for path in args.merge_data:
        tree = {key: value for key, value in trees[0].items() if key not in ("loss", "schedule")}
        tree["schedule"] = {"steps": args.merge_steps}
        longest = args.merge_longest.get(path)
        source = {"path": path}
        tree["data"] = tree["data"] | {
            "train": [source],
            "max_length": longest or 1024,
            "too_long": "drop",
            "micro_batch_tokens": 2048,
        }
        tree["evaluation"] = {"batch_tokens": 4096}
        base, name = make_config(tree), Path(path).parent.name
        records = {}
        with connect(base.cluster):
            for merge in (True, False):
                space = make_space(f"{name}-{'merged' if merge else 'all'}", {"loss.window": windows})
                controller = run_study(space, base, folder, merge=merge)
                records[merge] = controller.records(SEARCH)
                if merge:
                    facts = controller.study.longest
                    configs = [controller.study.config(record, 0, {}) for record in records[merge]]
                    possible = (len(windows) - len(distinct(configs, facts))) * args.merge_steps
        by = {merge: {r.assignment["loss.window"]: r.value for r in records[merge]} for merge in records}
        winner = {merge: top for merge in records if (top := best(records[merge], OBJECTIVE)) is not None}
        found[name] = {
            "longest": facts,
            "saved_steps": sum(r.num_steps for r in records[True] if r.duplicate_of),
            "possible_steps": possible,
            "values_identical": by[True] == by[False],
            "winner": winner[True].assignment["loss.window"],
            "winner_unmerged": winner[False].assignment["loss.window"],
        }
    return found


def merge_table(found: dict[str, Any]) -> str:
    return "\n".join(
        f"{name}: longest sample {one['longest']}; {one['saved_steps']} steps saved of {one['possible_steps']} possible; "
        f"all values identical: {one['values_identical']}; winner window {one['winner']} (unmerged {one['winner_unmerged']})"
        for name, one in found.items()
    )


# --- killed -------------------------------------------------------------------------------------------------


def kills_part(args: argparse.Namespace, folder: Path, trees: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A deterministic study of 24 trials, undisturbed and with its driver killed at random moments: the same?"""
    base = {key: value for key, value in trees[0].items() if key != "loss"} | {"schedule": {"steps": 6}}
    base["tracking"] = {"uri": f"sqlite:///{folder}/mlflow.db"}
    more = {
        "budget": {"trials": 24},
        "sampler": {"kind": "tpe", "startup_trials": 8},
        "scheduler": {"kind": "asha", "grace_steps": 2, "reduction": 2},
        "deterministic": True,
    }
    values: dict[str, list[Any]] = {
        "loss.method": ["bft", "bft_inverse"],
        "loss.window": [8, 16, 32, 64, 128],
        "optimizer.learning_rate": [3e-4, 1e-3, 3e-3],
    }
    draw, records = random.Random(args.seed), {}
    for name, kills in (("calm", 0), ("killed", args.kills)):
        base["cluster"] = base["cluster"] | {"storage_path": str(folder / name)}
        command = write_study(folder, make_space(name, values, **more), base)
        done = False
        while not done:
            process = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            try:
                done = process.wait(draw.uniform(*args.kill_after) if kills else _STUDY_S) == 0
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills -= 1
        records[name] = records_of(folder, name)
    plain = {
        name: [(r.name, r.status, r.num_steps, dict(r.rungs), dict(r.by_seed)) for r in own]
        for name, own in records.items()
    }
    return {
        "kills": args.kills - max(kills, 0),
        "trials": len(records["killed"]),
        "identical": plain["calm"] == plain["killed"],
        "attempts": sum(record.attempts for record in records["killed"] if not record.duplicate_of),
        "ran": sum(not record.duplicate_of for record in records["killed"]),
    }


def kills_table(found: dict[str, Any]) -> str:
    return (
        f"{found['trials']} trials, killed {found['kills']} times: records identical to the undisturbed study: "
        f"{found['identical']}; {found['attempts']} starts for {found['ran']} trials that ran"
    )


# --- bookkeeping --------------------------------------------------------------------------------------------


def bookkeeping_part(args: argparse.Namespace, folder: Path, trees: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Seconds a trial of a study whose trials do nothing: Tune, Optuna's records, sampler, rungs, MLflow."""
    from bft_ray.space.load import load_study
    from bft_ray.study.execute import ray_tune
    from bft_ray.study.report.recorder import Recorder, params_of
    from bft_ray.tracking.run import Tracker
    from bft_ray.workers.connect import connect
    from jobs.bench.nothing import NothingActor

    overrides = [f"budget.trials={args.nothing}", f"name=bench-{time.time_ns()}", "config=starter", "budget.steps=81"]
    space, base = load_study("medical_qa", overrides=[*overrides, "baselines=[]", "confirmation=null"])
    base = base.model_copy(
        update={"tracking": base.tracking.model_copy(update={"uri": args.tracking or f"sqlite:///{folder}/m.db"})}
    )
    database = Database(args.database or f"sqlite:///{folder}/nothing.db")
    store = Store.create(database, space, base, {})
    study = Study(space.name, space, base, None, (2000,), str(folder / space.name))
    times: dict[int, float] = {}
    with (
        connect(base.cluster),
        Tracker.start(base.tracking, "bench", space.name, params_of(study, base), {}) as tracker,
    ):
        recorder = Recorder(study, tracker)

        def listen(event: Any, record: TrialRecord) -> None:
            recorder(event, record)
            if event == "ended":
                times[len(times) + 1] = time.perf_counter()

        controller = Controller(study, store, lambda: args.slots, listen, ahead=1)
        config = make_config(trees[0])
        cpu, began = time.process_time(), time.perf_counter()
        ray_tune.run(controller, config, actor=NothingActor)
        whole, cpu = time.perf_counter() - began, time.process_time() - cpu
        flushed = tracker.flush(600)
        with_mlflow = time.perf_counter() - began
    count = len(times)
    around = {
        at: (times[min(at + 20, count)] - times[max(at - 20, 1)]) / (min(at + 20, count) - max(at - 20, 1))
        for at in (50, count - 20)
    }
    database.close()
    assert flushed and all(record.is_finished for part in PARTS for record in controller.records(part))
    return {
        "trials": count,
        "seconds_a_trial": {str(at): seconds for at, seconds in around.items()},
        "mean_s": whole / count,
        "mean_with_mlflow_flushed_s": with_mlflow / count,
        "cpu_s": cpu / count,
    }


def bookkeeping_table(found: dict[str, Any]) -> str:
    at = ", ".join(f"{seconds:.3f} s at {number}" for number, seconds in found["seconds_a_trial"].items())
    return (
        f"{found['trials']} trials that do nothing: {at}; mean {found['mean_s']:.3f} s, "
        f"until MLflow has all {found['mean_with_mlflow_flushed_s']:.3f} s; {found['cpu_s']:.3f} s of this process's CPU"
    )
