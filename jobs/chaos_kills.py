"""Part `kills` of `jobs.chaos`: one small study again and again, killed at random moments, must find the same each time."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bft_ray.errors import BftError
from bft_ray.study.checks.shared import remove_signs
from cluster.local.processes import find
from jobs.chaos_cluster import KINDS, MARK, Cluster, marked, send_kill

STUDY = "starter/gene_interaction"
#: the bundled study in small: baseline, search with stops, confirmation, test, registration
SMALL = (
    "budget.trials=4",
    "budget.steps=4",
    "deterministic=true",
    "sampler.startup_trials=2",
    "scheduler.grace_steps=2",
    "scheduler.reduction=2",
    'baselines=[{"name": "bft", "overrides": {"loss.method": "bft", "loss.window": 256}}]',
    "confirmation.top_k=1",
    "evaluation.tasks.0.limit=12",
    "cluster.max_failures=100",
)
_STUDY_S = 900.0  # bound of a study with its kills; one that takes longer hangs
_DRIVER_S = 360.0  # bound of a driver that has lost its cluster: it may wait `cluster.start_timeout_s` for a worker
_QUIET_S = 60.0  # until all that a finished study has started must have ended
_MOST_KILLS = 5  # in one study
_LOOK_S = 0.3
#: parts of a file's path that differ from study to study
_IDS = re.compile(r"-[0-9a-f]{8}(?=/)|[0-9a-f]{32}|(?<=fetched/)[0-9a-f]+")


@dataclass
class Walk:
    """One study, with what was done to it and what became of it.

    Args:
        kills: kind, and the seconds after the first start.
        starts: how often the command was given.
        ended: last lines of commands that ended by themselves before the study was finished.
        differences: from the undisturbed study, and what was left behind; empty where all is as it must be.
    """

    number: int
    kills: list[tuple[str, float]] = field(default_factory=list)
    starts: int = 0
    seconds: float = 0.0
    ended: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)


def run_kills(
    folder: Path, state: dict[str, Any], seed: int, num_kills: int, end: float, save: Callable[[], None]
) -> None:
    """Go on from `state` until so many kills are done, or it is too late for another study. Studies in which an earlier
    command found a fault are done again, under the same draw.

    Args:
        state: `undisturbed` (what the study finds), `walks`, and `faulty`: the walks with a fault that were done again;
            changed in place.
        end: on the monotonic clock.
        save: called after each study.
    """
    folder.mkdir(parents=True, exist_ok=True)
    home, temporary = folder / "home", folder / "tmp"
    for path in (home, temporary):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
    mark = f"{folder}"
    env = {"HOME": str(home), "TMPDIR": str(temporary), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", MARK: mark}
    for process in marked(mark):  # of a run that was itself killed
        send_kill(process)
    cluster = Cluster(folder / "cluster", env)
    with ExitStack() as stack:
        stack.callback(cluster.stop)
        cluster.start()
        if "undisturbed" not in state:
            walk = _walk(cluster, folder / "undisturbed", Walk(0), [], random.Random(seed))
            faults = walk.differences or left_behind(cluster, folder, folder / "undisturbed")
            if faults:
                raise BftError("the undisturbed study is not as it must be: " + "; ".join(faults))
            found, files = records(folder / "undisturbed"), files_of(folder / "undisturbed")
            state |= {"undisturbed": found, "files": files, "undisturbed_s": walk.seconds, "walks": []}
            save()
        state["faulty"] = state.get("faulty", []) + [walk for walk in state["walks"] if walk["differences"]]
        state["walks"] = [walk for walk in state["walks"] if not walk["differences"]]
        longest = state["undisturbed_s"]
        while _num_kills(state) < num_kills and time.monotonic() + 1.5 * longest < end:
            number = min(set(range(1, len(state["walks"]) + 2)) - {walk["number"] for walk in state["walks"]})
            draw, place = random.Random(f"{seed}/{number}"), folder / f"study-{number}"
            count = min(draw.randint(1, _MOST_KILLS), num_kills - _num_kills(state))
            plan = [(draw.choice(KINDS), draw.uniform(0.02, 0.4) * state["undisturbed_s"]) for _ in range(count)]
            walk = _walk(cluster, place, Walk(number), plan, draw)
            if not walk.differences:
                walk.differences += compare(state["undisturbed"], records(place))
                remove_signs(str(place / "results"), before=time.time())  # as a command of some minutes later does
                walk.differences += compare_files(state["files"], files_of(place))
            walk.differences += left_behind(cluster, folder, place)
            state["walks"].append(asdict(walk))
            save()
            longest = max(longest, walk.seconds)
            print(f"study {number}: {', '.join(kind for kind, _ in walk.kills)}; {walk.starts} starts, {walk.seconds:.0f} s;"
                  f" {'; '.join(walk.differences) or 'as undisturbed'}", flush=True)  # fmt: skip
            if not walk.differences:
                shutil.rmtree(place, ignore_errors=True)


def _num_kills(state: dict[str, Any]) -> int:
    return sum(len(walk["kills"]) for walk in state["walks"])


def _walk(cluster: Cluster, place: Path, walk: Walk, plan: list[tuple[str, float]], draw: random.Random) -> Walk:
    """Give the command until it has finished, and do meanwhile what the plan says: kind, and seconds since the last kill."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    began = since = time.monotonic()
    lost_at: float | None = None
    most = 3 * (len(plan) + 1)
    driver = _start(cluster, place, walk)
    try:
        while True:
            now = time.monotonic()
            if (status := driver.poll()) is not None:
                if status == 0:
                    break
                if status != -signal.SIGKILL or not walk.kills or walk.kills[-1][0] not in ("driver", "head"):
                    walk.ended.append(_last_line(place))
                if walk.starts > most:
                    walk.differences.append(f"the command ends each time: {walk.ended[-1] if walk.ended else status}")
                    break
                cluster.mend()
                driver, lost_at = _start(cluster, place, walk), None
            elif now - began > _STUDY_S or (lost_at is not None and now - lost_at > _DRIVER_S):
                walk.differences.append(f"hangs: {_last_line(place)}")
                break
            elif plan and now - since > plan[0][1] and _kill(cluster, driver, plan[0][0], draw):
                walk.kills.append((plan.pop(0)[0], round(now - began, 1)))
                since = now
                if walk.kills[-1][0] in ("raylet", "gcs"):
                    lost_at = now if walk.kills[-1][0] == "gcs" else lost_at
                    time.sleep(draw.uniform(0, 3))
                    cluster.mend()
            time.sleep(_LOOK_S)
    finally:
        if driver.poll() is None:
            os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()
    walk.seconds = round(time.monotonic() - began, 1)
    if traces := len(re.findall(r"^Traceback \(most recent", (place / "log").read_text(errors="replace"), re.M)):
        walk.differences.append(f"{traces} tracebacks in {place}/log")
    return walk


def _kill(cluster: Cluster, driver: subprocess.Popen, kind: str, draw: random.Random) -> bool:
    """Whether there was something of the kind to kill. A job's driver runs on the head: it goes with the head."""
    if kind != "driver" and not cluster.kill(kind, draw):
        return False
    if kind in ("driver", "head") and (process := find(driver.pid)):
        send_kill(process)
        driver.wait()
    return True


def search_words(place: Path | str) -> tuple[str, ...]:
    """`bft-ray search` on the small study, which writes all below this folder."""
    return (
        *("search", "starter", "--no-measure", "--no-profile", "--database", f"sqlite:///{place}/studies.db", *SMALL),
        *(f"cluster.storage_path={place}/results", f"tracking.uri=sqlite:///{place}/mlflow.db"),
        f"data.cache_dir={place}/cache",
    )


def _start(cluster: Cluster, place: Path, walk: Walk) -> subprocess.Popen:
    """The command, the same each time."""
    walk.starts += 1
    words = [sys.executable, "-m", "bft_ray.cli", *search_words(place)]
    with (place / "log").open("ab") as log:
        log.write(f"--- start {walk.starts}\n".encode())
        log.flush()
        return subprocess.Popen(
            words,
            cwd=place,
            env=cluster.client(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _last_line(place: Path) -> str:
    lines = [line for line in (place / "log").read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "nothing printed"


# --- what a study has found, and what it has left --------------------------------------------------------------------


def records(place: Path) -> dict[str, Any]:
    """All trials, without when and where; and the champion, with its number of versions in the registry."""
    from mlflow import MlflowClient

    from bft_ray.study.records.database import Database
    from bft_ray.study.records.store import BASELINES, CONFIRMATION, SEARCH, Store

    found: dict[str, Any] = {}
    with Database(f"sqlite:///{place}/studies.db") as database:
        store = Store.find(database, STUDY)
        for part in (BASELINES, SEARCH, CONFIRMATION):
            for one in store.open_part(part).records():
                found[one.id] = {
                    "name": one.name,
                    "assignment": dict(one.assignment),
                    "seeds": list(one.seeds),
                    "status": one.status,
                    "num_steps": one.num_steps,
                    "rungs": {str(step): {str(s): v for s, v in at.items()} for step, at in one.rungs.items()},
                    "by_seed": {str(seed): dict(metrics) for seed, metrics in one.by_seed.items()},
                    "value": one.value,
                }
        holder = store.lease.holder()
        found["lease"] = None if holder is None else str(holder.owner)
        found["champion"] = (store.notes().get("result") or {}).get("champion")
    client = MlflowClient(f"sqlite:///{place}/mlflow.db")
    versions = client.search_model_versions("name='bft-gene_interaction'")
    found["versions"] = len(versions)
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()], max_results=1000)
    found["runs"] = sorted(f"{run.data.tags.get('bft.trial', 'study')} {run.info.status}" for run in runs)
    return found


def compare(undisturbed: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Each difference by its place in the tree; equal bits are asked for."""
    found = []
    for name in sorted(undisturbed.keys() | now.keys()):
        before, after = undisturbed.get(name, "nothing"), now.get(name, "nothing")
        if isinstance(before, dict) and isinstance(after, dict):
            found += [f"{name}.{text}" for text in compare(before, after)]
        elif before != after:
            found.append(f"{name}: {before} undisturbed, {after} now")
    return found


def files_of(place: Path) -> list[str]:
    """The files of the results, by names in which ids are the same for all."""
    results = place / "results"
    return sorted(_IDS.sub("", str(path.relative_to(results))) for path in results.rglob("*") if path.is_file())


def compare_files(undisturbed: list[str], now: list[str]) -> list[str]:
    lost, more = sorted(set(undisturbed) - set(now)), sorted(set(now) - set(undisturbed))
    return [f"files lost: {lost[:3]} ({len(lost)})"] * bool(lost) + [f"files left: {more[:3]} ({len(more)})"] * bool(
        more
    )


def left_behind(cluster: Cluster, folder: Path, place: Path) -> list[str]:
    """Processes, placement groups, temporary files and unsent records that a finished study has left."""
    from bft_ray.places.scratch import remove_dead
    from cluster.local.processes import family

    end, found = time.monotonic() + _QUIET_S, ["never looked"]
    while found and time.monotonic() < end:
        cluster.mend()
        orphans = marked(str(folder)) - family(cluster.state.processes.values())
        found = [f"{len(orphans)} processes left"] * bool(orphans)
        found += [f"{len(cluster.working())} workers still at work"] * bool(cluster.working())
        time.sleep(1)
    if groups := _placement_groups(cluster):
        found.append(f"placement groups: {groups}")
    remove_dead(folder / "tmp")  # as the next command does
    names = [path.name for path in (folder / "tmp").iterdir() if "bft_ray" in path.name]
    found += [f"temporary files: {names[:3]} ({len(names)})"] * bool(names)
    parts = [
        str(path.relative_to(place)) for path in place.rglob("*") if path.name.endswith((".part", ".new", ".lock"))
    ]
    found += [f"half-written files: {parts[:3]} ({len(parts)})"] * bool(parts)
    spool = folder / "home" / ".cache" / "bft_ray" / "spool"
    unsent = [path.name for path in spool.glob("*") if path.is_file() and path.stat().st_size] if spool.is_dir() else []
    return found + [f"unsent records: {unsent[:3]} ({len(unsent)})"] * bool(unsent)


def _placement_groups(cluster: Cluster) -> str:
    """How many are not removed, as Ray tells; "" where none is."""
    code = (
        "import ray; ray.init(logging_level='ERROR', log_to_driver=False); from ray.util import placement_group_table as t;"
        "print('FOUND', sum(one['state'] != 'REMOVED' for one in t().values()))"
    )
    with suppress(subprocess.TimeoutExpired):
        done = subprocess.run(
            [sys.executable, "-c", code], env=cluster.client(), capture_output=True, text=True, timeout=120
        )
        if "FOUND " in done.stdout:
            count = int(done.stdout.rpartition("FOUND ")[2])
            return f"{count} not removed" if count else ""
    return "could not be counted"


def table(walks: list[dict[str, Any]]) -> str:
    """Kills by kind, and what became of the studies in which they were."""
    lines = ["| kind | kills | studies | recovered | differences |", "|---|---|---|---|---|"]
    for kind in (*KINDS, "all"):
        own = [walk for walk in walks if kind == "all" or any(kind == each for each, _ in walk["kills"])]
        kills = sum(kind in ("all", each) for walk in own for each, _ in walk["kills"])
        good = sum(not walk["differences"] for walk in own)
        lines.append(f"| {kind} | {kills} | {len(own)} | {good} | {sum(len(walk['differences']) for walk in own)} |")
    return "\n".join(lines)
