"""Segments of a search: what a worker leaves and tells, in this process, on Ray Tune, and on groups of ranks."""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bft_ray.errors import NoRoom
from bft_ray.places import kept, storage
from bft_ray.study.records.segment import Run, Segment
from tests.support.damage import damage
from tests.support.ranks import run_ranks
from tests.support.segments import at_store, is_store, make_segment
from tests.support.trials import CHOICES, MEMORY


def content(run: Run | None) -> tuple[Any, ...]:
    """All of a run's file that is a function of its config alone."""
    assert run is not None
    train = [{name: value for name, value in step.items() if name != MEMORY} for step in run.train]
    return run.key, run.status, run.num_steps, train, run.metrics, run.records


def stages(reached: list[Run]) -> list[tuple[int, str]]:
    return [(one.num_steps, one.status) for one in reached]


def saved(tree: dict, folder: str) -> dict[str, Any]:
    """A run that the driver asks to save, on all ranks; only the last rank hears of it while it trains."""
    import contextlib
    from itertools import count

    import torch

    from bft_ray.study.execute import segments
    from bft_ray.study.execute.warm import Warm
    from bft_ray.train import ranks

    warm, told, given = Warm(torch.device("cpu")), {}, segments.asked

    def take(segment: Segment, asked_in: int | None) -> list[tuple[int, str]]:
        """Asked in the middle of so many steps from now on; 0: before it begins."""
        looks = count(0 if ranks.is_first() else 1)  # rank 0 alone looks before the beginning too
        deaf = asked_in is None or (asked_in and ranks.world_size() > 1 and ranks.is_first())
        segments.asked = lambda key: contextlib.nullcontext(lambda: not deaf and next(looks) >= asked_in)
        try:
            return stages(list(segments.run_segment(segment, warm)))
        finally:
            segments.asked = given

    whole = make_segment(tree, f"{folder}/whole")
    take(whole, None)
    told["whole"] = content(Run.read(whole.files, whole.key))
    own = make_segment(tree, f"{folder}/own")
    told["stages"] = [take(own, 3), take(own, 0), take(own, 1), take(own, None)]
    told["own"] = content(Run.read(own.files, own.key))
    told["left"] = sorted(path.name for path in Path(own.folder).iterdir())
    return told


@pytest.mark.slow
def test_a_run_that_the_driver_asks_is_saved_after_its_present_step(make_tree, tmp_path):
    """Not after a rung, of which the driver must hear first; and its result is that of an undisturbed one."""
    tree = make_tree(evaluation={"tasks": [CHOICES]})
    first, second = run_ranks(saved, 2, tree, str(tmp_path))
    assert first["stages"] == second["stages"]
    assert first["stages"] == [
        [(2, "running"), (3, "saved")],
        [(3, "saved")],
        [(4, "running"), (5, "saved")],
        [(6, "complete")],
    ]
    assert (
        first["own"] == first["whole"] and first["whole"][1:3] == ("complete", 6) and first["left"] == ["run-42.json"]
    )


# --- in this process ------------------------------------------------------------------------------


def walks(tree: dict, folder: str) -> dict[str, Any]:
    """Runs of one process: whole, in parts, after several kinds of end. All are to leave the same file."""
    import torch

    from bft_ray.study.execute.segments import run_segment
    from bft_ray.study.execute.warm import Warm

    warm, told = Warm(torch.device("cpu")), {}

    def take(segment: Segment, own: Warm | None = None) -> list[Run]:
        return list(run_segment(segment, own or warm))

    def stop(segment: Segment, after: int) -> None:
        """As Tune would stop it."""
        steps = run_segment(segment, warm)
        for reached in steps:
            if reached.num_steps == after:
                break
        steps.close()

    whole = make_segment(tree, f"{folder}/whole", keep=True)
    told["whole"] = take(whole), content(Run.read(whole.files, whole.key))
    told["again"] = list(run_segment(whole, None))  # type: ignore[arg-type]  # nothing is asked of it
    told["files"] = sorted(path.name for path in Path(whole.folder).iterdir())

    parts = make_segment(tree, f"{folder}/parts")
    two, four = replace(parts, until=2), replace(parts, until=4)
    told["stages"] = [stages(take(segment)) for segment in (two, four, two, parts)]
    told["parts"] = content(Run.read(parts.files, parts.key))
    told["left"] = sorted(path.name for path in Path(parts.folder).iterdir())

    torn = make_segment(tree, f"{folder}/torn")  # killed after the state was written, and before the file was
    take(replace(torn, until=2))
    before = Path(f"{torn.folder}/run-42.json").read_text()
    take(replace(torn, until=4))
    Path(f"{torn.folder}/run-42.json").write_text(before)
    told["torn"] = stages(take(replace(torn, until=4)) + take(torn)), content(Run.read(torn.files, torn.key))

    for kind in ("half", "empty", "flip"):  # its file is damaged
        hurt = make_segment(tree, f"{folder}/hurt-{kind}")
        take(replace(hurt, until=2))
        damage(Path(hurt.files.result), kind)
        reports = take(hurt)
        told[kind] = stages(reports), content(Run.read(hurt.files, hurt.key))
        told[f"{kind} warnings"] = reports[-1].warnings

    worn = make_segment(tree, f"{folder}/worn")  # its state is damaged
    take(replace(worn, until=4))
    damage(next(Path(worn.files.state).rglob("*.safetensors")), "flip")
    reports = take(worn)
    told["worn"] = stages(reports), content(Run.read(worn.files, worn.key))
    told["worn warnings"] = [one.warnings for one in reports]

    gone = make_segment(tree, f"{folder}/gone")  # the state is lost
    take(replace(gone, until=4))
    shutil.rmtree(gone.files.state)
    told["gone"] = stages(take(gone)), content(Run.read(gone.files, gone.key))

    cut = make_segment(tree, f"{folder}/cut")  # stopped at 4, with the state of 2
    take(replace(cut, until=2))
    stop(cut, after=4)
    stopped = Run.read(cut.files, cut.key)
    assert stopped is not None
    told["stopped"] = stopped.status, stopped.num_steps, len(warm._models._things)
    told["cut"] = stages(take(cut)), content(Run.read(cut.files, cut.key))

    before_store = storage.is_remote, storage._at
    storage.is_remote, storage._at = is_store, at_store
    kept.is_remote, kept.filesystem_at = is_store, at_store
    far = make_segment(tree, "store://far", keep=True)
    told["far stages"] = stages(take(replace(far, until=2))) + stages(take(far))
    told["far"] = content(Run.read(far.files, far.key))
    storage.is_remote, storage._at = kept.is_remote, kept.filesystem_at = before_store
    told["far files"] = sorted(Path(each).name for each in at_store("")[0].handler.fs.ls("/far", detail=False))
    return told


@pytest.mark.slow
def test_a_run_is_the_same_however_it_is_walked(make_tree, tmp_path):
    tree = make_tree(lora={"rank": 2}, evaluation={"tasks": [CHOICES]})
    (told,) = run_ranks(walks, 1, tree, str(tmp_path))
    reached, whole = told["whole"]
    assert stages(reached) == [(2, "running"), (4, "running"), (6, "complete")]
    _, status, num_steps, train, metrics, records = whole
    assert (status, num_steps, len(train), list(metrics)) == ("complete", 6, 6, [2, 4, 6]) and len(records) == 12 + 6
    assert [one.last for one in reached] == [metrics[step] for step in (2, 4, 6)]
    assert "validation/nll" not in metrics[4] and "validation/nll" in metrics[6]
    assert told["again"] == reached[-1:]
    assert told["files"] == ["run-42.json", "weights-42"] and told["left"] == ["run-42.json"]

    assert told["stages"] == [[(2, "paused")], [(4, "paused")], [(2, "paused")], [(6, "complete")]]
    assert told["parts"] == whole
    assert told["torn"] == ([(4, "paused"), (6, "complete")], whole)
    assert told["gone"] == ([(2, "running"), (4, "running"), (6, "complete")], whole)
    for kind in ("half", "empty", "flip"):
        assert told[kind] == ([(4, "running"), (6, "complete")], whole)  # the state has a copy of it
        (warning,) = told[f"{kind} warnings"]
        assert f"hurt-{kind}/run-42.json" in warning
    assert told["worn"] == told["gone"]
    assert all("worn/state-42/step-00000004 is passed over" in line for (line,) in told["worn warnings"])
    assert reached[-1].warnings == []
    assert told["stopped"] == ("running", 4, 1)  # and the base model was given back
    assert told["cut"] == ([(4, "running"), (6, "complete")], whole)  # the first two steps were not done again
    assert told["far stages"] == [(2, "paused"), (4, "running"), (6, "complete")]
    assert told["far"] == whole and told["far files"] == ["run-42.json", "weights-42"]


def failures(tree: dict, folder: str) -> list[tuple[Any, ...]]:
    import torch

    from bft_ray.study.execute.segments import run_segment
    from bft_ray.study.execute.warm import Warm

    class Odd(Warm):
        def tasks(self, config: Any) -> Any:
            raise KeyError("w1 w2 w3")

    class Crowded(Warm):
        def data(self, config: Any) -> Any:
            raise NoRoom("cluster.num_workers", 2, "fewer")

    class Large(Warm):
        def data(self, config: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    warm, odd, crowded, large = (kind(torch.device("cpu")) for kind in (Warm, Odd, Crowded, Large))
    shared = tree | {"cluster": tree["cluster"] | {"gpus_per_worker": 0.5}}
    wild = tree | {"optimizer": {"learning_rate": 1e30, "max_grad_norm": None}}
    lost = tree | {"data": tree["data"] | {"train": [{"path": "/nowhere/rows.jsonl"}]}}
    typo = tree | {"data": tree["data"] | {"paking": True}}
    found: list[tuple[Any, ...]] = []
    runs = [
        (wild, warm),
        (lost, warm),
        (typo, warm),
        (tree, odd),
        (tree, warm),
        (tree, crowded),
        (tree, large),
        (shared, large),
    ]
    for number, (own, broken) in enumerate(runs):
        segment = make_segment(own, f"{folder}/{number}", rungs=(), at_rungs=None)
        *_, last = run_segment(segment, broken)
        run = Run.read(segment.files, segment.key)
        found.append((last, run and (run.status, run.reason), len(broken._data._things)))
    return found


@pytest.mark.slow
def test_a_failure_is_a_record(make_tree, tmp_path):
    """What would come again is written down; anything else is told, and clears the process."""
    (found,) = run_ranks(failures, 1, make_tree(), str(tmp_path))
    (shared, shared_run, _), (large, large_run, _) = found.pop(), found.pop()
    assert large.is_lasting and large_run == ("failed", large.reason) and not shared.is_lasting and shared_run is None
    assert large.reason.startswith(
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB. Lower data.micro_"
    )
    crowded, crowded_run, _ = found.pop()
    assert crowded.status == "failed" and not crowded.is_lasting and crowded_run is None  # there may be room later
    (wild, wild_run, _), (lost, lost_run, _), (typo, typo_run, _), (odd, odd_run, odd_kept), (good, good_run, _) = found
    assert lost.is_lasting
    assert (wild.status, wild_run) == ("failed", ("failed", wild.reason)) and wild.num_steps < 6
    assert wild.reason.startswith("NonFinite: the ") and "is not finite" in wild.reason
    assert lost_run == ("failed", lost.reason) and lost.reason.startswith("BadInput: `data.train.0.path`")
    assert typo_run == ("failed", typo.reason) and typo.reason.startswith("BadConfig: ")
    assert odd.status == "failed" and odd_run is None and odd_kept == 0
    assert odd.reason.startswith("KeyError in test_segments.py, line ") and "w1" not in odd.reason
    assert (good.num_steps, good.status, good_run) == (6, "complete", ("complete", ""))
    assert not any("\n" in one[0].reason for one in found)


# --- on Ray ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ray_of_two_cpus():
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    yield ray
    ray.shutdown()


def alone(segments: list[Segment]) -> list[tuple[Any, ...]]:
    """What each segment leaves in a process that no Ray has started."""
    from bft_ray.study.execute.segments import run_segment
    from bft_ray.study.execute.warm import Warm

    left = []
    for segment in segments:
        list(run_segment(segment, Warm()))
        left.append(content(Run.read(segment.files, segment.key)))
    return left


def on_tune(
    segments: list[Segment], bundles: list[dict[str, float]], folder: Path, stopped: str = ""
) -> list[tuple[str, int, str, int]]:
    """Run segments one after the other: of which trial, step, status and process of each report.

    Args:
        stopped: id of the trial that the scheduler stops at its first report.
    """
    from ray import tune
    from ray.tune.schedulers import FIFOScheduler

    from bft_ray.study.execute.actor import TrialActor

    told: list[tuple[str, int, str, int]] = []

    class Told(tune.Callback):
        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict, **info: Any) -> None:
            told.append((trial.config["segment"].trial, result["run"].num_steps, result["run"].status, result["pid"]))

    class Stops(FIFOScheduler):
        def on_trial_result(self, controller: Any, trial: Any, result: dict) -> str:
            return self.STOP if trial.config["segment"].trial == stopped else self.CONTINUE

    checkpoints = tune.CheckpointConfig(checkpoint_at_end=False)
    tune.Tuner(
        tune.with_resources(TrialActor, tune.PlacementGroupFactory(bundles)),
        param_space={"segment": tune.grid_search(segments)},
        tune_config=tune.TuneConfig(scheduler=Stops(), reuse_actors=True, max_concurrent_trials=1),
        run_config=tune.RunConfig(
            name="segments", storage_path=str(folder), verbose=0, callbacks=[Told()], checkpoint_config=checkpoints
        ),
    ).fit()
    return told


@pytest.mark.slow
def test_segments_on_one_actor(ray_of_two_cpus, make_tree, tmp_path):
    """One that a scheduler stops, and two after it in the same process: these leave what a process of their own does."""
    tree = make_tree(lora={"rank": 2}, evaluation={"tasks": [CHOICES]})
    full = make_tree(loss={"method": "sft"}, evaluation={"tasks": [CHOICES]})
    stopped = replace(make_segment(full, tmp_path / "stopped"), trial="stopped")
    segments = [make_segment(tree, tmp_path / "one"), make_segment(full, tmp_path / "two", until=4)]
    first, *others = on_tune([stopped, *segments], [{"CPU": 2}], tmp_path / "tune", "stopped")
    pid = first[3]
    assert first == ("stopped", 2, "running", pid) and pid != os.getpid()
    ends = [(2, "running"), (4, "running"), (6, "complete"), (2, "running"), (4, "paused")]
    assert others == [("search/0", step, status, pid) for step, status in ends]
    own = [replace(segment, folder=segment.folder + "-alone") for segment in segments]
    for segment, run in zip(segments, run_ranks(alone, 1, own)[0], strict=True):
        assert content(Run.read(segment.files, segment.key)) == run
        assert Path(segment.files.state).is_dir() == (segment.until is not None)


@pytest.mark.slow
def test_several_workers_agree_with_one(ray_of_two_cpus, make_tree, tmp_path):
    """On a group, paused at a rung and resumed: losses and metrics are those of one worker."""
    sections = {"evaluation": {"tasks": [CHOICES]}, "loss": {"method": "bft_inverse", "window": 8}}
    one = make_segment(make_tree(**sections), tmp_path / "one", rungs=(4,))
    tree = make_tree(cluster={"num_workers": 2, "gpus_per_worker": 0}, **sections)
    two = replace(one, tree=tree, folder=str(tmp_path / "two"), keep=True)
    run_ranks(alone, 1, [one])
    told = on_tune([replace(two, until=4), two], [{}, {"CPU": 1}, {"CPU": 1}], tmp_path / "tune")
    assert [each[1:3] for each in told] == [(4, "paused"), (6, "complete")] and told[0][3] == told[1][3]

    _, _, _, train, metrics, records = content(Run.read(one.files, one.key))
    run = Run.read(two.files, two.key)
    assert run is not None and len(run.train) == 6 and run.seconds["train"] > 0 and run.seconds["measure"] > 0
    for own, other in zip(run.train, train, strict=True):
        for name in ("train/loss", "train/nll", "train/grad_norm", "train/learning_rate"):
            assert own[name] == pytest.approx(other[name], rel=1e-4), name
    assert run.metrics.keys() == metrics.keys() == {4, 6}
    for step in (4, 6):
        assert run.metrics[step] == pytest.approx(metrics[step], rel=1e-4), step
    assert [(record["set"], record["id"]) for record in run.records] == [(each["set"], each["id"]) for each in records]
    assert sorted(path.name for path in Path(two.folder).iterdir()) == ["run-42.json", "weights-42"]
    assert (Path(two.files.weights) / "model.safetensors").is_file()
