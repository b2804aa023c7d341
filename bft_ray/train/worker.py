"""What each Ray Train worker runs, and the training loop's host there."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch.distributed as dist

from bft_ray.config import Config, make_config
from bft_ray.data.dataset import prepare
from bft_ray.data.modes import keep_for
from bft_ray.errors import NonFinite
from bft_ray.model.causal_lm import load_tokenizer
from bft_ray.model.export import export_model
from bft_ray.model.packing import Rows
from bft_ray.tracking.run import Tracker
from bft_ray.train import storage
from bft_ray.train.checkpoint import LoopState, last_complete, step_name, verify_manifest
from bft_ray.train.engine import Engine, pin_threads
from bft_ray.train.failure import Decision, explain
from bft_ray.train.loop import Data, fit
from bft_ray.train.storage import is_remote, join, put_folder

SCORE = "bft_score"  # Ray Train keeps the checkpoints with the largest
NOT_MEASURED = -sys.float_info.max

_TRAIN = "train.json"  # in a checkpoint: metrics of the steps before it
_PACKING = "packing.json"  # in the folder of the run


class RayHost:
    """A worker of Ray Train: checkpoints go through `ray.train.report`, news to MLflow and to the driver."""

    def __init__(self, folder: str, tracker: Tracker | None, board: Any):
        self.device = ray.train.torch.get_device()
        self._folder, self._tracker, self._board = folder, tracker, board

    def last_checkpoint(self) -> Path | None:
        # On a disk the folders tell. Ray's own snapshot of them is not there after every kind of end.
        if not is_remote(self._folder):
            return last_complete(Path(self._folder))
        checkpoint = ray.train.get_checkpoint()
        return None if checkpoint is None else _local(checkpoint)

    def best_checkpoint(self, step: int) -> Path | None:
        if not is_remote(self._folder):
            return Path(self._folder) / step_name(step)
        reported = [item for item in ray.train.get_all_reported_checkpoints() if item.metrics[SCORE] > NOT_MEASURED]
        return _local(max(reported, key=lambda item: item.metrics[SCORE]).checkpoint) if reported else None

    def keep(self, folder: Path, step: int, score: float | None) -> None:
        ray.train.report(
            {SCORE: NOT_MEASURED if score is None else score, "step": step},
            checkpoint=ray.train.Checkpoint.from_directory(str(folder)),
            checkpoint_dir_name=step_name(step),
        )

    def publish(self, folder: Path, text: str) -> None:
        target = join(self._folder, "profile")
        put_folder(folder, target)
        if self._tracker is not None:
            self._tracker.log_artifacts(folder, "profile")
        self.tell("profile", {"table": text, "folder": target})

    def tell(self, event: str, values: dict[str, Any]) -> None:
        if self._tracker is not None and event in ("step", "validation"):
            metrics = {name: value for name, value in values.items() if "/" in name}
            self._tracker.log_metrics(metrics, step=values["step"])
        if self._board is not None:
            self._board.post.remote(event, values)


class RememberingHost(RayHost):
    """Keeps the metrics of all steps in each checkpoint: so they are those of the state, whatever has died on the way."""

    def __init__(self, folder: str, tracker: Tracker | None, board: Any):
        super().__init__(folder, tracker, board)
        self.train: list[dict[str, float]] = []

    def last_checkpoint(self) -> Path | None:
        folder = super().last_checkpoint()
        self.train = [] if folder is None else json.loads((folder / _TRAIN).read_text())
        return folder

    def keep(self, folder: Path, step: int, score: float | None) -> None:
        if ray.train.get_context().get_world_rank() == 0:
            (folder / _TRAIN).write_text(json.dumps(self.train))
        super().keep(folder, step, score)

    def tell(self, event: str, values: dict[str, Any]) -> None:
        if event == "step":
            self.train.append({name: value for name, value in values.items() if name.startswith("train/")})
        super().tell(event, values)


class StopAtFinal(ray.train.UserCallback):
    """In Ray Train's controller: what must fail again ends the run at once; an error raised here does that."""

    def __init__(self) -> None:
        self._decision = Decision()

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        self._decision.progressed()

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        final = self._decision.of(worker_exceptions)
        if final is not None:
            raise final


def train_worker(payload: dict[str, Any]) -> dict[str, Any]:
    """Train, then export from rank 0.

    A loss that is not finite comes back as a value rather than as an exception: every rank has it. What a rank alone
    may have is raised, so that the others do not wait for it; `StopAtFinal` tells whether the workers start again.

    Args:
        payload: `config` (plain tree), `folder` (of the run), `export` (folder of its weights), `run_id` of MLflow and
            `board` (actor that shows progress) where there are any; for a trial `until` (see `fit`): then the metrics
            of all steps come back too.
    """
    config = make_config(payload["config"])
    keep_for(config.cluster.file_mode)
    pin_threads(config)
    context = ray.train.get_context()
    is_tracked = context.get_world_rank() == 0 and "run_id" in payload
    tracker = Tracker.attach(config.tracking, payload["run_id"]) if is_tracked else None
    kind = RememberingHost if "until" in payload else RayHost
    host = kind(payload["folder"], tracker, payload.get("board"))
    engine = None
    try:
        tokenizer = load_tokenizer(config.model)
        data = load_data(config, tokenizer, context.get_local_rank())
        config = with_packing(config, payload["folder"])
        engine = Engine(config, host.device)
        if context.get_world_rank() == 0:
            keep_packing(engine.rows, payload["folder"], tracker)
        state = fit(engine, config, data, host, payload.get("until"))
        step = export(engine, config, tokenizer, host, state, payload["export"])
        remembered = {"train": host.train} if isinstance(host, RememberingHost) else {}
        return {"step": step, "best_value": state.best_value, "best_step": state.best_step} | remembered
    except NonFinite as error:
        return {"error": error}
    except Exception as error:
        raise explain(error, context.get_world_rank()) from error
    finally:
        if tracker is not None:
            tracker.close()


def with_packing(config: Config, folder: str) -> Config:
    """The config with the choice that the run began with, where `data.packing` left it open."""
    text = storage.read_text(join(folder, _PACKING))
    if config.data.packing is not None or text is None:
        return config
    return config.model_copy(update={"data": config.data.model_copy(update=json.loads(text))})


def keep_packing(rows: Rows, folder: str, tracker: Tracker | None) -> None:
    """Write the choice down, for every later start of the run and for MLflow."""
    if storage.read_text(join(folder, _PACKING)) is None:
        storage.write_text(join(folder, _PACKING), json.dumps({"packing": rows.packing}))
    if tracker is not None:
        tracker.log_params({"data.packing": rows.packing})
        tracker.set_tags({"bft.rows": rows.why})


def load_data(config: Config, tokenizer: Any, local_rank: int) -> Data:
    """The tokenised data: one rank of each node makes it where it is not in the cache yet, the others wait."""
    if local_rank != 0:
        dist.barrier()
    train = prepare(config.data.train, tokenizer, config.data, "data.train")
    validation = (
        prepare(config.data.validation, tokenizer, config.data, "data.validation") if config.data.validation else None
    )
    if local_rank == 0:
        dist.barrier()
    return Data(train, validation, tokenizer.pad_token_id)


def export(engine: Engine, config: Config, tokenizer: Any, host: RayHost, state: LoopState, target: str) -> int:
    """Write the best (or last) weights to `target`; returns the step that they are of. Every rank calls it."""
    step = state.step
    if config.checkpoint.export == "best" and state.best_step is not None and state.best_step != state.step:
        folder = host.best_checkpoint(state.best_step)
        assert folder is not None
        verify_manifest(folder, engine.rank, engine.world_size)
        engine.load(folder)
        step = state.best_step
    weights = engine.weights()
    if weights is not None:
        with tempfile.TemporaryDirectory(prefix="bft_ray_export_") as temporary:
            folder = Path(temporary) / "export"
            export_model(engine.module, weights, tokenizer, config.model, folder, config.checkpoint.merge_lora)
            put_folder(folder, target)
    dist.barrier()
    return step


def _local(checkpoint: Any) -> Path:
    """A folder with the checkpoint: itself on a disk, a copy from an object store."""
    import pyarrow.fs

    if isinstance(checkpoint.filesystem, pyarrow.fs.LocalFileSystem):
        return Path(checkpoint.path)
    return Path(checkpoint.to_directory())
