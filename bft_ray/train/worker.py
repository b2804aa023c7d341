"""What each Ray Train worker runs, and the training loop's host there."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch.distributed as dist

from bft_ray.config import Config
from bft_ray.data.dataset import prepare
from bft_ray.errors import BadInput, DiskFull, NonFinite
from bft_ray.model.causal_lm import load_tokenizer
from bft_ray.model.export import export_model
from bft_ray.model.packing import Rows
from bft_ray.places import storage
from bft_ray.places.kept import read_kept, write_kept
from bft_ray.places.modes import keep_for
from bft_ray.places.scratch import scratch
from bft_ray.places.storage import fetch_folder, join, put_folder, remove_folder
from bft_ray.tracking.run import Tracker
from bft_ray.train import ranks
from bft_ray.train.checkpoint import LoopState, last_complete, step_name, verify_manifest
from bft_ray.train.engine import Engine, pin_threads
from bft_ray.train.failure import Decision, explain, first_cause
from bft_ray.train.host import SCORE_FILE
from bft_ray.train.loop import Data, fit, make_plan
from bft_ray.train.notice import Answer, Notices
from bft_ray.train.record import PACKING
from bft_ray.train.snapshot import SCORE, score_of
from bft_ray.workers.asking import asked
from bft_ray.workers.node import on_this_node

log = logging.getLogger(__name__)


class RayHost:
    """A worker of Ray Train: checkpoints go through `ray.train.report`, events to MLflow and to the driver."""

    def __init__(self, folder: str, tracker: Tracker | None, board: Any, notices: Notices):
        self.device = ray.train.torch.get_device()
        self.folder, self._tracker, self._board, self._notices = folder, tracker, board, notices
        self.has_left = False  # the workers end, to go on elsewhere
        self._origins: dict[Path, str] = {}  # copy of a checkpoint -> its URI

    def last_checkpoint(self) -> Path | None:
        """The last complete checkpoint in the folder of the run, as a local folder; None where there is none. Damaged ones are
        passed over with a line.
        """
        # From the folders: Ray's own list of them is missing after some kinds of end.
        passed: list[str] = []
        place = last_complete(self.folder, passed.append)
        if passed:
            log.warning("%s", "\n".join(passed))
            self.notify("passed over", {"lines": passed})
        if place is None:
            return None
        found = fetch_folder(place)
        self._origins[found] = place
        return found

    def best_checkpoint(self, step: int) -> Path | None:
        """The checkpoint of that step as a local folder; None where it is gone."""
        try:
            return fetch_folder(join(self.folder, step_name(step)))
        except FileNotFoundError:
            return None

    def origin(self, checkpoint: Path) -> str:
        """The URI that a local copy came from; else the folder itself."""
        return self._origins.get(checkpoint, str(checkpoint))

    def keep(self, folder: Path, step: int, score: float | None) -> None:
        """Report the checkpoint of this rank to Ray Train, which stores it. Every rank calls it.

        Args:
            folder: what this rank wrote.
            step: steps done.
            score: higher is better; None: not measured.
        """
        if ray.train.get_context().get_world_rank() == 0:
            write_kept(folder / SCORE_FILE, {"score": score})
            # of workers that died while they saved it, or damaged since: Ray adds files to what lies there
            remove_folder(join(self.folder, step_name(step)))
        ranks.barrier()
        ray.train.report(
            {SCORE: score_of(score), "step": step},
            checkpoint=ray.train.Checkpoint.from_directory(str(folder)),
            checkpoint_dir_name=step_name(step),
        )

    def after_step(self, step: int) -> Answer:
        """What nodes that leave or come ask for, see `Notices.after`. Every rank calls it, and gets the same answer."""
        answer = self._notices.after(step)
        self.has_left = answer == "leave"
        if answer and ray.train.get_context().get_world_rank() == 0:
            self.notify("notice", {"step": step, "why": self._notices.why, "leaves": self.has_left})
        return answer

    def publish(self, folder: Path, text: str) -> None:
        """Put the profile beside the checkpoints and into the MLflow run; the driver shows its table."""
        target = join(self.folder, "profile")
        put_folder(folder, target)
        if self._tracker is not None:
            self._tracker.log_artifacts(folder, "profile")
        self.notify("profile", {"table": text, "folder": target})

    def notify(self, event: str, values: dict[str, Any]) -> None:
        """Send metrics and checkpoints that were passed over to MLflow, and every event to the driver.

        Args:
            event: see `Host.notify`.
            values: of a step or validation: `step`, and each metric under a name with a slash.
        """
        if self._tracker is not None and event in ("step", "validation"):
            metrics = {name: value for name, value in values.items() if "/" in name}
            self._tracker.log_metrics(metrics, step=values["step"])
        if self._tracker is not None and event == "passed over":
            self._tracker.set_tags({"bft.passed_over": "; ".join(values["lines"])})
        if self._board is not None:
            self._board.post.remote(event, values)


class StopAtFinal(ray.train.UserCallback):
    """In Ray Train's controller: end the run at once for an error that would come again, by raising it. Other errors are
    posted to the board.
    """

    def __init__(self, board: Any = None) -> None:
        self._decision, self._board = Decision(), board

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Note that the workers have made progress, so that earlier errors count no more."""
        self._decision.progressed()

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Decide whether the workers start again; Ray Train calls it before it starts them.

        Args:
            worker_exceptions: rank -> its error.

        Raises:
            Exception: the error that would come again; it ends the run.
        """
        final = self._decision.of(worker_exceptions)
        if final is not None:
            raise final
        if self._board is not None:
            self._board.post.remote("failed", {"why": first_cause(worker_exceptions)})


def train_worker(payload: dict[str, Any]) -> dict[str, Any]:
    """Train, then export from rank 0.

    A loss that is not finite is returned as a value and not raised: every rank has it. An error that only one rank may have
    is raised, so that the others do not wait for it; `StopAtFinal` decides whether the workers start again.

    Args:
        payload: `config`, `folder` (of the run), `export` (folder of its weights), `run_id` of MLflow and
            `board` (actor that shows progress) where there are any; `away`: see `Notices`.

    Returns:
        step, best value and step; or `error`; or `saved`, the step after which it saved and ended because the driver asked; or
        `away`, nodes without which the run is to go on from its last checkpoint.
    """
    config: Config = payload["config"]  # as the driver has validated it
    keep_for(config.cluster.file_mode)
    pin_threads(config)
    context = ray.train.get_context()
    is_first = context.get_world_rank() == 0
    tracker = Tracker.attach(config.tracking, payload["run_id"]) if is_first and "run_id" in payload else None
    notices = Notices(config.cluster, payload.get("away", ()))
    host = RayHost(payload["folder"], tracker, payload.get("board") if is_first else None, notices)
    try:
        host.notify("ready", {})
        tokenizer = load_tokenizer(config.model)
        data = load_data(config, tokenizer, context.get_local_rank())
        config = with_packing(config, payload["folder"])
        with asked(payload.get("run_id", "") if is_first else "") as is_asked:
            engine = Engine(config, host.device, asked=is_asked)
            if is_first:
                keep_packing(engine.rows, payload["folder"], tracker)
            state = fit(engine, config, data, host)
        if state.step < make_plan(config, data.train)[1]:
            return {"away": notices.away} if host.has_left and not engine.is_ending else {"saved": state.step}
        step = export(engine, config, tokenizer, host, state, payload["export"])
        return {"step": step, "best_value": state.best_value, "best_step": state.best_step}
    except NonFinite as error:
        return {"error": error}
    except Exception as error:
        places = storage.places(payload["folder"], config.data.cache_dir)
        told = explain(error, context.get_world_rank(), places)
        if isinstance(told, DiskFull):
            told = DiskFull(f"{on_this_node()}{told}")
        raise told from error
    finally:
        if tracker is not None:
            tracker.close()


def with_packing(config: Config, folder: str) -> Config:
    """The config with the packing that the run began with, where `data.packing` is null."""
    kept = None if config.data.packing is not None else read_kept(join(folder, PACKING), ["packing"])
    if kept is None:
        return config
    return config.model_copy(update={"data": config.data.model_copy(update={"packing": kept["packing"]})})


def keep_packing(rows: Rows, folder: str, tracker: Tracker | None) -> None:
    """Write the choice of packing, for every later start of the run and for MLflow."""
    if read_kept(join(folder, PACKING), ["packing"]) is None:
        write_kept(join(folder, PACKING), {"packing": rows.packing})
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
        anew = f"The best weights are lost. Delete all of {join(host.folder, 'step-*')}: the run then starts again."
        if folder is None:
            raise BadInput("checkpoint", step_name(state.best_step), f"in {host.folder}, and is gone", anew)
        verify_manifest(folder, engine.rank, engine.world_size, anew)
        engine.load(folder)
        step = state.best_step
    weights = engine.weights()
    if weights is not None:
        with scratch("export") as temporary:
            folder = temporary / "export"
            export_model(engine.module, weights, tokenizer, config.model, folder, config.checkpoint.merge_lora)
            put_folder(folder, target)
    dist.barrier()
    return step
