"""Nobody but their owner, or the group of a lab, reads what a run leaves; and a plain run listens on loopback alone."""

from __future__ import annotations

import os
import pwd
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import yaml

from bft_ray.places.modes import kept_for, own_file, settle
from tests.support.paths import ROOT
from tests.support.ports import UNKNOWN, answer_of, listening, rows_of
from tests.support.small_study import write_space
from tests.support.unprivileged import only_root

LIMIT_S = 900
#: with a log of Ray's own, and what is not of this product
WRITTEN = ("results", "cache", "mlflow.db", "mlartifacts", "home/.cache/bft_ray", "studies.db", "before")


def modes(folder: Path) -> dict[str, str]:
    """Path -> octal rights of all that lies there, links left out."""
    paths = [path for name in WRITTEN for path in (folder / name, *(folder / name).rglob("*")) if path.exists()]
    return {
        str(path.relative_to(folder)): f"{'d' if path.is_dir() else 'f'} {stat.S_IMODE(path.lstat().st_mode) & 0o777:o}"
        for path in paths
        if not path.is_symlink()
    }


class Run:
    """A command of bft-ray in a folder of its own, under an umask; and which ports it listened on."""

    def __init__(self, folder: Path, umask: int, *words: str):
        (folder / "home").mkdir(exist_ok=True)
        drop = ("RAY_ADDRESS", "RAY_AUTH", "MLFLOW_TRACKING", "STUDY_DATABASE", "RAY_ENABLE")
        env = {key: value for key, value in os.environ.items() if not key.startswith(drop)}
        env |= {"HOME": str(folder / "home"), "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
        command = [sys.executable, "-m", "bft_ray.cli", *words]
        with (folder / "out.txt").open("w") as out:
            self.process = subprocess.Popen(
                command, cwd=folder, env=env, stdout=out, stderr=out, umask=umask, start_new_session=True
            )
        self.ports: dict[int, tuple[str, str, str]] = {}  # port -> address, process, answer
        self._end = time.monotonic() + LIMIT_S
        watcher = threading.Thread(target=self._watch, daemon=True)
        watcher.start()
        status = self.process.wait(LIMIT_S)
        watcher.join(30)
        assert status == 0, (folder / "out.txt").read_text()[-3000:]

    def _watch(self) -> None:
        with ThreadPoolExecutor(4) as asking:  # apart, so that no port is missed meanwhile
            self._look(asking)

    def _look(self, asking: ThreadPoolExecutor) -> None:
        while self.process.poll() is None and time.monotonic() < self._end:
            try:
                own = psutil.Process(self.process.pid)
                pids = [own.pid, *(child.pid for child in own.children(recursive=True))]
            except psutil.NoSuchProcess:
                return
            for address, port, name in listening(pids):
                if port not in self.ports:
                    self.ports[port] = (address, name, "")
                    if "RayTrainWorker" not in name:  # a stranger would disturb the ranks
                        asking.submit(self._ask, port, pids)
            time.sleep(0.3)

    def _ask(self, port: int, pids: list[int]) -> None:
        address, name, _ = self.ports[port]
        end = time.monotonic() + 20
        while (answer := answer_of(port)) == UNKNOWN and time.monotonic() < end:
            time.sleep(1)
        if "DEADLINE" not in answer and any(port == other for _, other, _ in listening(pids)):  # or it has just ended
            self.ports[port] = (address, name, answer)


def config(make_tree, tmp_path: Path, **sections) -> Path:
    tree = make_tree(data={"cache_dir": str(tmp_path / "cache")}, **sections)
    tree["cluster"] |= {"storage_path": str(tmp_path / "results"), "gpus_per_worker": 0}
    tree["tracking"] = {"uri": f"sqlite:///{tmp_path}/mlflow.db"}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.mark.parametrize(
    ("umask", "file_mode", "folders", "files"),
    [
        pytest.param(0o000, "owner", "d 700", "f 600", marks=pytest.mark.release),
        pytest.param(0o077, "group", "d 770", "f 660", marks=pytest.mark.release),
    ],
)
def test_a_run_is_its_owner_s_or_the_group_s_and_listens_on_loopback(
    umask, file_mode, folders, files, make_tree, tmp_path
):
    path = config(make_tree, tmp_path, cluster={"num_workers": 2, "file_mode": file_mode})
    (tmp_path / "home").mkdir()
    run = Run(tmp_path, umask, "train", str(path))
    found = modes(tmp_path)
    for part in ("results/run/export/model.safetensors", "results/run/run.json", "mlflow.db"):
        assert part in found, part
    assert any("step-" in name and name.endswith(".safetensors") for name in found)
    assert any(name.endswith("tokens.bin") for name in found) and any(name.startswith("mlartifacts/") for name in found)
    of_the_user = {name for name in found if name.startswith("home/")}  # his own cache: nobody shares that
    wrong = {name: mode for name, mode in found.items() if mode not in (folders, files) and name not in of_the_user}
    assert not wrong
    assert all(found[name] in ("d 700", "f 600") for name in of_the_user)
    assert len(run.ports) > 5
    assert {address for address, *_ in run.ports.values()} == {"127.0.0.1"}, run.ports
    rows = rows_of(ROOT / "cluster" / "README.md", "process of a plain run")
    for address, name, answer in run.ports.values():
        row = rows[kind_of(name)]
        assert row[0] == address and (not answer or answer in row[1].split(" or ")), f"{name}: {answer}, {row}"
    seen = {kind_of(name) for _, name, _ in run.ports.values()}
    fixed = {"monitor.py", "dashboard.py"}  # their ports may be another Ray's
    assert seen | fixed == set(rows), "a row that nobody stands for"
    agents = {answer for _, name, answer in run.ports.values() if "DashboardAgent" in name and answer}
    assert agents, "no agent was there long enough to be asked"


def kind_of(process: str) -> str:
    """The row of the table."""
    named = (
        "gcs_server",
        "raylet/raylet",
        "DashboardAgent",
        "RuntimeEnvAgent",
        "monitor.py",
        "dashboard.py",
        "RayTrainWorker",
        "bft_ray.cli",
    )
    return next((name.rpartition("/")[2] for name in named if name in process), "any other worker")


@pytest.mark.long
def test_a_study_is_its_owner_s(make_tree, tiny_data, tmp_path):
    """Trials in warm workers, their weights, the profile, and the database of the study."""
    config(make_tree, tmp_path, cluster={"num_workers": 1})
    write_space(tmp_path)
    Run(tmp_path, 0o000, "search", "space.yaml", "--database", f"sqlite:///{tmp_path}/studies.db", "--no-measure")
    found = modes(tmp_path)
    assert "studies.db" in found and any("/profile/" in name for name in found)
    assert any(name.startswith("results/studies/test/") for name in found)
    assert not {name: mode for name, mode in found.items() if mode not in ("d 700", "f 600")}


@pytest.mark.parametrize(("who", "mode"), [("owner", 0o600), ("group", 0o660)])
def test_a_database_of_old_that_all_may_read_is_closed_and_named(who, mode, tmp_path, caplog):
    old, lab, new = (tmp_path / f"{name}.db" for name in ("old", "lab", "new"))
    for path, rights in ((old, 0o644), (tmp_path / "old.db-wal", 0o644), (lab, 0o660)):
        path.write_text("rows")
        path.chmod(rights)
    with kept_for(who):
        for path in (old, lab, new, old):
            own_file(path)
    found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert found == {"old.db": mode, "old.db-wal": mode, "lab.db": 0o660, "new.db": mode}
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith(f"{old} could be read by every user of this machine") and old.read_text() == "rows"
    assert f"its {'owner alone' if who == 'owner' else 'owner and group'}" in told


@pytest.mark.privileged
@only_root
def test_a_database_of_old_of_another_user_is_named(tmp_path, caplog):
    path = tmp_path / "theirs.db"
    path.write_text("")
    path.chmod(0o644)
    os.chown(path, pwd.getpwnam("nobody").pw_uid, -1)
    own_file(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert f"{path} can be read by every user of this machine. It belongs to nobody" in caplog.text


def test_what_a_library_made_gets_the_same_rights_and_links_are_left(tmp_path):
    (tmp_path / "outside").write_text("")
    (tmp_path / "outside").chmod(0o644)
    made = tmp_path / "made"
    (made / "inner").mkdir(parents=True)
    (made / "inner").chmod(0o2755)
    (made / "inner" / "file").write_text("")
    (made / "inner" / "file").chmod(0o755)
    (made / "link").symlink_to(tmp_path / "outside")
    before = os.umask(0o022)
    try:
        settle(made)
        assert stat.S_IMODE((made / "inner").stat().st_mode) == 0o2700  # a folder hands its group on
        assert stat.S_IMODE((made / "inner" / "file").stat().st_mode) == 0o600
        with kept_for("group"):
            settle(made)
            (made / "new").write_text("")
            with kept_for("owner"):
                (made / "own").write_text("")
        assert stat.S_IMODE((made / "inner").stat().st_mode) == 0o2770
        assert stat.S_IMODE((made / "inner" / "file").stat().st_mode) == 0o660
        assert stat.S_IMODE((made / "new").stat().st_mode) == 0o660
        assert stat.S_IMODE((made / "own").stat().st_mode) == 0o600
        assert stat.S_IMODE((tmp_path / "outside").stat().st_mode) == 0o644
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
