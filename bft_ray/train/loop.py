"""The training loop, top to bottom. Needs neither Ray nor a network."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from bft_ray.config import Config, LossConfig
from bft_ray.config.metrics import higher_is_better
from bft_ray.config.steps import num_steps
from bft_ray.data.dataset import TokenDataset
from bft_ray.data.pack import MicroBatch, collate
from bft_ray.data.plan import BatchPlan, layout
from bft_ray.data.prefetch import prefetch
from bft_ray.errors import BadInput
from bft_ray.evaluate.engine.likelihood import LikelihoodSums
from bft_ray.model.start_logps import StartLogps
from bft_ray.places.scratch import scratch
from bft_ray.train.checkpoint import Damaged, LoopState, improves, verify_manifest, write_manifest
from bft_ray.train.engine import Engine
from bft_ray.train.host import Host
from bft_ray.train.profiling import phase, profiled
from bft_ray.train.schedule import learning_rate
from bft_ray.train.start import start_logps
from bft_ray.train.step import Share, train_step

_PLAIN = LossConfig(method="sft")  # validation: the likelihood, without any weight


@dataclass(frozen=True)
class Data:
    """What a run trains on and validates with.

    Args:
        start: log-probabilities of `train` under the starting weights, where the loss reads them.
    """

    train: TokenDataset
    validation: TokenDataset | None
    pad_id: int
    start: StartLogps | None = None


def make_plan(config: Config, train: TokenDataset) -> tuple[BatchPlan, int]:
    """The plan of global batches and the number of steps."""
    plan = BatchPlan(
        len(train),
        config.data.global_batch_size,
        config.seed,
        shuffle=config.data.shuffle,
        source_index=train.source_index,
        ratios=[source.ratio for source in config.data.train],
    )
    return plan, num_steps(config, train.samples_per_source)


def fit(engine: Engine, config: Config, data: Data, host: Host) -> LoopState:
    """Train from the last checkpoint of `host`, or from the start, to the last step.

    Every rank calls it. Evaluates and saves every so many steps and at the end; the best and the last checkpoint stay. Where a rank
    was asked to save and end (`Engine.asked`), or the host says so, all save after the present step, and the state returned is of
    that step.

    Raises:
        NonFinite: on every rank, for a loss or gradient that is not finite.
        BadInput: a checkpoint that is broken.
    """
    plan, num_steps = make_plan(config, data.train)
    evaluate_every = config.evaluation.every_steps or max(1, num_steps // 10)
    save_every = config.checkpoint.every_steps or evaluate_every
    higher = higher_is_better(config.checkpoint.metric)
    if config.loss.reads_prior:  # before a checkpoint is loaded: also after a resume, the start is the start
        data = _with_start(engine, config, data, host)
    state = _resume(engine, host)
    _tell(engine, host, "resume" if state.step else "start", state.step, _arithmetic(engine, config, data, num_steps))
    if state.step == 0 and data.validation:
        _measure(engine, host, config, data, 0)

    num_profiled = config.tracking.profile_steps if engine.rank == 0 else 0
    began = time.perf_counter()
    with profiled(num_profiled, engine.device, host.publish) as step_ended:
        for done, metrics, share in train_steps(engine, config, data, state.step, num_steps):
            began, elapsed = time.perf_counter(), time.perf_counter() - began  # logging counts with the next step
            step_ended()
            metrics["train/supervised_tokens_per_s"] = share.num_tokens / elapsed
            metrics["train/step_s"] = elapsed
            metrics["train/epoch"] = done / plan.steps_per_epoch
            _tell(engine, host, "step", done, {"num_steps": num_steps} | metrics)

            measured = {}
            if data.validation and (done % evaluate_every == 0 or done == num_steps):
                measured = _measure(engine, host, config, data, done)
            asked = host.after_step(done) if done < num_steps else ""
            is_ending = done < num_steps and (engine.is_ending or asked == "leave")
            if done % save_every == 0 or done == num_steps or measured or is_ending or asked:
                value = measured.get(config.checkpoint.metric)
                better = improves(value, state.best_value, higher)
                state = LoopState(done, value if better else state.best_value, done if better else state.best_step)
                _save(engine, host, state, None if value is None else (value if higher else -value))
                began = time.perf_counter()  # validation and saving do not count as a step
            if is_ending:
                return state
    _tell(engine, host, "end", num_steps)
    return state


def _tell(engine: Engine, host: Host, event: str, step: int, values: Mapping[str, Any] | None = None) -> None:
    """Report an event after so many steps, from rank 0."""
    if engine.rank == 0:
        host.notify(event, {"step": step, **(values or {})})


def train_steps(
    engine: Engine, config: Config, data: Data, start: int, last: int
) -> Generator[tuple[int, dict[str, float], Share], None, None]:
    """The one loop over steps, of runs and of trials: yields (steps done, metrics, this rank's share) after each.

    Args:
        start: steps that the engine has done.
        last: step to end at; the learning rate is that of the whole run.

    Raises:
        NonFinite: see `train_step`.
    """
    plan, num_steps = make_plan(config, data.train)
    steps = range(start, last)
    with closing(prefetch(lambda step: share_of(engine, config, data, plan.batch(step)), steps)) as shares:
        for step in steps:
            with phase("data"):
                share = next(shares)
            rate = learning_rate(step, num_steps, config.optimizer.learning_rate, config.schedule)
            metrics = train_step(engine, share, config.loss, step=step, learning_rate=rate, seed=config.seed)
            yield step + 1, metrics, share


def share_of(engine: Engine, config: Config, data: Data, indices: np.ndarray) -> Share:
    """This rank's share of the global batch of these samples."""
    lengths, supervised = data.train.lengths[indices], data.train.num_supervised[indices]
    packing, size = engine.rows.packing, engine.rows.size or config.data.micro_batch_size
    ranks = layout(lengths.tolist(), engine.world_size, config.data.micro_batch_tokens, size, packing)
    places = ranks[engine.rank]
    micro_batches = [_micro_batch(data, indices[place].tolist(), packing) for place in places]
    if engine.device.type == "cuda":
        micro_batches = [micro.pinned() for micro in micro_batches]
    return Share(
        micro_batches,
        [torch.tensor(place, dtype=torch.long) for place in places],
        num_rows=len(indices),
        num_samples=int((supervised > 0).sum()),
        num_tokens=int(supervised.sum()),
    )


def _micro_batch(data: Data, indices: list[int], packing: bool) -> MicroBatch:
    micro = collate(data.train, indices, packing, data.pad_id)
    if data.start is None:
        return micro
    own = [data.start.of(index) for index in indices]
    return replace(micro, start_logp=torch.from_numpy(np.concatenate([np.empty(0, np.float32), *own])))


def _with_start(engine: Engine, config: Config, data: Data, host: Host) -> Data:
    began = time.perf_counter()
    start, found = start_logps(engine, config, data.train, data.pad_id)
    if engine.rank == 0:
        host.notify("prior", {"found": found, "seconds": time.perf_counter() - began})
    return replace(data, start=start)


def validate(engine: Engine, data: Data, config: Config) -> dict[str, float]:
    """Likelihood of the validation set, divided over the ranks; the same metrics on every rank."""
    assert data.validation is not None
    dataset = data.validation
    sums = torch.zeros(3, dtype=torch.float64, device=engine.device)
    with torch.no_grad():
        for _, micro in engine.passes(dataset, config.evaluation.batch_tokens, data.pad_id):
            own = engine.sums(micro, _PLAIN)
            sums += torch.stack([own.nll_sum, own.num_tokens.double(), own.num_correct.double()])
    if engine.world_size > 1:
        dist.all_reduce(sums)
    return LikelihoodSums.from_tensor(sums, int(dataset.num_bytes.sum())).metrics("validation")


def _measure(engine: Engine, host: Host, config: Config, data: Data, step: int) -> dict[str, float]:
    """`validate`, with its events."""
    _tell(engine, host, "validating", step)
    measured = validate(engine, data, config)
    _tell(engine, host, "validation", step, measured)
    return measured


def _resume(engine: Engine, host: Host) -> LoopState:
    folder = host.last_checkpoint()
    if folder is None:
        return LoopState()
    try:
        verify_manifest(folder, engine.rank, engine.world_size)
    except BadInput as error:
        raise Damaged(host.origin(folder), error.value, error.rule) from None
    return LoopState(**engine.load(folder))


def _save(engine: Engine, host: Host, state: LoopState, score: float | None) -> None:
    _tell(engine, host, "saving", state.step)
    with scratch("checkpoint") as folder:
        engine.save(folder, asdict(state))
        write_manifest(folder, engine.rank, engine.world_size)
        host.keep(folder, state.step, score)
    _tell(engine, host, "checkpoint", state.step, {"best_step": state.best_step})


def _arithmetic(engine: Engine, config: Config, data: Data, num_steps: int) -> dict[str, Any]:
    """What the run will do, in numbers."""
    return {
        "num_steps": num_steps,
        "num_samples": len(data.train),
        "num_tokens": int(data.train.lengths.sum()),
        "num_supervised_tokens": int(data.train.num_supervised.sum()),
        "global_batch_size": config.data.global_batch_size,
        "num_workers": engine.world_size,
        "num_parameters": engine.num_parameters,
        "num_trainable": engine.num_trainable,
        "device": str(engine.device),
        "packing": engine.rows.packing,
        "rows": engine.rows.why,
        "anchor": "" if engine.start is None else f"; anchor {config.loss.anchor:g}: {engine.start.cost}",
    }
