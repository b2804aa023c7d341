"""What workers raise: told in their own words, and not tried again where it must fail again."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest

from bft_ray.config import ClusterConfig, make_config
from bft_ray.errors import BadInput, NonFinite
from bft_ray.train.checkpoint import write_manifest
from bft_ray.train.failure import Decision, WorkerFailed, advice_on, explain, how_it_died, retry_of, root_of


class DistBackendError(RuntimeError):
    """Named as torch.distributed names what a rank says of another one."""


class WorkerHealthCheckFailedError(Exception):
    """Named and shaped as Ray Train's."""

    def __init__(self, message, failure):
        super().__init__(message)
        self.health_check_failure = failure


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except type(error) as caught:
        return caught


def test_a_failure_is_told_with_its_class_message_place_and_remedy():
    failed = explain(raised(ImportError("No module named 'mamba_ssm'")), 1)
    assert str(failed) == (
        f"training failed: ImportError: No module named 'mamba_ssm' (rank 1, test_failure.py:{raised.__code__.co_firstlineno + 2}). "
        "It would fail the same way again, so it was not started again. "
        "Install it on every node, in the environment that Ray's workers use."
    )
    again = pickle.loads(pickle.dumps(failed))
    assert str(again) == str(failed) and again.retry == "never"
    assert "data.micro_batch_tokens" in str(explain(RuntimeError("CUDA out of memory. Tried to allocate"), 0))
    assert "bft-ray doctor" in str(explain(IndexError("index out of range in self"), 0))
    long = str(explain(ValueError("x" * 900 + " at http://me:secret@host"), 0))
    assert len(long) < 700 and "secret" not in long
    own = BadInput("a", 1, "2")
    assert explain(own, 0) is own


@pytest.mark.parametrize(
    ("error", "retry"),
    [
        (BadInput("a", 1, "2"), "never"),
        (NonFinite(1, "loss", []), "never"),
        (IndexError("index out of range in self"), "never"),
        (RuntimeError("CUDA out of memory"), "never"),
        (PermissionError(13, "denied"), "never"),
        (FileNotFoundError(2, "no such file"), "once"),
        (ConnectionResetError(), "once"),
        (RuntimeError("CUDA error: uncorrectable ECC error"), "once"),
        (DistBackendError("NCCL error"), "always"),
    ],
)
def test_what_is_tried_again(error, retry):
    assert retry_of(error) == retry
    assert (Decision().of({0: error}) is not None) == (retry == "never")


def test_the_same_twice_without_a_checkpoint_ends_it():
    decision = Decision()
    assert decision.of({0: OSError("the hub is away")}) is None
    decision.progressed()
    assert decision.of({0: OSError("the hub is away")}) is None
    assert decision.of({0: OSError("something else")}) is None
    ended = decision.of({0: OSError("something else")})
    assert "OSError: something else (rank 0; the same twice, without a checkpoint in between)" in str(ended)
    for _ in range(9):  # nodes may go as often as `max_failures` allows
        assert Decision().of({0: WorkerHealthCheckFailedError("", ConnectionError("actor died"))}) is None


def test_the_failure_that_explains_the_others():
    echo = RuntimeError("Connection closed by peer [127.0.0.1]:4242")
    died = WorkerHealthCheckFailedError("", ConnectionError("the actor is dead"))
    assert "IndexError: 7" in str(root_of({0: echo, 1: IndexError("7"), 2: died}))
    assert "a worker died, its process is gone" in str(root_of({0: echo, 2: died}))
    assert "rank 2" in str(root_of({0: echo, 2: died}))
    full = WorkerHealthCheckFailedError("", type("OutOfMemoryError", (Exception,), {})("Task was killed"))
    assert "the memory of its node was full" in str(root_of({0: full})) and "lora.rank=16" in str(root_of({0: full}))
    assert isinstance(root_of({0: echo}), WorkerFailed)


def test_tune_is_asked_how_a_process_ended(tmp_path):
    """It hands the words of Ray on in a file alone."""
    from bft_ray.study.execute.ray_tune import _Bridge, _Rungs

    bridge = _Bridge(None, [])
    said = tmp_path / "error.txt"
    said.write_text("Failure # 1\nTask was killed due to the node running low on memory.\n")
    for name, file in (("full", str(said)), ("gone", None), ("away", str(tmp_path / "none"))):
        _Rungs(bridge, ClusterConfig()).on_trial_error(None, SimpleNamespace(trial_id=name, error_file=file))
    assert bridge.why["full"].startswith("OutOfMemoryError: Ray ended the worker") and "lora.rank" in bridge.why["full"]
    for name in ("gone", "away"):
        assert "perhaps because memory was full" in bridge.why[name] and "lora.rank" in bridge.why[name]


def test_how_a_process_ended():
    """In the words of Ray 2.60, for a worker that its memory monitor ends, and for one that is gone."""
    full = "Task was killed due to the node running low on memory. Memory on the node was 0.95GB / 1.00GB"
    gone = (
        "The actor died unexpectedly. Some common causes: (1) the process was killed by the OOM killer due to high ..."
    )
    assert "the memory of its node was full" in how_it_died(full) and "lora.rank=16" in advice_on(how_it_died(full))
    assert "perhaps because memory was full" in how_it_died(gone) and not advice_on(how_it_died(gone))


@pytest.mark.release
def test_a_damaged_checkpoint_is_told_once_and_not_tried_again(make_tree, tmp_path):
    """By Ray Train's own workers: one start of them, and the rule that was broken."""
    import ray

    from bft_ray.train.workers import run_workers

    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        config = make_config(
            make_tree(cluster={"gpus_per_worker": 0, "storage_path": str(tmp_path), "max_failures": 3})
        )
        folder = tmp_path / "run" / "step-00000002"
        folder.mkdir(parents=True)
        (folder / "weights.bin").write_bytes(b"0123456789")
        write_manifest(folder, 0, 1)
        (folder / "weights.bin").write_bytes(b"0123456780")
        payload = {"folder": str(tmp_path / "run"), "export": str(tmp_path / "export")}
        with pytest.raises(BadInput) as caught:
            run_workers(config, payload)
        assert caught.value.rule == "unchanged since it was written (its checksum differs)"
        assert caught.value.remedy == f"There is no earlier one. Delete {folder}: the run then starts again."
        session = Path(ray._private.worker._global_node.get_session_dir_path())
        assert len(list(session.glob("logs/train/ray-train-app-worker-*.log"))) == 1
    finally:
        ray.shutdown()
