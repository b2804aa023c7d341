"""A study of GRPO after fine-tuning from end to end: fine-tune each arm under each seed, run GRPO, tell and record."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bft_ray.config import Config
from bft_ray.config.load import flatten
from bft_ray.data.tokenise import with_date
from bft_ray.errors import BadConfig, BadInput
from bft_ray.evaluate.engine.request import Context
from bft_ray.model.base_weights import weights_fingerprint
from bft_ray.model.causal_lm import load_tokenizer
from bft_ray.operate.after_rl.answer import Told, sentences, told
from bft_ray.operate.after_rl.definition import WARM_UP, AfterRl
from bft_ray.operate.after_rl.grpo import require_trl
from bft_ray.operate.after_rl.items import Items, as_jsonl, items_of, require_apart, rows_of
from bft_ray.operate.after_rl.page import after_rl_page, arms_table
from bft_ray.operate.after_rl.record import Run, read_run
from bft_ray.operate.after_rl.stage import Start, Task, run_stage
from bft_ray.operate.lasting import require_outlasting
from bft_ray.page.html import to_html
from bft_ray.page.model import shown_time
from bft_ray.places import storage
from bft_ray.places.addresses import redact_tree
from bft_ray.places.kept import read_kept, write_kept, write_text
from bft_ray.places.modes import kept_for
from bft_ray.places.remote import is_remote
from bft_ray.study.report.arms import markdown
from bft_ray.study.report.recorder import PAGE, log_report
from bft_ray.tracking.begin import RUN_KEY
from bft_ray.tracking.resume import MAY_CHANGE, changed_fields, describe_change
from bft_ray.tracking.run import Tracker
from bft_ray.tracking.server import check_server
from bft_ray.train.launch import train
from bft_ray.workers.connect import connect
from bft_ray.workers.spread import spread

EXPERIMENT = "bft/after-rl"
#: parts of the config that no run of a study reads
_NOT_USED = ("evaluation.", "checkpoint.", "name", "seed")
Line = Callable[[str], None]


@dataclass(frozen=True)
class Ready:
    """A study that was checked: everything that can be wrong before a worker starts is not.

    Args:
        base: the config that all arms share.
        folder: of the study.
        rows: training rows that were made of choices, as a file's text; "" where none are.
    """

    study: AfterRl
    base: Config
    folder: str
    rows: str
    train: Items
    held_out: Items
    context: Context

    @property
    def rows_file(self) -> str | None:
        """The file of the training rows; None: the config names its own."""
        return storage.join(self.folder, "rows.jsonl") if self.rows else None

    def config_of(self, arm: str, seed: int, start: str | None = None) -> Config:
        """The config of one run, in the folder of this study."""
        return self.study.config_of(arm, seed, storage.join(self.folder, "runs"), self.rows_file, start)

    def runs(self) -> list[Run]:
        """Those that have ended."""
        found = (read_run(self.folder, arm, seed) for arm in self.study.arms for seed in self.study.seeds)
        return [run for run in found if run is not None]

    def told(self) -> Told:
        """What they say."""
        shared = dict(zip(self.held_out.ids, self.held_out.groups, strict=True)) if any(self.held_out.groups) else None
        return told(self.study, self.runs(), shared, self.held_out.constant)


def prepare(study: AfterRl) -> Ready:
    """Read and check all that a study needs; no model is loaded and nothing is written.

    Raises:
        BadConfig, BadInput: what is wrong with the config of any arm, the rows, or what an earlier command under this name had.
    """
    base = study.base()
    place = storage.absolute(base.cluster.storage_path)
    if is_remote(place) and study.rows.from_choices:
        remedy = "Name a folder that all nodes share, or write the rows as prompt and completion yourself."
        raise BadInput("cluster.storage_path", place, "a folder where rows.from_choices is given", remedy)
    if base.model.quantization:
        remedy = (
            "Train the arms in 4 bits by themselves, with checkpoint.merge_lora, and name them by arms.ARM.exports."
        )
        raise BadInput("model.quantization", base.model.quantization, "null: GRPO starts from weights in fp32", remedy)
    folder = storage.join(place, "after_rl", study.name)
    tokenizer = load_tokenizer(base.model)
    context = Context(tokenizer, with_date(base.data, tokenizer), base.evaluation.batch_tokens, base.seed)
    kind = study.rows.from_choices
    rows = rows_of(study.rows.train or base.data.train, "rows.train", kind)
    train_items = items_of(rows, context, study.rows.answer)
    held_out = items_of(rows_of(study.rows.held_out, "rows.held_out", kind), context, study.rows.answer)
    require_apart(train_items, held_out)
    ready = Ready(study, base, folder, as_jsonl(rows) if kind else "", train_items, held_out, context)
    for arm, own in study.arms.items():
        ready.config_of(arm, study.seeds[0])
        for path in [_export_of(own.exports, seed) for seed in study.seeds] if own.exports else []:
            if not is_remote(path) and not Path(path).is_dir():
                raise BadInput(f"arms.{arm}.exports", path, "a folder with an exported model for each seed")
    _refuse_other(ready)
    return ready


def run_after_rl(study: AfterRl, line: Line) -> str:
    """Run a study to its end, or resume it: what has ended is not repeated; returns the answer.

    Args:
        line: called with what is done.

    Raises:
        BadConfig, BadInput: before anything trains, for every fault that can be found by then; no TRL is one.
        BftError: a training that failed.
    """
    require_trl()
    ready = prepare(study)
    require_outlasting(ready.base)
    check_server(ready.base.tracking)
    storage.check_writable(ready.base.cluster.storage_path)
    with kept_for(ready.base.cluster.file_mode):
        write_kept(_identity_file(ready), _identity(ready))
        if ready.rows_file:
            write_text(ready.rows_file, ready.rows)
        ended = {(run.arm, run.seed) for run in ready.runs()}
        todo = [(arm, seed) for seed in study.seeds for arm in study.arms if (arm, seed) not in ended]
        if todo:
            with connect(ready.base.cluster):
                _run(ready, todo, line)
        found = ready.told()
        if not _record(ready, found):
            line("MLflow is away: the same command records what it lacks")
        write_text(_page_file(ready), to_html(after_rl_page(found, shown_time())))
    return f"{text_of(found)}\npage      {_page_file(ready)}"


def _run(ready: Ready, todo: Sequence[tuple[str, int]], line: Line) -> None:
    starts, warm = [], {}
    for number, (arm, seed) in enumerate(todo, 1):
        given = ready.study.arms[arm].exports
        if given is not None:
            path = _export_of(given, seed)
        else:
            if ready.study.warm_up and seed not in warm:
                line(f"--- warm-up of seed {seed}")
                warm[seed] = train(ready.config_of(WARM_UP, seed)).export
            line(f"--- fine-tuning {arm}, seed {seed} ({number} of {len(todo)})")
            path = train(ready.config_of(arm, seed, warm.get(seed))).export
        starts.append(Start(arm, seed, ready.base.model.model_copy(update={"path": path, "adapter": None})))
    data, batch_tokens = ready.context.data, ready.context.batch_tokens
    answer, grpo = ready.study.rows.answer, ready.study.grpo
    task = Task(ready.folder, ready.train, ready.held_out, answer, grpo, data, batch_tokens)

    def progress(done: int, total: int) -> None:
        line(f"GRPO: {done} of {total} runs have ended")

    line(f"--- GRPO: {len(starts)} runs")
    spread(run_stage, starts, cluster=ready.base.cluster, setup=partial(_given, task), progress=progress)


def _export_of(pattern: str, seed: int) -> str:
    return storage.absolute(pattern.replace("{seed}", str(seed)))


def _given(task: Task) -> Task:
    return task


def status_of(study: AfterRl) -> str:
    """What the runs that have ended say."""
    return text_of(prepare(study).told())


def plan_of(study: AfterRl) -> str:
    """What would run, from the definition and the rows alone."""
    ready = prepare(study)
    grpo, ended = study.grpo, len(ready.runs())
    total = len(study.arms) * len(study.seeds)
    lines = [
        f"{len(study.arms)} arms ({', '.join(study.arms)}) x {len(study.seeds)} seeds = {total} runs, {ended} of them ended",
        f"rows: {len(ready.train.ids)} prompts to train on, {len(ready.held_out.ids)} held-out items",
        f"GRPO: {grpo.steps} steps of {grpo.prompts} prompts with {grpo.generations} answers of at most "
        f"{grpo.max_new_tokens} tokens, learning rate {grpo.learning_rate:g}",
        f"results: {ready.folder}",
    ]
    return "\n".join(lines)


def text_of(found: Told) -> str:
    """The answer for a terminal."""
    lines = [found.study.question, *sentences(found), "", markdown(arms_table(found))]
    return "\n".join(text.replace("**", "").replace("`", "") for text in lines)


# ---- the same study ------------------------------------------------------------------------------------------------


def _identity(ready: Ready) -> dict[str, Any]:
    """What the records of a study depend on, as flat fields without passwords; more seeds, other claims and another question
    do not change them, nor do places, layout and how much is kept."""
    study = ready.study
    config = {name: value for name, value in flatten(ready.base).items() if not name.startswith(_NOT_USED)}
    fields = {
        **{f"config.{name}": value for name, value in config.items() if not name.startswith(MAY_CHANGE)},
        "config.model.path (weights)": weights_fingerprint(ready.base.model),
        **{f"grpo.{name}": value for name, value in flatten(study.grpo).items()},
        **{f"{WARM_UP}.{name}": value for name, value in study.warm_up.items()},
        **{f"arms.{arm}": own.model_dump(mode="json") for arm, own in study.arms.items()},
        "rows.train": ready.train.digest(),
        "rows.held_out": ready.held_out.digest(),
        "rows.answer": study.rows.answer,
    }
    return redact_tree(fields)


def _refuse_other(ready: Ready) -> None:
    """Raises BadConfig where the records under this name are of another study; arms may come and go."""
    old, new = read_kept(_identity_file(ready)), _identity(ready)
    if old is None:
        return
    changed = changed_fields(old, new, ("arms.",))
    changed += [name for name in sorted({*old} & {*new}) if name.startswith("arms.") and old[name] != new[name]]
    if changed:
        lines = [describe_change(name, old, new) for name in changed]
        raise BadConfig(f"the study `{ready.study.name}` exists with other settings; give it another `name`. It", lines)


def _identity_file(ready: Ready) -> str:
    return storage.join(ready.folder, "study.json")


def _page_file(ready: Ready) -> str:
    return storage.join(ready.folder, PAGE)


# ---- MLflow --------------------------------------------------------------------------------------------------------


def _record(ready: Ready, found: Told) -> bool:
    """Write page, sentences, table and figures to the study's MLflow run; False where not all of it could be stored."""
    study, base = ready.study, ready.base
    place = storage.join(ready.folder, "mlflow.json")
    kept = read_kept(place) or {}
    grpo = {f"grpo.{name}": value for name, value in study.grpo.model_dump().items()}
    tracker = Tracker.start(
        base.tracking,
        experiment=EXPERIMENT,
        run_name=study.name,
        run_id=kept.get("run_id"),
        params={"study": study.name, "arms": ", ".join(study.arms), "model": base.model.path, **grpo},
        tags={
            RUN_KEY: f"{study.name}-{hashlib.sha256(ready.folder.encode()).hexdigest()[:12]}",
            "bft.kind": "after-rl",
        },
    )
    with tracker:
        write_kept(place, {"run_id": tracker.run_id})
        for arm, runs in found.runs.items():
            ended = [run for run in runs if run.after]
            values = {"before": [_mean(run.before) for run in ended], "after": [_mean(run.after) for run in ended]}
            tracker.log_metrics(
                {f"{arm}/reward_{name}": sum(own) / len(own) for name, own in values.items() if own}, step=0
            )
        note = [f"[**Read the report**]({tracker.link_to(PAGE)})", *sentences(found), markdown(arms_table(found))]
        page = to_html(after_rl_page(found, shown_time()))
        is_stored = log_report(tracker, "\n\n".join(note), page, "statements.json", _table(found))
        return tracker.finish("FINISHED") and is_stored


def _table(found: Told) -> list[dict[str, object]]:
    """Every statement, as JSON."""
    return [
        {
            "statement": one.what,
            "verdict": one.verdict,
            "why": one.why,
            "gain": one.gain and one.gain.as_json(),
        }
        for one in found.statements
    ]


def _mean(rewards: Mapping[str, float]) -> float:
    return sum(rewards.values()) / len(rewards)
