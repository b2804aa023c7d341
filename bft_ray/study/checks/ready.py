"""Every check of a study that needs no worker; and the facts that the data give."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from bft_ray.config import Config
from bft_ray.config.measured import VALIDATION
from bft_ray.data.dataset import TokenDataset, prepare
from bft_ray.errors import BadInput
from bft_ray.evaluate import overlap
from bft_ray.model.base_weights import weights_fingerprint
from bft_ray.model.causal_lm import load_tokenizer
from bft_ray.model.check import check_anchor, check_for_training
from bft_ray.places import storage
from bft_ray.space.assign import baseline_config, config_of, with_overrides
from bft_ray.space.definition import SearchSpace
from bft_ray.space.grid import baseline_assignments, representatives
from bft_ray.study.checks.splits import Rows, check_splits, items_of, rows_of
from bft_ray.study.definition import rows_key
from bft_ray.tracking.artifacts import check_artifacts
from bft_ray.tracking.server import check_server
from bft_ray.train.launch import check_tasks
from bft_ray.train.overlay import check_overlay
from bft_ray.train.pins import pin_paths
from bft_ray.train.record import files_fingerprint

_LISTED = 64  # combinations that are looked at for other rows
_MOST_ROWS = 16  # other sets of training rows that are read before the study


@dataclass(frozen=True)
class Facts:
    """What the checks read from the data, and the driver needs.

    Args:
        first: the first trial's config. All trials need the same of a worker and of the data.
        longest, samples_per_source: see `Study`; None where trials differ in it.
        fingerprints: use -> fingerprint of its data, `model`: of the base weights. They are part of the study's identity.
        num_items: search, confirmation, test -> items that the objective is measured on, where they are rows of a file.
    """

    first: Config
    longest: int | None
    samples_per_source: tuple[int, ...] | None
    fingerprints: dict[str, str]
    num_items: Mapping[str, int] = field(default_factory=dict)


def inspect_study(space: SearchSpace, base: Config, line: Callable[[str], None] = lambda text: None) -> Facts:
    """Read and tokenise all data of the study, and check the places that it writes to.

    Args:
        line: called with lines on what was kept and dropped of the data.

    Raises:
        BadInput: bad data, splits that share rows, a model or tokenizer that cannot be read, a folder that cannot be
            written, no server.
    """
    first = pin_paths(config_of(base, space, representatives(space, 1)[0]))
    _require_one_layout(space, first)
    storage.check_writable(first.cluster.storage_path)
    check_server(first.tracking)
    check_artifacts(first.tracking, first.experiment)
    check_overlay(first)
    splits = {"search": first}
    if space.confirmation is not None:
        splits["confirmation"] = pin_paths(with_overrides(first, space.confirmation.overrides, "confirmation"))
        if space.confirmation.test:
            splits["test"] = pin_paths(with_overrides(first, space.confirmation.test, "confirmation.test"))
    tokenizer = load_tokenizer(first.model)
    for note in check_for_training(first, tokenizer):
        line(f"note: {note}")
    _tell_anchor(space, base, line)
    train = prepare(first.data.train, tokenizer, first.data, "data.train")
    line(f"train data: {_brief(train)}")
    fingerprints = {"train": train.fingerprint, "model": weights_fingerprint(first.model)}
    measured = space.objective.metric.split("/")[0]
    rows: dict[str, Rows] = {}
    for split, config in splits.items():
        if config.data.validation:
            dataset = prepare(config.data.validation, tokenizer, config.data, f"data.validation ({split})")
            line(f"{split} data: {_brief(dataset)}")
            fingerprints[f"{split}.validation"] = dataset.fingerprint
            if measured == VALIDATION:
                rows[split] = rows_of(dataset)
        check_tasks(config)
        fingerprints |= {f"{split}.{task.name}": files_fingerprint(task) for task in config.evaluation.tasks}
        for task in config.evaluation.tasks:
            if task.name == measured:
                rows[split] = items_of(task)
    check_splits(space.objective.metric, rows, rows_of(train) if measured == VALIDATION else {}, line)
    tasks = {f"{task.name} ({split})": task for split, one in splits.items() for task in one.evaluation.tasks}
    for note in overlap.notes(overlap.overlaps(first, tasks)):
        line(note)
    assignments = [*representatives(space, 1)[:1], *representatives(space, _LISTED)]
    trials = [config_of(base, space, assignment) for assignment in assignments]
    fingerprints |= _other_rows(space, base, trials, line)
    varies = len({rows_key(trial) for trial in trials}) > 1
    longest, samples = int(train.num_supervised.max()), train.samples_per_source
    _require_items(space, rows)
    num_items = {split: len(own) for split, own in rows.items() if own}
    return Facts(first, None if varies else longest, None if varies else samples, fingerprints, num_items)


def _other_rows(
    space: SearchSpace, base: Config, trials: Sequence[Config], line: Callable[[str], None]
) -> dict[str, str]:
    """Check the rows of baselines and trials that train on others than the first trial, so that none fails after others
    have run. Returns their fingerprints: who changes them has another study.

    Args:
        trials: that stand for all of the search, the first one first.
    """
    tuned = baseline_assignments(space)[0]
    runs = [(f"baseline {one.name}", baseline_config(base, space, one, tuned)) for one in space.baselines]
    runs += [("trial", trial) for trial in trials[1:]]
    found: dict[str, str] = {}
    keys = {rows_key(trials[0])}
    for name, run in runs:
        if (key := rows_key(run)) in keys:
            continue
        keys.add(key)
        if len(found) == _MOST_ROWS:
            line(f"note: the training rows of {name} and of what follows it are read when they run")
            break
        config = pin_paths(run)
        rows = prepare(config.data.train, load_tokenizer(config.model), config.data, f"data.train ({name})")
        line(f"train data of {name}: {_brief(rows)}")
        found[f"train.{len(found) + 1}"] = rows.fingerprint
    return found


def _require_one_layout(space: SearchSpace, config: Config) -> None:
    """Raise BadInput for a deterministic study whose number of workers may change, and with it the last bits."""
    least, most = config.cluster.least_workers, config.cluster.num_workers
    if space.deterministic and least < most:
        rule = "one number in a deterministic study: another number of workers changes the last bits of a result"
        raise BadInput("cluster.num_workers", [least, most], rule, f"Use {most}, or deterministic: false.")


def _tell_anchor(space: SearchSpace, base: Config, line: Callable[[str], None]) -> None:
    """Check trials with an anchor, and say what they cost beyond the first trial, whose needs are measured."""
    trials = (config_of(base, space, assignment) for assignment in representatives(space, 1))
    anchored = next((trial for trial in trials if trial.loss.anchor), None)
    if anchored is None:
        return
    check_anchor(pin_paths(anchored))
    held = "with the adapters off" if anchored.lora else "through a frozen copy of the weights, which takes memory"
    line(f"note: trials with an anchor do one more forward pass of each micro-batch, {held}")


def _require_items(space: SearchSpace, rows: Mapping[str, Rows]) -> None:
    """Raise BadInput for a split of one item: trials are compared by item, and one has no spread."""
    for split, own in rows.items():
        if len(own) == 1:
            rule = f"at least 2, to compare {space.objective.metric} item by item"
            raise BadInput(f"items of the {split} data", 1, rule, "Give it more rows.")


def _brief(dataset: TokenDataset) -> str:
    """The first line of its report."""
    return dataset.report.to_text().partition("\n")[0]
