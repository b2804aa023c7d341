"""One trial that really takes more memory than it may: it fails alone, with what helps, and the study goes on.

That of a GPU is simulated, in test_work, by the error that torch raises.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from bft_ray.study.records.database import Database
from bft_ray.study.records.store import Store
from tests.support.small_study import write_space

pytestmark = pytest.mark.long

LIMIT_BYTES = 3_500_000_000  # of a process, or of all of them: the most that the machine has to give
CGROUPS = Path("/sys/fs/cgroup/memory")


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A group of processes that the kernel lets have so much memory, and of which it kills one where they want more."""
    group = CGROUPS / f"bft_ray_test_{os.getpid()}"
    try:
        (CGROUPS / "memory.limit_in_bytes").stat()
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(LIMIT_BYTES))
    except OSError:
        pytest.skip("no memory cgroup (version 1) can be made here")
    try:
        yield group
    finally:
        end = time.monotonic() + 60
        while (group / "cgroup.procs").read_text() and time.monotonic() < end:
            time.sleep(0.2)
        group.rmdir()


def search(make_tree, folder: Path, prefix: list[str]) -> tuple[subprocess.CompletedProcess, dict]:
    """A study of three sizes of batch, the last of which is too large for one micro-batch; number -> record."""
    draw = random.Random(0)
    rows = [
        {
            "id": f"r{n}",
            **{part: f"{n} {' '.join(str(draw.random()) for _ in range(8))}" for part in ("prompt", "completion")},
        }
        for n in range(1200)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = {"path": str(folder / "rows.jsonl")}
    tree = make_tree(
        model={"path": "starter"},
        data={
            "train": [source],
            "validation": [source | {"limit": 8}],
            "max_length": 512,
            "micro_batch_tokens": 1_000_000,
        },
        deepspeed={"preset": "zero0"},
        cluster={"max_failures": 0, "gpus_per_worker": 0, "storage_path": str(folder / "results")},
    )
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    write_space(
        folder,
        parameters={"data.global_batch_size": {"kind": "categorical", "values": [1024, 2, 4]}},
        objective={"metric": "validation/nll"},
        budget={"trials": 3, "steps": 2},
        baselines=[],
    )
    url = f"sqlite:///{folder}/studies.db"
    words = ["search", "space.yaml", "--database", url, "--no-profile", "--no-measure"]
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "bft_ray.cli", *words], cwd=folder, capture_output=True, text=True, timeout=840
    )
    with Database(url, make=False) as database:
        records = Store.find(database, "small/test").records()
    return done, {record.assignment["data.global_batch_size"]: record for record in records}


def check(done: subprocess.CompletedProcess, records: dict, why: str) -> None:
    assert done.returncode == 0, done.stderr[-3000:]
    assert {size: record.state for size, record in records.items()} == {1024: "failed", 2: "complete", 4: "complete"}
    for advice in (why, "Lower data.micro_batch_tokens", "model.gradient_checkpointing=true"):
        assert advice in records[1024].reason and advice in done.stderr
    best = min((2, 4), key=lambda size: records[size].value)
    assert f"data.global_batch_size {best} has the best mean validation/nll" in " ".join(done.stdout.split())


@pytest.mark.release
def test_a_trial_that_its_system_refuses_memory_fails_alone(make_tree, tmp_path):
    """By a limit on the private memory of each process: torch's allocator raises."""
    done, records = search(make_tree, tmp_path, ["prlimit", f"--data={LIMIT_BYTES}"])
    check(done, records, "DefaultCPUAllocator: can't allocate memory")


@pytest.mark.privileged
def test_a_trial_that_the_kernel_kills_for_its_memory_fails_alone(make_tree, tmp_path, cgroup):
    """As in a container or a job of Slurm: its process is gone, and nobody says why."""
    enter = ["sh", "-c", f'echo $$ > {cgroup}/cgroup.procs; exec "$@"', "sh"]
    done, records = search(make_tree, tmp_path, enter)
    killed = [line for line in (cgroup / "memory.oom_control").read_text().splitlines() if line.startswith("oom_kill ")]
    assert killed and int(killed[0].split()[1]) >= 1
    check(done, records, "its process is gone: killed, perhaps because memory was full")
