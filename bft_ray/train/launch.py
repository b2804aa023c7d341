"""One fine-tuning run from the driver: check everything, train on Ray workers, evaluate, record."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from bft_ray.config import Config, LossConfig, SourceConfig, flatten
from bft_ray.data.dataset import TokenDataset, prepare
from bft_ray.data.passing import tokens_pass
from bft_ray.data.tokenise import with_date
from bft_ray.errors import BadInput, first_line
from bft_ray.evaluate.run import evaluate_model, prepare_all, prepare_context
from bft_ray.model.card import measured_table, model_card
from bft_ray.model.causal_lm import load_tokenizer
from bft_ray.model.check import check_for_training
from bft_ray.model.checksums import require_unchanged
from bft_ray.model.export import exported_kind
from bft_ray.page.html import to_html
from bft_ray.places import storage
from bft_ray.places.addresses import redact, redacted_yaml
from bft_ray.places.modes import kept_for, settle
from bft_ray.places.remote import is_remote
from bft_ray.tracking.artifacts import check_artifacts
from bft_ray.tracking.recall import Recalled, folder_tag, recall
from bft_ray.tracking.run import Tracker
from bft_ray.tracking.server import check_server
from bft_ray.train.overlay import check_overlay
from bft_ray.train.page import METRICS as STEP_METRICS
from bft_ray.train.page import training_page
from bft_ray.train.pins import pin
from bft_ray.train.progress import Board, Display, Watcher
from bft_ray.train.record import (
    identity_of,
    is_lost,
    kept_or_anew,
    only_one,
    read_record,
    refuse_other_data,
    refuse_other_run,
    with_first_choices,
    write_record,
)
from bft_ray.train.workers import run_workers
from bft_ray.waits import waiting
from bft_ray.workers.connect import connect, require_cluster
from bft_ray.workers.room import require_resources


@dataclass(frozen=True)
class TrainResult:
    """A finished run."""

    name: str
    run_id: str
    folder: str  # results of the run
    export: str  # the exported model or adapter
    step: int  # that the exported weights are of
    before: dict[str, float]
    after: dict[str, float]
    missing: dict[str, str] = field(default_factory=dict)  # what MLflow should hold and does not -> why


def train(config: Config, display: Display | None = None) -> TrainResult:
    """Fine-tune with `config`; the same name and storage path resume an unfinished run.

    Raises:
        BadConfig, BadInput: before any worker starts, for every fault that can be found by then.
        NonFinite: a loss or gradient was not finite.
        Saved: USR1 has come, and a checkpoint is saved.
        BftError: the workers failed more often than `cluster.max_failures`.
    """
    with tokens_pass(), kept_for(config.cluster.file_mode):
        has_name, config = bool(config.name), pin(config)
        display = display or Display()
        if not has_name:
            display.line(f"note: the config names no run, so this is {config.name}: name={config.name} resumes it")
        storage.check_writable(config.cluster.storage_path)
        folder = storage.join(config.cluster.storage_path, str(config.name))
        with only_one(folder, str(config.name)):
            try:
                return _train(config, display, folder)
            finally:  # with what Ray and libraries have written
                settle(folder)


def _train(config: Config, display: Display, folder: str) -> TrainResult:
    record = read_record(folder)
    given, config = config, with_first_choices(config, record)
    check = partial(refuse_other_run, record, config)
    if not (record := kept_or_anew(record, check, folder, config, display.line)):
        config = given
    if "after" in record:
        if storage.exists(storage.join(folder, "export")):
            return _finished(config, folder, record, display)
        display.line(f"the run {config.name} is finished, and its export is gone: it is made again")
    require_cluster(config.cluster)
    check_server(config.tracking)
    check_artifacts(config.tracking, config.experiment)
    found = recalled(config, folder, display.line) if is_lost(folder) else None
    check_overlay(config)
    config, datasets, identity = _inputs(config, found.date if found else None, display)
    if found is not None:
        record = {"run_id": found.run_id, "identity": identity | found.fingerprints}
    check = partial(refuse_other_data, record, identity, config, display.line)
    if not (record := kept_or_anew(record, check, folder, config, display.line)):
        data = config.data.model_copy(update={"packing": given.data.packing})  # chosen for the other data
        config = config.model_copy(update={"data": data})
    check_tasks(config)
    defaults = LossConfig(method=config.loss.method)
    for name in config.loss.unused_fields():
        if getattr(config.loss, name) != getattr(defaults, name):
            display.line(f"note: loss.{name} has no effect with these loss settings")
    if config.lora and config.lora.dropout > 0:
        display.line("note: lora.dropout > 0: results now depend on how batches are laid out over workers")

    with connect(config.cluster):
        require_resources(config.cluster)
        with Tracker.start(
            config.tracking,
            experiment=config.experiment,
            run_name=str(config.name),
            run_id=record.get("run_id"),
            params=_params(config),
            tags={"bft.domain": config.domain, "bft.method": config.loss.method, "bft.kind": "train"}
            | folder_tag(folder)
            | config.tracking.tags,
        ) as tracker:
            display.line(f"run {config.name}: MLflow run {tracker.run_id} in experiment {config.experiment}")
            known = {"before": record["before"]} if "before" in record else {}
            keep = partial(write_record, folder, config, tracker.run_id, identity)
            keep(**known)
            _log_inputs(tracker, config, datasets)
            before = _before(config, tracker, record, keep, display)
            step = _fit(config, tracker, folder, display)
            result = _finish(config, tracker, folder, datasets, before, step, keep, display)
        return replace(result, missing=tracker.missing)


def _inputs(
    config: Config, date: str | None, display: Display
) -> tuple[Config, dict[str, TokenDataset], dict[str, str]]:
    """What the run reads, with its fingerprints; the config with the date of the chat template."""
    tokenizer = load_tokenizer(config.model)
    config = config.model_copy(update={"data": with_date(config.data, tokenizer, date)})
    for note in check_for_training(config, tokenizer):
        display.line(f"note: {note}")
    datasets = load_datasets(config, tokenizer, display)
    return config, datasets, identity_of(config, datasets)


def _finished(config: Config, folder: str, record: dict[str, Any], display: Display) -> TrainResult:
    """The result of an earlier command, if the config still names the rows and weights of that one."""
    try:
        refuse_other_data(record, _inputs(config, None, display)[2], config, display.line)
    except BadInput as error:  # they may be gone since
        display.line(f"note: whether rows and weights are still those of the run is not known: {first_line(error)}")
    display.line(f"the run {config.name} is finished; choose another name to train again")
    exported = storage.join(folder, "export")
    if not is_remote(exported):
        remedy = f"Remove {exported} and give the same command: it is made again from the last checkpoint"
        require_unchanged(Path(exported), "export", remedy)
    return TrainResult(
        str(config.name), record["run_id"], folder, exported, record["step"], record["before"], record["after"]
    )


def recalled(config: Config, folder: str, line: Callable[[str], None]) -> Recalled | None:
    """What MLflow has of a run whose `run.json` is damaged, so that it resumes in the same MLflow run; None: nothing.

    Args:
        line: called with notes on what was found, and on what is not known any more.
    """
    found = recall(config.tracking, config.experiment, folder)
    if found is None:
        line(f"note: MLflow has no run of {folder} in experiment {config.experiment}: a new one is begun")
        return None
    line(
        f"note: MLflow run {found.run_id} is that of {folder}, and is resumed; its settings and rows are compared with what "
        "MLflow holds. Whether model and tasks are those that it began with is not known; from now on it is checked"
    )
    return found


def check_tasks(config: Config) -> None:
    """Read and tokenise what is measured at the end, so that a fault is found before the training."""
    names = [task.name for task in config.evaluation.tasks]
    if names:
        prepare_all(config, prepare_context(config), names)


def load_datasets(config: Config, tokenizer: Any, display: Display) -> dict[str, TokenDataset]:
    """Tokenise (or find in the cache) what the run reads, and print what was kept and dropped."""
    wanted: dict[str, list[SourceConfig]] = {"train": config.data.train, "validation": config.data.validation}
    datasets = {}
    for use, sources in wanted.items():
        if sources:
            datasets[use] = prepare(sources, tokenizer, config.data, f"data.{use}")
            display.line(f"{use} data: {datasets[use].report.to_text()}")
    if "validation" in datasets:
        trained, validation = set(datasets["train"].keys), datasets["validation"]
        if shared := sum(key in trained for key in validation.keys):
            display.line(
                f"note: {shared} of the {len(validation)} validation rows are training rows too: validation tells how well "
                "these are remembered"
            )
    return datasets


def _params(config: Config) -> dict[str, Any]:
    """Params of the run; an open choice is left out, which the workers make and write (MLflow never changes a param)."""
    return {name: value for name, value in flatten(config).items() if name != "data.packing" or value is not None}


def _log_inputs(tracker: Tracker, config: Config, datasets: dict[str, TokenDataset]) -> None:
    tracker.log_text(redacted_yaml(config), "config.yaml")
    for use, dataset in datasets.items():
        paths = ", ".join(source.path for source in getattr(config.data, use))
        tracker.log_dataset(use, source=paths, fingerprint=dataset.fingerprint, num_rows=len(dataset), context=use)
        tracker.log_text(json.dumps(dataset.report.to_dict(), indent=1), f"data/{use}.json")


def _before(
    config: Config, tracker: Tracker, record: dict[str, Any], keep: Callable[..., None], display: Display
) -> dict[str, float]:
    """Metrics of the base model; measured once, also when the run is resumed."""
    if not config.evaluation.tasks or not config.evaluation.before:
        return {}
    if "before" in record:
        return record["before"]
    display.line("evaluating the base model")
    before = evaluate_model(config).metrics
    tracker.log_metrics(before, step=0)
    keep(before=before)
    return before


def _fit(config: Config, tracker: Tracker, folder: str, display: Display) -> int:
    """Run the workers; returns the step of the exported weights."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # on this node: a board on a worker's node would be lost with it, and nobody would hear of the run any more
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = ray.remote(num_cpus=0)(Board).options(scheduling_strategy=here).remote()
    payload = {"run_id": tracker.run_id, "board": board, "folder": folder, "export": storage.join(folder, "export")}
    with waiting("training: starting workers") as wait, Watcher(board, display, wait):
        return int(run_workers(config, payload)["step"])


def _finish(
    config: Config,
    tracker: Tracker,
    folder: str,
    datasets: dict[str, TokenDataset],
    before: dict[str, float],
    step: int,
    keep: Callable[..., None],
    display: Display,
) -> TrainResult:
    """Measure the exported model, write its card, and record both."""
    exported = storage.join(folder, "export")
    local = storage.fetch_folder(exported)
    after: dict[str, float] = {}
    final: dict[str, float] = {}  # the same, named apart from those measured on the way
    items: list[dict[str, Any]] = []
    fingerprints = {use: dataset.fingerprint for use, dataset in datasets.items()}
    if datasets.get("validation") or config.evaluation.tasks:
        display.line("evaluating the trained model")
        # not `local`: workers on other nodes fetch it for themselves
        measured = evaluate_model(config.model_copy(update={"model": config.exported(exported)}))
        after, items = measured.metrics, measured.records
        final = {f"final/{name}": value for name, value in after.items()}
        tracker.log_metrics(final, step=step)
    text = model_card(
        config,
        kind=exported_kind(local),
        folder=exported,
        fingerprints=fingerprints,
        before=before,
        after=after,
        run_id=tracker.run_id,
        step=step,
    )
    card = redact(text)
    (local / "README.md").write_text(card)
    if storage.is_remote(exported):
        with waiting("storing the export"):
            storage.write_text(storage.join(exported, "README.md"), card)
    tracker.log_text(card, "model_card.md")
    page = training_page(f"{config.name}: {config.domain}, {config.loss.method}", tracker.history(STEP_METRICS), items)
    tracker.log_text(to_html(page, live=False), "training.html")
    note = "\n".join([f"Exported: the weights of step {step}, `{exported}`", "", *measured_table(before, after)])
    tracker.set_tags({"bft.step": str(step), "bft.export": exported, "mlflow.note.content": note})
    if config.tracking.log_model:
        tracker.log_model(local, name=f"bft-{config.domain}", metrics=final, step=step, datasets=fingerprints)
    keep(before=before, after=after, step=step)
    return TrainResult(str(config.name), tracker.run_id, folder, exported, step, before, after)
