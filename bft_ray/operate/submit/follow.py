"""The output of a job as it comes, and its end: by asking again and again, so that no connection has to last."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from requests.exceptions import RequestException  # comes with ray[default]

from bft_ray.errors import BftError, first_line
from bft_ray.places.addresses import redact
from bft_ray.waits import bounded

ANSWER_S = 30.0  # longest wait for one answer
POLL_S = 1.0
PATIENCE_S = 600.0  # without any answer, before it is given up; the job is not harmed
STOP_S = 60  # that a job has to end cleanly when it is cancelled, before Ray kills it
CANCELLED = 130
_AWAY = (RequestException, ConnectionError, TimeoutError, RuntimeError)


class Followed:
    """A job of a cluster, and how much of its output was written.

    Args:
        client: Ray's `JobSubmissionClient`.
        write: takes the next part of the output.
        note: takes a line about the connection.
    """

    def __init__(self, client: Any, job_id: str, write: Callable[[str], None], note: Callable[[str], None]):
        self.client, self.job_id = client, job_id
        self._write, self._note = write, note
        self._written = 0

    def until_end(self, patience_s: float = PATIENCE_S, limit_s: float | None = None) -> int:
        """Write the output until the job ends; its exit code: that of its command, 130 where it was stopped.

        Args:
            patience_s: longest time without an answer of the cluster.
            limit_s: longest time in all.

        Raises:
            BftError: the cluster does not answer, or knows no such job; or the limit has passed.
        """
        began = answered = time.monotonic()
        is_away = False
        while True:
            try:
                info = self._ask(self.client.get_job_info)
                self._write_more(info.status.is_terminal())
            except _AWAY as error:
                why = redact(first_line(error))
                if "status code 404" in why:
                    raise BftError(f"the cluster knows no job {self.job_id}: it may have been restarted") from None
                if not is_away:
                    self._note(f"no answer from the cluster, the job is not harmed; asking again ({why})")
                is_away = True
                if time.monotonic() - answered > patience_s:
                    again = f"the job may still run: `bft-ray submit --follow {self.job_id}` follows it again"
                    raise BftError(f"no answer from the cluster for {patience_s:g} s; {again}") from None
            else:
                if is_away:
                    self._note("the cluster answers again")
                is_away, answered = False, time.monotonic()
                if info.status.is_terminal():
                    return self._exit_code(info)
            if limit_s is not None and time.monotonic() - began > limit_s:
                raise BftError(f"job {self.job_id} has not ended within {limit_s:g} s")
            time.sleep(POLL_S)

    def cancel(self) -> int:
        """Stop the job, and wait for its clean end, which its driver has `STOP_S` for; 130."""
        self._note(f"stopping job {self.job_id}, and waiting for its clean end (again Ctrl-C: without waiting)")
        self._ask(self.client.stop_job)
        self.until_end(limit_s=2.0 * STOP_S)
        self._note(f"job {self.job_id} has ended")
        return CANCELLED

    def _ask(self, function: Callable[[str], Any]) -> Any:
        return bounded(ANSWER_S, function, self.job_id)

    def _write_more(self, is_last: bool) -> None:
        """What is new of the output. Before a job has begun there is none, and Ray answers with an error."""
        try:
            log = self._ask(self.client.get_job_logs)
        except RuntimeError:
            if is_last:
                self._note("the output of the job cannot be read")
            return
        if len(log) > self._written:
            self._write(log[self._written :])
            self._written = len(log)

    def _exit_code(self, info: Any) -> int:
        if info.status == "SUCCEEDED":
            return 0
        if info.status == "STOPPED":
            self._note(f"job {self.job_id} was stopped")
            return CANCELLED
        code = info.driver_exit_code
        if code is None and info.message:  # it ended before its command began
            self._note(f"job {self.job_id} failed: {redact(first_line(info.message))}")
        return code if code is not None and 0 < code < 256 else 1
