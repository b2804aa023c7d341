"""The doctor's checks of what a config names: model, data, study, tracking server and places."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from bft_ray.config import ClusterConfig, Config, SourceConfig
from bft_ray.data.record import BadRow, Row
from bft_ray.errors import BadInput
from bft_ray.operate.finding import Finding, alone
from bft_ray.operate.machine import GIB
from bft_ray.places.addresses import redact
from bft_ray.tracking.artifacts import check_artifacts
from bft_ray.tracking.server import check_server
from bft_ray.workers.address import address_of

NUM_ROWS = 10_000  # read of each source
_READ_WHOLE = 32 << 20  # bytes of training data up to which the splits of a study are read whole


def check_disk(config: Config) -> Iterable[Finding]:
    """Free space where checkpoints go, against a rough size of what the run keeps."""
    from bft_ray.operate.tried import weights_bytes
    from bft_ray.places.disk import free_bytes
    from bft_ray.places.storage import absolute, is_remote

    path = config.cluster.storage_path
    if is_remote(path):
        return
    free = free_bytes(absolute(path))
    # kept checkpoints, the newest and the export; full fine-tuning keeps fp32 weights and moments (12 bytes a weight)
    each = weights_bytes(config) * (1 if config.lora or config.model.adapter else 6)
    need = GIB + each * (config.checkpoint.keep + 2)
    remedy = "Choose another cluster.storage_path, free some space, or lower checkpoint.keep."
    detail = f"{free / GIB:.1f} GiB free for cluster.storage_path, about {need / GIB:.1f} GiB needed"
    yield Finding("disk", "ok" if free >= need else "warn", detail, remedy)


def check_name(config: Config) -> Iterable[Finding]:
    """An earlier run of this name in `cluster.storage_path`, which a training would resume; BadConfig for other settings."""
    from bft_ray.places import storage
    from bft_ray.train.pins import pin
    from bft_ray.train.record import STEP, read_record, refuse_other_run, with_first_choices

    if not config.name:
        return
    config = pin(config)
    folder = storage.join(config.cluster.storage_path, str(config.name))
    record = read_record(folder)
    if "step" in record or (record and storage.folders_in(folder, STEP)):  # else its name is free
        refuse_other_run(record, with_first_choices(config, record))
        yield Finding("name", "ok", f"the run {config.name} is there, with these settings: a training goes on with it")


def check_settings(config: Config) -> Iterable[Finding]:
    """Settings that are allowed but may be unexpected; BadInput for those that DeepSpeed refuses."""
    from bft_ray.train.overlay import check_overlay

    check_overlay(config)
    if config.lora and config.lora.dropout > 0:
        detail = f"lora.dropout is {config.lora.dropout:g}: results then depend on how a batch is laid out on workers"
        yield Finding(
            "settings", "warn", detail, "Set lora.dropout=0 to have the same result on any number of workers."
        )
    if config.model.trust_remote_code:
        detail = "model.trust_remote_code runs the Python code that comes with the model"
        yield Finding("settings", "warn", detail, "Read that code, and pin it by model.revision.")
    is_elsewhere = address_of(config.cluster) is not None  # here `check_model` knows
    package = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}.get(
        config.model.attention
    )
    if is_elsewhere and package and not find_spec(package):
        detail = f"model.attention is {config.model.attention}; its package is not here, and each node needs it"
        yield Finding("settings", "warn", detail, "Install it on every node, or set model.attention=sdpa.")
    unused = [name for name in config.loss.unused_fields() if name in config.loss.model_fields_set]
    if unused:
        names = ", ".join(f"loss.{name}" for name in unused)
        yield Finding("settings", "warn", f"without effect with these loss settings: {names}", "Take them out.")


def check_model(config: Config) -> Iterable[Finding]:
    """Tokenizer, configuration, headers of the weights, length and LoRA targets: as a run checks them."""
    from bft_ray.model import check
    from bft_ray.model.causal_lm import adapter_of, load_tokenizer
    from bft_ray.model.noise import noise_text
    from bft_ray.operate.tried import require_tried

    tokenizer = load_tokenizer(config.model)
    notes, described = check.check_model(config, tokenizer), check.describe(config)
    detail = f"{config.model.path}: {described.model_type}, a vocabulary of {len(tokenizer):,} tokens"
    require_tried(config, described)
    if not os.path.isdir(adapter_of(config.model)[0]):
        detail += "; the weights come from the hub when a run starts"
    if silenced := noise_text(described):
        detail += f"; {silenced}"
    yield Finding("model", "ok", detail)
    for note in notes:
        yield Finding("model", "warn", note, "Change it, unless that is what you want.")


def check_fit(config: Config) -> Iterable[Finding]:
    """Whether the tensors of a training step fit the GPUs, or the memory, of this machine: computed, nothing is loaded."""
    from bft_ray.operate.plan.fit import fit_of
    from bft_ray.operate.plan.trace import Untraceable

    try:
        fit = fit_of(config)
    except Untraceable as error:
        yield Finding("plan", "warn", str(error), "The first step will show what it needs.")
        return
    remedy = f"It fits with {fit.remedy}" if fit.remedy else "`bft-ray plan CONFIG` shows set-ups that need less."
    yield Finding("plan", fit.status, str(fit), remedy)


def check_data(config: Config) -> Iterable[Finding]:
    """The first rows of every source, and all of what tasks measure."""
    if not config.data.train:
        remedy = "Name data.train to train with it; `bft-ray evaluate` needs none."
        yield Finding("data", "warn", "data.train names nothing: this config measures and cannot train", remedy)
    for use in ("train", "validation"):
        for index, source in enumerate(getattr(config.data, use)):
            yield from alone("data", partial(_read_source, source, f"data.{use}.{index}"))
    for name in [task.name for task in config.evaluation.tasks]:
        yield from alone("data", partial(_read_task, config, name))
    yield from _shared_rows(config)


def _read_source(source: SourceConfig, field: str) -> str:
    rows = _first_rows(source, field)
    bad = [row for row in rows if isinstance(row, BadRow)]
    if len(bad) == len(rows):
        reason = bad[0].reason if bad else "it has no rows"
        raise BadInput(field, source.path, f"data with usable rows: {reason}", "Look at its first lines.")
    left_out = f", {len(bad)} of them left out ({bad[0].where}: {bad[0].reason})" if bad else ""
    return f"{field}: {len(rows)} first rows read from {source.path}{left_out}"


def _first_rows(source: SourceConfig, field: str) -> list[Row | BadRow]:
    from bft_ray.data.rows import read_rows

    return list(itertools.islice(read_rows(source, field), NUM_ROWS))


def _usable_rows(config: Config, use: str) -> Iterator[list[Row]]:
    """Of each source of `data.train` or `data.validation`, those of its first rows that a run uses."""
    for index, source in enumerate(getattr(config.data, use)):
        yield [row for row in _first_rows(source, f"data.{use}.{index}") if isinstance(row, Row)]


def check_samples(config: Config) -> Iterable[Finding]:
    """All rows as a run reads and tokenises them, where they are files of no great size.

    Raises:
        BadInput: see `prepare`: rows that are too long, a source of which none is left, a cache that cannot be written.
    """
    from bft_ray.data.dataset import prepare
    from bft_ray.data.passing import tokens_pass
    from bft_ray.data.tables import resolve_path
    from bft_ray.data.tokenise import with_date
    from bft_ray.model.causal_lm import load_tokenizer
    from bft_ray.places.modes import kept_for
    from bft_ray.train.pins import pin_paths

    files = [Path(resolve_path(one.path)).expanduser() for one in (*config.data.train, *config.data.validation)]
    if not all(file.is_file() for file in files) or sum(file.stat().st_size for file in files) > _READ_WHOLE:
        return
    tokenizer = load_tokenizer(config.model)
    with tokens_pass(), kept_for(config.cluster.file_mode):
        data = with_date(pin_paths(config).data, tokenizer)
        for use in ("train", "validation"):
            if sources := getattr(data, use):
                num = len(prepare(sources, tokenizer, data, f"data.{use}").num_supervised)
                yield Finding(
                    "tokens", "ok", f"data.{use}: {num:,} sample{'s' if num != 1 else ''} to learn or measure"
                )


def _shared_rows(config: Config) -> Iterable[Finding]:
    """Validation rows that are training rows, among the first of every source; who cannot be read was told."""
    from bft_ray.data.rows import row_key

    try:
        validation = [row_key(row) for rows in _usable_rows(config, "validation") for row in rows]
        trained = {row_key(row) for rows in _usable_rows(config, "train") for row in rows} if validation else set()
    except BadInput:
        return
    if shared := sum(key in trained for key in validation):
        detail = f"{shared} of the {len(validation)} first rows of data.validation are training rows too"
        yield Finding("data", "warn", detail, "Take them out of one of the two: what was trained on is remembered.")


def check_schedule(config: Config) -> Iterable[Finding]:
    """A training that ends with its first step, or batches that hold rows twice, as told from the first rows of every source."""
    from bft_ray.config.steps import num_steps

    if not config.data.train:
        return
    try:
        counts = [len(rows) for rows in _usable_rows(config, "train")]
    except BadInput:  # `check_data` tells it
        return
    size = config.data.global_batch_size
    if max(counts) < NUM_ROWS and sum(counts) < size:
        detail = f"data.global_batch_size is {size}, and there are {sum(counts)} rows: each step trains on rows more than once"
        yield Finding("schedule", "warn", detail, "Lower data.global_batch_size, or give more rows.")
        return
    if config.schedule.steps is not None or num_steps(config, counts) > 1:
        return
    those = "the first " if max(counts) == NUM_ROWS else ""
    detail = (
        f"schedule.epochs is {config.schedule.epochs:g}: a single step, with {those}{sum(counts):,} rows "
        f"and data.global_batch_size {size}"
    )
    yield Finding("schedule", "warn", detail, "Raise schedule.epochs, lower data.global_batch_size, or give more rows.")


def _read_task(config: Config, name: str) -> str:
    from bft_ray.evaluate.run import prepare_all, prepare_context

    try:
        context = prepare_context(config)
    except BadInput:
        return f"evaluation.tasks.{name}: not read, because there is no tokenizer"
    [prepared] = prepare_all(config, context, [name]).values()
    items = sum(len(request.ids) for request in getattr(prepared, "requests", []))
    return f"evaluation.tasks.{name}: read, {items} item{'s' if items != 1 else ''} to ask of the model"


def check_space(path: Path, overrides: Sequence[str] = ()) -> Iterable[Finding]:
    """A search space beside the config: whether the two fit, and its splits, checked as a study does."""
    from bft_ray.space import load
    from bft_ray.study.checks.ready import inspect_study

    space = load.load_space(path)
    base = load.load_base(space, overrides=overrides)
    load.check_space(space, base, str(path))
    splits = [name for name in ("overrides", "test") if space.confirmation and getattr(space.confirmation, name)]
    names = ", ".join(["search", *("confirmation" if name == "overrides" else name for name in splits)])
    size = sum(Path(source.path).stat().st_size for source in base.data.train if Path(source.path).is_file())
    if size > _READ_WHOLE:
        text = f"{path.name} fits the config; `bft-ray search {path} --dry-run` reads its splits ({names})"
        yield Finding("space", "ok", text)
        return
    lines: list[str] = []
    inspect_study(space, base, lines.append)
    yield Finding("space", "ok", f"{path.name} fits the config; its splits ({names}) are read, and differ")
    for text in lines:
        if text.startswith("note"):
            yield Finding("space", "warn", text.removeprefix("note: "), "Change it, unless that is what you want.")


def check_database() -> Iterable[Finding]:
    """Where a study would write its records: whether that is a place for a database. It is not opened."""
    from bft_ray.study.records.database import check_place, database_url

    url = database_url(None)
    check_place(url)
    yield Finding("database", "ok", f"a study writes its records to {redact(url)}")


def check_tracking(config: Config) -> Iterable[Finding]:
    """The tracking server or database, and where artifacts go, as a run checks it."""
    check_server(config.tracking)
    place = check_artifacts(config.tracking, config.experiment)
    yield Finding("tracking", "ok", f"{redact(config.tracking.uri)}; artifacts go to {place}")


def check_storage(cluster: ClusterConfig) -> Iterable[Finding]:
    """The results folder, from here."""
    from bft_ray.places.storage import check_writable

    check_writable(cluster.storage_path)
    yield Finding("storage", "ok", f"{cluster.storage_path} can be written")
