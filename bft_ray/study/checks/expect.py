"""What a study cannot show, and what it needs: printed before a worker starts."""

from __future__ import annotations

import os

from bft_ray.config import ClusterConfig, Config
from bft_ray.places import storage
from bft_ray.places.disk import free_bytes
from bft_ray.space.cost import Cost
from bft_ray.space.definition import SearchSpace
from bft_ray.space.parts import Asha
from bft_ray.stats.power import smallest_share
from bft_ray.study.checks.ready import Facts
from bft_ray.study.execute.measure import Measured
from bft_ray.study.records.leaderboard import span

_FEW = 100  # items of a split; for fewer, a note says what they can show


def caveats(space: SearchSpace, cost: Cost, facts: Facts) -> list[str]:
    """Lines on what the study runs beside its trials, and what it cannot show with these data."""
    lines = []
    if cost.tuning_runs:
        names = ", ".join(one.name for one in space.baselines)
        lines.append(
            f"baseline runs ({names}, each with its rates and seeds) beside the trials asked for: {cost.tuning_runs} beside "
            f"{cost.trials}"
        )
    if space.confirmation is None:
        lines.append(
            "note: no confirmation: the study shows which settings were best on the data that picked them, beside the tuned "
            "baselines, with the noise of the items. It does not show whether that holds on fresh data and seeds, and it "
            "registers no champion. `confirmation` in the space (5 seeds, data of its own) does"
        )
    elif not space.confirmation.test:
        lines.append("note: no confirmation.test: nothing is measured on data on which nothing was chosen")
    if isinstance(space.scheduler, Asha) and cost.steps is not None and not cost.rungs:
        lines.append(
            f"note: no trial is stopped early: scheduler.grace_steps is {space.scheduler.grace_steps}, and a trial has "
            f"{cost.steps} steps"
        )
    return lines + _few(facts)


def _few(facts: Facts) -> list[str]:
    lines, batch = [], facts.first.data.global_batch_size
    samples = sum(facts.samples_per_source or ()) or batch
    if samples < batch:
        lines.append(
            f"note: the {samples} training samples are fewer than a batch of {batch}: each is in it more than once"
        )
    for split, count in facts.num_items.items():
        if count < _FEW:
            least = smallest_share(count)
            below = "any true difference" if least is None else f"a true difference below about {least:.2g}"
            lines.append(
                f"note: the {split} data have {count} items: of a share such as an accuracy, {below} is missed more often than "
                "in 2 of 10 studies"
            )
    return lines


def requirements(
    space: SearchSpace, first: Config, cost: Cost, measured: Measured | str, num_slots: int | None
) -> list[str]:
    """Lines on the time, disk and memory that a study needs.

    Args:
        first: config of the first trial.
        cost: counts of the study.
        measured: what was measured with that config; or a clause why it could not be measured.
        num_slots: trials at a time; None: known only to the cluster.
    """
    if isinstance(measured, str):
        return [f"time, disk and memory are not measured: {measured}"]
    num_weights, num_states = _kept(space, first, cost)
    size = num_weights * measured.weights_bytes + num_states * measured.state_bytes
    states = f", {num_states} of {_size(measured.state_bytes)} of trials that wait at a rung" if num_states else ""
    lines = [
        _time(cost, measured, num_slots),
        f"disk    at most {_size(size)}: {num_weights} models of {_size(measured.weights_bytes)}{states}{_free(first, size)}",
        f"memory  {_size(measured.memory_bytes)} a trial at its peak"
        + (f", and {_size(measured.gpu_bytes)} of its GPU" if measured.gpu_bytes else ""),
    ]
    return [
        *lines,
        f"measured on {measured.device}: {measured.step_s:.2g} s a step, {measured.measure_s:.2g} s a measurement of the first "
        f"trial's config, in a process of its own, in {span(measured.took_s)}",
    ]


def local_slots(cluster: ClusterConfig) -> int | None:
    """Trials of one worker at a time on this machine alone; None where the study joins a cluster."""
    if cluster.address:
        return None
    slots = int((os.cpu_count() or 1) / cluster.cpus_per_worker) if cluster.cpus_per_worker else None
    if cluster.gpus_per_worker:
        import torch

        on_gpus = int(torch.cuda.device_count() / cluster.gpus_per_worker)
        slots = on_gpus if slots is None else min(slots, on_gpus)
    return slots


def _time(cost: Cost, measured: Measured, num_slots: int | None) -> str:
    parts = _parts(cost, measured)
    if parts is None:
        return "time    not known: trials differ in their number of steps"
    total = sum(parts.values())
    each = ", ".join(f"{name} {span(seconds)}" for name, seconds in parts.items() if seconds)
    text = f"time    about {span(total)} one run at a time ({each})"
    return text + (f", {span(total / num_slots)} with {num_slots} at a time" if num_slots and num_slots > 1 else "")


def study_s(cost: Cost, measured: Measured | str) -> float | None:
    """Seconds of a whole study, one run at a time; None where they are not known."""
    parts = None if isinstance(measured, str) else _parts(cost, measured)
    return None if parts is None else sum(parts.values())


def _parts(cost: Cost, measured: Measured) -> dict[str, float] | None:
    if cost.steps is None:
        return None
    return {
        "baselines": _seconds(cost.tuning_runs, cost.tuning_steps, 0, measured),
        "search": _seconds(cost.search_runs, cost.search_steps_stopped or cost.search_steps, len(cost.rungs), measured),
        "confirmation": _seconds(cost.confirmation_runs, cost.confirmation_steps, 0, measured),
    }


def _seconds(runs: int, steps: int | None, num_rungs: int, measured: Measured) -> float:
    """Seconds of `runs` runs with `steps` optimizer steps together; at each rung a run is measured too."""
    each = measured.start_s + measured.measure_s * (1 + num_rungs)
    return (steps or 0) * measured.step_s + runs * each


def _kept(space: SearchSpace, first: Config, cost: Cost) -> tuple[int, int]:
    """Largest numbers of models and of states on the disk. Models: the best trials' weights, those of the arms of a
    confirmation until the choice, and the copy for MLflow. States: one for each trial that may wait at a rung.
    """
    num_weights = min(first.checkpoint.keep, cost.trials)
    if space.confirmation is not None:
        num_weights += space.confirmation.top_k + len(space.baselines) + first.tracking.log_model
    waits = bool(cost.rungs) and (len(space.seeds) > 1 or space.deterministic)
    return num_weights, cost.search_runs if waits else 0


def _free(first: Config, size: float) -> str:
    """A clause on the free space of the results' disk, where it may be too little; "" for an object store."""
    path = first.cluster.storage_path
    if storage.is_remote(path) or (free := free_bytes(storage.absolute(path))) >= 2 * size:
        return ""
    short = (
        ": too little, if all of it is needed; the study would stop, and resume with more room" if free < size else ""
    )
    return f"; {_size(free)} are free on the disk of cluster.storage_path{short}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.3g} {unit}"
