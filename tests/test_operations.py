"""Every file that bft-ray reads back, as docs/operations.md lists them, damaged in every way: what happens then."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bft_ray.config import make_config
from bft_ray.errors import BadInput
from bft_ray.evaluate.clients.judge import read_verdict, write_verdict
from bft_ray.evaluate.result import EvaluationResult
from bft_ray.model import gguf
from bft_ray.model.checksums import CHECKSUMS, require_unchanged, write_checksums
from bft_ray.places.kept import is_damaged, read_kept, write_kept
from bft_ray.places.remote import local_copy
from bft_ray.profile import tokens as logps
from bft_ray.profile.run import TOKENS_FILE, _earlier
from bft_ray.profile.weights import TokenLogps
from bft_ray.study import driver as drive
from bft_ray.study.execute import paused
from bft_ray.study.execute.measure import measure
from bft_ray.study.records.segment import Run, Segment
from bft_ray.tracking.outbox import Outbox
from bft_ray.train.checkpoint import Damaged, last_complete, set_aside, verify_manifest, write_manifest
from bft_ray.train.record import is_lost, read_record, write_record
from bft_ray.train.snapshot import FILE, SCORE, delete_unfit
from bft_ray.train.worker import with_packing
from tests.support.damage import KINDS, damage
from tests.support.paths import ROOT

FILES = (ROOT / "docs" / "operations.md").read_text().partition("\n## ")[0]
ROWS = re.findall(r"^\| (?!file |---)(.+?) \| ", FILES, re.M)
CASES: dict[str, Callable[..., None]] = {}


def case(row: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """What a function asserts is what the page says in this row."""
    return lambda function: CASES.setdefault(row, function)


class Here:
    """What a case gets: a place, a kind of damage, and what was said."""

    def __init__(self, folder: Path, kind: str, caplog: Any, patch: Any, make_tree: Any):
        self.folder, self.kind, self.patch, self.make_tree = folder, kind, patch, make_tree
        self._caplog = caplog

    @property
    def config(self) -> Any:
        return make_config(self.make_tree())

    def damage(self, path: Path) -> None:
        self._caplog.clear()
        damage(path, self.kind)

    def told(self, path: Path | str) -> bool:
        """Whether a warning names it, as it must where it is there and damaged; of a missing one nothing is said."""
        named = any(str(path) in record.getMessage() for record in self._caplog.records if record.levelno >= 30)
        return named == (self.kind != "gone")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row", ROWS)
def test_a_damaged_file(row, kind, tmp_path, caplog, monkeypatch, make_tree):
    with caplog.at_level(logging.WARNING):
        CASES[row](Here(tmp_path, kind, caplog, monkeypatch, make_tree))


def test_the_page_lists_each_once():
    assert sorted(ROWS) == sorted(CASES) and len(ROWS) > 20


#: file of bft_ray -> why it reads a file's JSON otherwise than by `read_kept`
OTHERWISE = {
    "data/dataset.py": "covered by its sha256.json",
    "places/remote.py": "checksums of a copy: no circle of imports",
    "data/files.py": "the user's rows",
    "evaluate/result.py": "compared with its sha256.json",
    "model/safe.py": "the user's model",
    "model/export.py": "written a moment before",
    "model/gguf.py": "a checksum of each file",
    "operate/clean.py": "what it cannot read it lists for removal",
    "operate/init/settings.py": "the user's model",
    "study/execute/measure.py": "the config that its parent handed it",
    "study/execute/trial.py": "covered by a manifest",
}


def test_no_file_is_read_otherwise():
    reads = re.compile(r"json\.loads?\([^)]*(read_text|read_bytes|contents\[|line\b)")
    found = {
        str(path.relative_to(ROOT / "bft_ray"))
        for path in (ROOT / "bft_ray").rglob("*.py")
        if reads.search(path.read_text())
    }
    assert found - {"tracking/last_word.py", "tracking/outbox.py", "data/canonical.py"} <= set(OTHERWISE)


# --- a run ------------------------------------------------------------------------------------------------------------


@case("`run.json`")
def _(here: Here) -> None:
    folder = here.folder / "run"
    write_record(str(folder), here.config, "0" * 32, {}, step=3)
    here.damage(folder / "run.json")
    assert read_record(str(folder)) == {} and is_lost(str(folder)) == (here.kind != "gone")
    assert here.told(folder / "run.json")


@case("`packing.json`")
def _(here: Here) -> None:
    write_kept(here.folder / "packing.json", {"packing": True})
    assert with_packing(here.config, str(here.folder)).data.packing is True
    here.damage(here.folder / "packing.json")
    assert with_packing(here.config, str(here.folder)).data.packing is None and here.told(here.folder / "packing.json")


def checkpoints(folder: Path) -> list[Path]:
    """Of steps 2 and 4, by one worker, with all that may lie in one."""
    found = []
    for step in (2, 4):
        made = folder / f"step-{step:08d}"
        (made / "engine").mkdir(parents=True)
        (made / "engine" / "shard.pt").write_bytes(bytes(range(64)))
        write_manifest(made, 0, 1)
        write_kept(made / "score.json", {"score": step / 8})
        found.append(made)
    return found


@case("`manifest-RANK.json`")
def _(here: Here) -> None:
    first, last = checkpoints(here.folder)
    assert last_complete(str(here.folder)) == str(last)
    here.damage(last / "manifest-00000.json")
    assert last_complete(str(here.folder)) == str(first)
    here.kind = "named in any case"
    assert here.told(last)


@case("training state (`engine/*`)")
def _(here: Here) -> None:
    first, last = checkpoints(here.folder)
    here.damage(last / "engine" / "shard.pt")
    if here.kind != "flip":
        assert last_complete(str(here.folder)) == str(first)
        here.kind = "named in any case"
        assert here.told(last)
        return
    assert last_complete(str(here.folder)) == str(last)
    with pytest.raises(BadInput, match=f"{last}/engine/shard.pt.*Delete {last}: ") as caught:
        verify_manifest(last, 0, 1)
    assert set_aside(Damaged(str(last), caught.value.value, caught.value.rule))
    assert last_complete(str(here.folder)) == str(first)


def snapshot(folder: Path) -> Path:
    """Ray's list of `checkpoints`, as Ray writes it."""
    from ray.train.v2._internal.execution.checkpoint import checkpoint_manager as ray_own

    results = [
        ray_own._TrainingResultState(checkpoint_dir_name=f"step-{step:08d}", metrics={SCORE: step / 8, "step": step})
        for step in (2, 4)
    ]
    state = ray_own._CheckpointManagerState(
        checkpoint_results=results,
        checkpoint_report_indices=[0, 1],
        latest_checkpoint_result=results[1],
        pending_training_results=[],
        pending_validation_specs=[],
        current_report_index=2,
        validated_checkpoint_dir_names=[],
        timed_out_validation_checkpoint_dir_names=[],
        failed_validation_checkpoint_dir_names=[],
    )
    (folder / FILE).write_text(state.json())
    return folder / FILE


@case("`score.json`")
def _(here: Here) -> None:
    _, last = checkpoints(here.folder)
    listed = snapshot(here.folder)
    here.damage(last / "score.json")
    delete_unfit(str(here.folder))
    assert listed.is_file() and here.told(last / "score.json")


@case("`checkpoint_manager_snapshot.json`")
def _(here: Here) -> None:
    checkpoints(here.folder)
    listed = snapshot(here.folder)
    delete_unfit(str(here.folder))
    assert listed.is_file()  # it fits
    score = listed.read_text().replace("0.5", "0.1", 1)  # one that would have Ray delete the best
    if here.kind == "flip":
        listed.write_text(score)
    else:
        here.damage(listed)
    delete_unfit(str(here.folder))
    assert not listed.exists() and here.told(listed)


# --- weights ----------------------------------------------------------------------------------------------------------


def export(here: Here) -> Path:
    """A folder with one file of each sort that an export has; returns its weights."""
    folder = here.folder / "export"
    folder.mkdir(exist_ok=True)
    for name in EXPORTED:
        (folder / name).write_bytes(bytes(range(99)))
    (folder / "README.md").write_text("a card")
    write_checksums(folder)
    (folder / "README.md").write_text("a card that somebody has edited")
    require_unchanged(folder, "model.path")
    return folder / "model.safetensors"


EXPORTED = ("model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja")


@case("`export/*`: weights, config, tokenizer")
def _(here: Here) -> None:
    for name in EXPORTED:
        path = export(here).with_name(name)
        here.damage(path)
        with pytest.raises(BadInput, match=f"`model.path` is .*{path}.*, but must be unchanged since it was written"):
            require_unchanged(path.parent, "model.path")


@case("`sha256.json` of an export")
def _(here: Here) -> None:
    weights = export(here)
    here.damage(weights.parent / CHECKSUMS)
    require_unchanged(weights.parent, "model.path")
    assert here.told(weights.parent / CHECKSUMS)


# --- a trial and a study ----------------------------------------------------------------------------------------------


@case("`run-SEED.json`")
def _(here: Here) -> None:
    segment = Segment("study", "search/0", 42, {"a": 1}, str(here.folder))
    Run(segment.key, "complete", num_steps=3, metrics={3: {"validation/nll": 1.25}}).write(segment.files)
    run = Run.read(segment.files, segment.key)
    assert run is not None and run.metrics == {3: {"validation/nll": 1.25}}
    here.damage(Path(segment.files.result))
    assert (
        Run.read(segment.files, segment.key) is None
        and here.told(segment.files.result)
        and is_damaged(segment.files.result) == (here.kind != "gone")
    )


@case("`state-SEED/step-*`")
def _(here: Here) -> None:
    for name in ("run.json", "shard.pt", "manifest-00000.json"):
        states = here.folder / name.partition(".")[0]
        state = states / "step-00000012"
        (state / "engine").mkdir(parents=True)
        (state / "engine" / "shard.pt").write_bytes(bytes(range(64)))
        Run("key", num_steps=12).save(str(state / "run.json"))
        write_manifest(state, 0, 1)
        found = paused.latest(str(states), "key")
        assert found is not None and (found[0], found[1].num_steps) == (str(state), 12)
        assert paused.latest(str(states), "of another run") is None
        here.damage(next(state.rglob(name)))
        assert paused.latest(str(states), "key") is None
        if here.kind != "gone":
            assert here.told(state)


@case("`profile.json`")
def _(here: Here) -> None:
    study = SimpleNamespace(folder=str(here.folder), space=SimpleNamespace(parameters={}, config="c.yaml"))
    drawn: list[str] = []

    def profile_data(config: Any, out: Path, **options: Any) -> Any:
        drawn.append("drawn")
        write_kept(out / "profile.json", {"num_samples": 12}, indent=1)
        return SimpleNamespace(findings=[])

    here.patch.setattr(drive, "profile_data", profile_data)
    for _ in range(2):
        drive._profile(study, here.config, lambda text: None)
    assert drawn == ["drawn"]
    here.damage(here.folder / "profile" / "profile.json")
    drive._profile(study, here.config, lambda text: None)
    assert len(drawn) == 2 and here.told(here.folder / "profile" / "profile.json")


@case("`measured.json`")
def _(here: Here) -> None:
    import subprocess
    import sys

    from bft_ray.study.execute import measure as module

    def start(command: list[str], **options: Any) -> Any:
        path = Path(command[-1]) / "measured.json"
        write_kept(path, {"why": "nothing was tried"})
        here.damage(path)
        return subprocess.run([sys.executable, "-c", ""], **options)

    here.patch.setattr(module, "subprocess", SimpleNamespace(**vars(subprocess) | {"run": start}))
    said = measure(here.config.model_copy(update={"deepspeed": here.config.deepspeed}), lambda text: None)
    assert said == (
        "the process ended with status 0" if here.kind == "gone" else "the file with its results is damaged"
    )
    assert here.told("measured.json")


@case("a driver's lease")
def _(here: Here) -> None:
    from sqlalchemy import delete, update

    from bft_ray.study.records import lease as module
    from bft_ray.study.records.database import Database

    with Database(f"sqlite:///{here.folder}/study.db") as database:
        held = module.Lease(database, "s")
        held.take()
        text = held._text
        middle = len(text) // 2
        changed = {
            "half": text[:middle],
            "empty": "",
            "flip": text[:middle] + chr(ord(text[middle]) ^ 1) + text[middle + 1 :],
        }
        with database.engine.begin() as connection:
            if here.kind == "gone":
                connection.execute(delete(module._TABLE))
            else:
                connection.execute(update(module._TABLE).values(owner=changed[here.kind], beat=0.0))
        rival = module.Lease(database, "s")
        rival.take()
        now = rival.holder()
        assert now is not None and now.owner == rival.owner
        with pytest.raises(module.Replaced):
            held.renew()
        if here.kind != "flip":  # which may leave the row one that can be read
            assert here.told("bft_ray_leases")


# --- what this machine keeps ------------------------------------------------------------------------------------------


@case("tokens (`tokens.bin`, `ids.json` ...)")
def _(here: Here) -> None:
    from bft_ray.data.dataset import prepare
    from bft_ray.model.causal_lm import load_tokenizer

    config = here.config
    tokenizer = load_tokenizer(config.model)
    first = prepare(config.data.train, tokenizer, config.data)
    before = [first.tokens(index).tolist() for index in range(len(first))]
    for name in sorted(path.name for path in first.folder.iterdir()):
        here.damage(first.folder / name)
        again = prepare(config.data.train, tokenizer, config.data)
        assert [again.tokens(index).tolist() for index in range(len(again))] == before and again.ids == first.ids
        here.kind, kind = "named in any case", here.kind
        assert here.told(first.folder)
        here.kind = kind


@case("log-probabilities (`*.parquet`)")
def _(here: Here) -> None:
    path = here.folder / "a.parquet"
    logps.write(path, TokenLogps(["a", "b"], np.arange(600, dtype=np.float32), np.array([200, 400])))
    assert logps.read(path) is not None
    here.damage(path)
    assert logps.read(path) is None and here.told(path)


@case("a converted GGUF file")
def _(here: Here) -> None:
    def convert(file: Path, folder: Path, field: str) -> None:
        (folder / "model.safetensors").write_bytes(bytes(range(200)))
        (folder / "config.json").write_text('{"model_type": "llama"}')

    here.patch.setattr(gguf, "_convert", convert)
    (here.folder / "tiny.gguf").write_bytes(b"GGUF")
    folder = gguf.converted(here.folder / "tiny.gguf", cache=here.folder / "cache")
    for name in ("model.safetensors", "config.json", "sha256.json"):
        here.damage(folder / name)
        assert gguf.converted(here.folder / "tiny.gguf", cache=here.folder / "cache") == folder
        assert (folder / "model.safetensors").read_bytes() == bytes(range(200))
        here.kind, kind = "named in any case", here.kind
        assert here.told(folder)
        here.kind = kind


@case("a copy from an object store")
def _(here: Here) -> None:
    (here.folder / "store").mkdir()
    (here.folder / "store" / "model.safetensors").write_bytes(bytes(range(200)))
    uri, cache = f"fsspec+file://{here.folder}/store", here.folder / "cache"
    copy = local_copy(uri, cache)
    assert local_copy(uri, cache) == copy
    for path in (copy / "model.safetensors", copy.with_name(f"{copy.name}.sha256.json")):
        here.damage(path)
        assert local_copy(uri, cache) == copy
        assert (copy / "model.safetensors").read_bytes() == bytes(range(200))
        if here.kind == "gone" and path.parent != copy:
            continue  # a copy without checksums is one of an earlier version
        here.kind, kind = "named in any case", here.kind
        assert here.told(copy)
        here.kind = kind


def _away(records: list) -> None:
    raise ConnectionError


@case("`RUN_ID.*.jsonl`, `RUN_ID-artifacts.*.jsonl`")
def _(here: Here) -> None:
    dead = Outbox(here.folder, "r", _away, "%s %s")
    dead.queue(*({"metrics": {"train/nll": number / 8}, "step": number} for number in range(4)))
    dead.end()
    here.damage(dead.path)
    steps: list[int] = []
    heir = Outbox(here.folder, "r", lambda records: steps.extend(record["step"] for record in records), "%s %s")
    assert heir.wait(20)
    heir.end()
    assert steps == {"half": [0, 1], "empty": [], "flip": [0, 1, 3], "gone": []}[here.kind]
    if here.kind == "flip":
        assert here.told(dead.path)


@case("verdicts (`HASH.json`)")
def _(here: Here) -> None:
    write_verdict(here.folder, "ab12", True)
    assert read_verdict(here.folder, "ab12") is True
    path = here.folder / "ab" / "ab12.json"
    here.damage(path)
    assert read_verdict(here.folder, "ab12") is None and here.told(path)


# --- what a user gives ------------------------------------------------------------------------------------------------


def evaluation(here: Here, name: str) -> None:
    records = [{"set": "a", "id": f"x{number}", "nll": number / 8} for number in range(9)]
    EvaluationResult({"a/nll": 1.5}, records, {"a": {"data.max_length": 64}}).write(here.folder)
    assert EvaluationResult.read(here.folder).records == records
    here.damage(here.folder / name)


@case("`metrics.json`, `records.jsonl`, `settings.json`")
def _(here: Here) -> None:
    for name in ("metrics.json", "records.jsonl", "settings.json"):
        evaluation(here, name)
        rule = (
            f"{name}: .*evaluate CONFIG"
            if here.kind == "gone" and name != "settings.json"
            else f"{here.folder}/{name}.*unchanged"
        )
        with pytest.raises(BadInput, match=rule):
            EvaluationResult.read(here.folder)
        if here.kind == "half":  # an earlier version wrote no checksums
            (here.folder / "sha256.json").unlink()
            with pytest.raises(BadInput, match=f"{here.folder}/{name}.*an evaluation.* no JSON"):
                EvaluationResult.read(here.folder)
        (here.folder / "metrics.json").unlink(missing_ok=True)


@case("`sha256.json` of an evaluation")
def _(here: Here) -> None:
    evaluation(here, "sha256.json")
    if here.kind == "gone":
        assert EvaluationResult.read(here.folder).metrics == {"a/nll": 1.5}  # an earlier version wrote none
        return
    with pytest.raises(BadInput, match=rf"{here.folder}/sha256.json.*unchanged"):
        EvaluationResult.read(here.folder)


@case("`tokens.parquet`")
def _(here: Here) -> None:
    path = here.folder / TOKENS_FILE
    logps.write(path, TokenLogps(["a"], np.arange(600, dtype=np.float32), np.array([600])))
    here.damage(path)
    with pytest.raises(
        BadInput, match=f"`against` is '{here.folder}', but must be the folder of a profile, with a whole"
    ):
        _earlier(here.folder)


# --- the one reader ---------------------------------------------------------------------------------------------------


def test_no_bit_of_a_kept_file_can_change_what_is_read(tmp_path):
    path, value = tmp_path / "a.json", {"step": 12, "score": 0.5, "note": "caf\u00e9"}
    write_kept(path, value)
    content = path.read_bytes()
    assert json.loads(content) == value | {"sha256": json.loads(content)["sha256"]}
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        found = read_kept(path, list(value))
        assert found is None or {name: found[name] for name in value} == value, bit
    for size in range(len(content)):
        path.write_bytes(content[:size])
        assert read_kept(path) is None
    path.write_text(json.dumps(value))  # of an earlier version
    assert read_kept(path, ["step"]) == value and read_kept(path, ["steps"]) is None
