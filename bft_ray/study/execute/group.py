"""A group: one Ray actor for each rank of a trial of several workers. It stays from trial to trial, with its process group.

Each rank runs `run_segment` as a single worker does, with model, data and tokens of earlier trials in memory.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup

from bft_ray.config import ClusterConfig
from bft_ray.errors import BftError
from bft_ray.places.modes import keep_for
from bft_ray.places.scratch import scratch
from bft_ray.study.records.segment import Run, Segment
from bft_ray.train.failure import how_it_died
from bft_ray.workers.room import in_bundle, is_one_machine, worker_resources

if TYPE_CHECKING:
    from bft_ray.study.execute.warm import Warm

_GRACE_S = 10.0  # from the failure of one rank until those that have not failed with it are ended


class WorkerDied(BftError):
    """The process of a rank is gone, or does not answer."""


#: what gloo and NCCL say of a collective that one rank has not joined in time
_TOO_LONG = re.compile(r"timed? ?out", re.IGNORECASE)


class Group:
    """The ranks of trials of several workers, in the bundles of a placement group.

    Args:
        cluster: what each rank gets, and how long to wait for it.
        places: one bundle a rank.

    Raises:
        WorkerDied: not all ranks have joined within `cluster.start_timeout_s`.
    """

    def __init__(self, cluster: ClusterConfig, places: PlacementGroup):
        self.is_good = True  # whether the next segment may run here
        self._cluster, self._stack = cluster, ExitStack()
        self._ranks = [
            in_bundle(_Rank, worker_resources(cluster), places, bundle).remote(cluster.file_mode)
            for bundle in range(places.bundle_count)
        ]
        try:
            self._join()
        except BaseException:
            self.close()
            raise

    def run(self, segment: Segment) -> Generator[Run, None, None]:
        """Run a segment on all ranks; yields the reports of rank 0, as `run_segment` does.

        Where one rank alone fails, its report is that of the trial: the others wait for it, and are ended.

        Raises:
            WorkerDied: the process of a rank is gone.
        """
        try:
            self._ask("begin", segment)
            while True:
                answers = self._ask("next")
                reports = list(answers.values())
                failed = [report for report in reports if report.status in ("failed", "stopped")]
                if failed and (len(failed) < len(self._ranks) or len({report.reason for report in failed}) > 1):
                    self.is_good = False
                report = _naming(failed[0], set(range(len(self._ranks))) - set(answers)) if failed else reports[0]
                yield report
                if report.status != "running":
                    return
        except GeneratorExit:
            self._stop()
            raise

    def close(self) -> None:
        """End all ranks."""
        self.is_good = False
        for rank in self._ranks:
            ray.kill(rank)
        self._stack.close()

    def _join(self) -> None:
        limit_s, size = self._cluster.start_timeout_s, len(self._ranks)
        hosts = self._ask("host", limit_s=limit_s)
        if is_one_machine():  # in a file: torch's own server asks nobody who he is
            meeting = f"file://{self._stack.enter_context(scratch('meeting'))}/ranks"
        else:
            meeting = ray.get(self._ranks[0].open_meeting.remote(hosts[0]), timeout=limit_s)
        each = [(meeting, rank, size, self._cluster.collective_timeout_s) for rank in range(size)]
        self._ask("join", each=each, limit_s=limit_s)

    def _stop(self) -> None:
        try:
            self._ask("end", limit_s=self._cluster.collective_timeout_s)
        except BftError:  # the trial has its results; the next one gets new ranks
            self.is_good = False

    def _ask(
        self, method: str, *arguments: Any, each: Sequence[tuple] = (), limit_s: float | None = None
    ) -> dict[int, Any]:
        """The answers by rank, in the order of ranks. After a failure of one rank, the others have a few seconds to fail too:
        those that have not done so are not among the answers.

        Args:
            each: arguments of each rank.
            limit_s: longest wait; None: none is needed, because collectives have one.
        """
        asked = enumerate(self._ranks)
        left = {getattr(rank, method).remote(*(each[n] if each else arguments)): n for n, rank in asked}
        end = None if limit_s is None else time.monotonic() + limit_s
        answers: dict[int, Any] = {}
        died: tuple[int, str] | None = None
        raised: Exception | None = None
        while left:
            done, _ = ray.wait(list(left), timeout=None if end is None else max(0.0, end - time.monotonic()))
            if not done:
                break
            number = left.pop(done[0])
            try:
                answers[number] = answer = ray.get(done[0])
                has_failed = isinstance(answer, Run) and answer.status in ("failed", "stopped")
            except RayTaskError as error:
                raised, has_failed = raised or error.cause or error, True
            except RayError as error:
                died, has_failed = died or (number, str(error)), True
            if has_failed:
                end = min(end or float("inf"), time.monotonic() + _GRACE_S)
        self.is_good = self.is_good and not (left or died or raised)
        if died is not None:
            raise WorkerDied(f"rank {died[0]}: {how_it_died(died[1])}")
        if raised is not None:
            raise raised
        if not answers:
            raise WorkerDied(f"{len(left)} of {len(self._ranks)} workers did not answer within {limit_s:g} s")
        return dict(sorted(answers.items()))


def _naming(report: Run, silent: set[int]) -> Run:
    """A report of a wait that was too long, with the ranks that have not answered: the others have waited for them. (After
    any other failure the silent ones are those that wait.)
    """
    if report.status != "failed" or report.is_lasting or not silent or not _TOO_LONG.search(report.reason):
        return report
    names = ", ".join(f"rank {number}" for number in sorted(silent))
    return replace(report, reason=f"{report.reason} (without an answer, and ended: {names})")


class _Rank:
    """The actor: one rank, one segment at a time."""

    def __init__(self, file_mode: str):
        keep_for(file_mode)
        self._warm: Warm | None = None
        self._steps: Generator[Run, None, None] | None = None

    def host(self) -> str:
        """Address of this node."""
        return ray.util.get_node_ip_address()

    def pid(self) -> int:
        """Number of this process."""
        return os.getpid()

    def open_meeting(self, host: str) -> str:
        from bft_ray.train.ranks import open_meeting  # imports torch, as below: then all ranks load it at once

        return open_meeting(host)

    def join(self, meeting: str, rank: int, world_size: int, timeout_s: float) -> None:
        from bft_ray.study.execute.warm import Warm
        from bft_ray.train.ranks import join

        self._warm = Warm()
        join(meeting, rank, world_size, timeout_s)

    def begin(self, segment: Segment) -> None:
        from bft_ray.study.execute.segments import run_segment

        assert self._warm is not None
        self._steps = run_segment(segment, self._warm)

    def next(self) -> Run:
        """The report at the next measurement."""
        assert self._steps is not None
        return next(self._steps)

    def end(self) -> None:
        """Stop the segment."""
        if self._steps is not None:
            self._steps.close()
            self._steps = None
