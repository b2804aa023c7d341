"""Part `corruption` of `jobs.chaos`: one byte changed, or the end cut off, in each file that bft-ray reads back.

Each kind of file is written by the product's own writer and read by its own reader. A reader may find what was written (then
the damage is harmless), count the file as absent and name it in a warning, or raise an error that names it.
Everything else is a fault: another value, another exception, silence. Databases are not here: SQLite and PostgreSQL read their own.
"""

from __future__ import annotations

import logging
import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bft_ray.errors import BftError

ABSENT = "absent"
_SILENT = "no line names it"


@dataclass(frozen=True)
class Kind:
    """One kind of file or input.

    Args:
        write: writes one that is right, with all that belongs to it, into an empty folder.
        files: pattern of the files that are damaged, below the folder.
        read: what the reader finds, who reads all of it as the product does; ABSENT where it passes the damaged file over, or takes an
            earlier state.
        also: values besides the one that was written that are right, each with a warning that names the file.
        untold: whether a damaged file cannot be told from a whole one: no reader can name it.
    """

    name: str
    write: Callable[[Path], None]
    files: str
    read: Callable[[Path], Any]
    also: Callable[[Any, Any], bool] = lambda before, now: now == ABSENT
    untold: Callable[[Path], bool] = lambda path: False


@dataclass(frozen=True)
class Fault:
    """One damage that was not handled: `python -m jobs.chaos --part corruption --seed SEED` finds it again."""

    kind: str
    number: int
    file: str
    how: str
    what: str


class _Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def run_corruption(folder: Path, seed: int, count: int) -> tuple[Counter[tuple[str, str]], list[Fault]]:
    """Damage `count` times, each kind equally often; returns how often each kind came out how, and the faults."""
    all_kinds = kinds()
    outcomes: Counter[tuple[str, str]] = Counter()
    faults: list[Fault] = []
    heard, root = _Heard(), logging.getLogger()
    root.addHandler(heard)
    try:
        for index, kind in enumerate(all_kinds):
            whole, work = folder / "whole", folder / "work"
            shutil.rmtree(folder, ignore_errors=True)
            whole.mkdir(parents=True)
            kind.write(whole)
            restore(whole, work)
            before = kind.read(work)
            for number in range(index, count, len(all_kinds)):
                draw = random.Random(f"{seed}/{number}")
                restore(whole, work)
                path = draw.choice([one for one in sorted(work.glob(kind.files)) if one.is_file()])
                how = damage(path, draw)
                untold = kind.untold(path)
                heard.lines.clear()
                outcome, text = _outcome(kind, work, path, before, heard)
                if untold and text.startswith(_SILENT):
                    outcome = "as if sent"
                outcomes[kind.name, outcome] += 1
                if outcome == "fault":
                    faults.append(Fault(kind.name, number, str(path.relative_to(work)), how, text))
    finally:
        root.removeHandler(heard)
        shutil.rmtree(folder, ignore_errors=True)
    return outcomes, faults


def _outcome(kind: Kind, work: Path, path: Path, before: Any, heard: _Heard) -> tuple[str, str]:
    names = [str(path), *(str(above) for above in path.parents if work in above.parents)]
    try:
        now = kind.read(work)
    except BftError as error:
        return ("an error names it", "") if any(name in str(error) for name in names) else ("fault", str(error))
    except Exception as error:
        return "fault", f"{type(error).__name__}: {str(error)[:200]}"
    named = any(name in line for name in names for line in heard.lines)
    if now == before:
        return ("made again, named" if named else "harmless"), ""
    if not kind.also(before, now):
        return "fault", f"{str(now)[:100]} was read instead of {str(before)[:100]}"
    return ("passed over, named", "") if named else ("fault", f"{_SILENT}: {heard.lines[:2]}")


def restore(whole: Path, work: Path) -> None:
    """Make the folder `work` anew, as `whole` is."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(whole, work, symlinks=True)


def damage(path: Path, draw: random.Random) -> str:
    """Cut off its end (3 of 10) or change one byte; returns what was done."""
    content = bytearray(path.read_bytes())
    where = draw.randrange(len(content))
    if draw.random() < 0.3:
        path.write_bytes(content[:where])
        return f"cut to {where} of {len(content)} bytes"
    flip = draw.randrange(1, 256)
    content[where] ^= flip
    path.write_bytes(content)
    return f"byte {where} of {len(content)} changed by {flip:#04x}"


# --- the kinds --------------------------------------------------------------------------------------------------------


def kinds() -> list[Kind]:
    """All kinds, in the order of docs/operations.md."""
    return [
        Kind("run.json", _write_run, "run.json", _read_run),
        Kind("packing.json, score.json, profile.json", _write_kept, "*.json", _read_kept),
        Kind("checkpoint", _write_checkpoints, "step-00000004/**/*", _read_checkpoint),
        Kind("export", _write_export, "export/*", _read_export),
        Kind("run-SEED.json", _write_result, "run-*.json", _read_result),
        Kind("state-SEED/step-*", _write_state, "state/step-00000012/**/*", _read_state),
        Kind("tokens", _write_tokens, "cache/**/*", _read_tokens),
        Kind("log-probabilities", _write_logps, "*.parquet", _read_logps),
        Kind("copy of an object store", _write_copy, "cache/**/*", _read_copy),
        Kind("outbox", _write_outbox, "*.jsonl", _read_outbox, _is_part, _ends_with_a_line),
        Kind("verdicts", _write_verdict, "*/*.json", _read_verdict),
        Kind("evaluation", _write_evaluation, "*", _read_evaluation),
    ]


def _write_run(folder: Path) -> None:
    from bft_ray.config import load_config
    from bft_ray.train.record import write_record

    write_record(str(folder), load_config("starter"), "0" * 32, {"rows": "f1"}, before={"validation/nll": 1.25}, step=3)


def _read_run(folder: Path) -> Any:
    from bft_ray.train.record import read_record

    return read_record(str(folder)) or ABSENT


def _write_kept(folder: Path) -> None:
    from bft_ray.places.kept import write_kept

    write_kept(folder / "packing.json", {"packing": True})
    write_kept(folder / "score.json", {"score": 0.5})
    write_kept(folder / "profile.json", {"num_samples": 12, "note": "caf\u00e9", "deep": {"a": [1, 2.5, None]}})


def _read_kept(folder: Path) -> Any:
    from bft_ray.places.kept import read_kept

    found = [read_kept(path) for path in sorted(folder.glob("*.json"))]
    asked = ("packing", "score", "num_samples", "note", "deep")  # its checksum may have lost its name
    return ABSENT if None in found else [{name: each.get(name) for name in asked} for each in found if each is not None]


def _shard(path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"weight": torch.arange(96, dtype=torch.float32).reshape(8, 12)}, path)


def _write_checkpoints(folder: Path) -> None:
    from bft_ray.train.checkpoint import write_manifest

    for step in (2, 4):
        made = folder / f"step-{step:08d}"
        _shard(made / "engine" / "shard.safetensors")
        write_manifest(made, 0, 1)


def _read_checkpoint(folder: Path) -> Any:
    """The step that a resumed run begins with."""
    from bft_ray.train.checkpoint import last_complete, verify_manifest

    found = last_complete(str(folder))
    if found is None:
        return None
    verify_manifest(Path(found), 0, 1)
    return ABSENT if found.endswith("02") else found


def _write_export(folder: Path) -> None:
    from bft_ray.model.checksums import write_checksums

    _shard(folder / "export" / "model.safetensors")
    (folder / "export" / "config.json").write_text('{"model_type": "llama", "rope_theta": 10000.0}')
    (folder / "export" / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0, "b": 1}}}')
    write_checksums(folder / "export")


def _read_export(folder: Path) -> Any:
    """Damaged checksums count as absent: files that are whole are used."""
    from bft_ray.model.checksums import CHECKSUMS, require_unchanged
    from bft_ray.places.kept import is_damaged

    require_unchanged(folder / "export", "model.path")
    if is_damaged(str(folder / "export" / CHECKSUMS)):
        return ABSENT
    return [path.read_bytes() for path in sorted((folder / "export").iterdir()) if path.name != CHECKSUMS]


def _segment(folder: Path) -> Any:
    from bft_ray.study.records.segment import Segment

    return Segment("study", "search/0", 42, {"a": 1}, str(folder))


def _write_result(folder: Path) -> None:
    from bft_ray.study.records.segment import Run

    segment = _segment(folder)
    Run(segment.key, "complete", num_steps=3, metrics={3: {"validation/nll": 1.25}}).write(segment.files)


def _read_result(folder: Path) -> Any:
    from bft_ray.study.records.segment import Run

    segment = _segment(folder)
    return Run.read(segment.files, segment.key) or ABSENT


def _write_state(folder: Path) -> None:
    from bft_ray.study.records.segment import Run
    from bft_ray.train.checkpoint import write_manifest

    for step in (6, 12):
        state = folder / "state" / f"step-{step:08d}"
        _shard(state / "engine" / "shard.safetensors")
        Run("key", num_steps=step).save(str(state / "run.json"))
        write_manifest(state, 0, 1)


def _read_state(folder: Path) -> Any:
    from bft_ray.study.execute import paused

    found = paused.latest(str(folder / "state"), "key")
    return None if found is None else ABSENT if found[1].num_steps == 6 else found[1]


def _write_tokens(folder: Path) -> None:
    _read_tokens(folder)


def _read_tokens(folder: Path) -> Any:
    """Ids and tokens of every sample; tokenised again where the cache is damaged, so that they never differ."""
    from bft_ray.config import load_config
    from bft_ray.data.dataset import prepare
    from bft_ray.model.causal_lm import load_tokenizer

    config = load_config("starter")
    data = config.data.model_copy(update={"cache_dir": str(folder / "cache")})
    sources = [config.data.train[0].model_copy(update={"limit": 8})]
    dataset = prepare(sources, load_tokenizer(config.model), data)
    return [dataset.ids, [dataset.tokens(index).tolist() for index in range(len(dataset))]]


def _write_logps(folder: Path) -> None:
    import numpy as np

    from bft_ray.profile import tokens
    from bft_ray.profile.weights import TokenLogps

    tokens.write(folder / "a.parquet", TokenLogps(["a", "b"], np.arange(600, dtype=np.float32), np.array([200, 400])))


def _read_logps(folder: Path) -> Any:
    from bft_ray.profile import tokens

    found = tokens.read(folder / "a.parquet")
    return ABSENT if found is None else [list(found.ids), found.logp.tolist(), found.num_tokens.tolist()]


def _write_copy(folder: Path) -> None:
    _read_copy(folder)


def _read_copy(folder: Path) -> Any:
    """The content of the copy; fetched again where it is damaged. The store itself stays as it is, beside the copy."""
    from bft_ray.places.remote import local_copy

    store = folder.parent / "store"
    if not store.exists():
        _shard(store / "model.safetensors")
    return (local_copy(f"fsspec+file://{store}", folder / "cache") / "model.safetensors").read_bytes()


def _away(records: list) -> None:
    raise ConnectionError


def _write_outbox(folder: Path) -> None:
    from bft_ray.tracking.outbox import Outbox

    dead = Outbox(folder, "r", _away, "%s %s")
    dead.queue(*({"metrics": {"train/nll": number / 8}, "step": number} for number in range(6)))
    dead.end()


def _read_outbox(folder: Path) -> Any:
    """What the next process sends of it."""
    from bft_ray.tracking.outbox import Outbox

    sent: list[Any] = []
    heir = Outbox(folder, "r", sent.extend, "%s %s")
    heir.wait(20)
    heir.end()
    return [[record["step"], record["metrics"]] for record in sent]


def _is_part(before: Any, now: Any) -> bool:
    return isinstance(now, list) and [each for each in before if each in now] == now


def _ends_with_a_line(path: Path) -> bool:
    """Cut between two lines, it is as a file whose last lines were never written; so says docs/operations.md."""
    content = path.read_bytes()
    return not content or (content.endswith(b"\n") and content.count(b"\n") < 6)


def _write_verdict(folder: Path) -> None:
    from bft_ray.evaluate.clients.judge import write_verdict

    write_verdict(folder, "ab12", True)


def _read_verdict(folder: Path) -> Any:
    from bft_ray.evaluate.clients.judge import read_verdict

    found = read_verdict(folder, "ab12")
    return ABSENT if found is None else found


def _write_evaluation(folder: Path) -> None:
    from bft_ray.evaluate.result import EvaluationResult

    EvaluationResult({"a/nll": 1.5}, [{"set": "a", "id": f"x{n}", "nll": n / 8} for n in range(9)]).write(folder)


def _read_evaluation(folder: Path) -> Any:
    from bft_ray.evaluate.result import EvaluationResult

    found = EvaluationResult.read(folder)
    return [found.metrics, found.records]
