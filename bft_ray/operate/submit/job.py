"""`bft-ray submit`: any other command as a job of a Ray cluster."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bft_ray.errors import BadInput, BftError, first_line
from bft_ray.operate.nodes import check_token
from bft_ray.operate.submit.follow import ANSWER_S, STOP_S, Followed
from bft_ray.operate.submit.upload import pack, require_files
from bft_ray.places.addresses import redact
from bft_ray.places.scratch import scratch
from bft_ray.waits import bounded, waiting
from bft_ray.workers.address import why_silent

UPLOAD_S = 1800.0  # longest wait for an upload
_ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")  # as Ray reads them, in this order


def submit(words: Sequence[str], address: str | None, working_dir: Path, env: Sequence[str], follow: bool) -> int:
    """Upload the folder, run `bft-ray WORDS` in it on the cluster, and follow; the exit code of the job.

    Ctrl-C stops the job and waits for its clean end.

    Args:
        address: of the cluster's dashboard, `http://HEAD:8265`; None: RAY_API_SERVER_ADDRESS or RAY_ADDRESS.
        env: `NAME=VALUE`, or `NAME` for the value that it has here, for the environment of the job.
        follow: False returns once the job is accepted.

    Raises:
        BadInput: no cluster there, a wrong token, a folder that is too large, a file that is not in the upload.
        BftError: the cluster refuses the job, or does not answer for long.
    """
    variables = {"PYTHONUNBUFFERED": "1", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S)} | _variables(env)
    client = _connect(address)
    with scratch("submit") as folder:
        with waiting("packing the upload"):
            upload = pack(working_dir, folder / "upload.zip")
        require_files(words[1:], upload)
        _say(upload.describe())
        job_id = f"bft-{words[0]}-{uuid.uuid4().hex[:8]}"
        runtime = {"working_dir": str(upload.path), "env_vars": variables}
        command = shlex.join(["python", "-m", "bft_ray.cli", *words])
        with waiting("uploading"):
            _start(client, job_id, command, runtime)
    _say(f"job     {job_id}")
    if not follow:
        _say(f"follow  bft-ray submit --follow {job_id}")
        return 0
    return _follow(client, job_id)


def follow_again(job_id: str, address: str | None) -> int:
    """Follow a job that was submitted before, from its first output on; its exit code. Errors as `submit`."""
    return _follow(_connect(address), job_id)


def _follow(client: Any, job_id: str) -> int:
    followed = Followed(client, job_id, _write, _say)
    try:
        return followed.until_end()
    except KeyboardInterrupt:
        return followed.cancel()


def _connect(address: str | None) -> Any:
    """Ray's client for jobs, with a line on the two versions."""
    address = address or next(filter(None, map(os.environ.get, _ADDRESSES)), None)
    if address is None:
        remedy = "Give the address of the cluster's dashboard, http://HEAD:8265, or set RAY_API_SERVER_ADDRESS."
        raise BadInput("--address", None, "given", remedy)
    if "://" not in address:
        raise BadInput("--address", redact(address), "the URL of the cluster's dashboard, such as http://HEAD:8265")
    if why := why_silent(address):
        raise _unanswered(address, why)
    import ray
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    os.environ[_ADDRESSES[0]] = address  # Ray takes this variable even where it is given an address
    logging.getLogger("ray.dashboard.modules.dashboard_sdk").setLevel(logging.WARNING)  # the upload is described here
    try:
        with waiting("connecting to the cluster"):
            client = bounded(ANSWER_S, JobSubmissionClient, address)
    except AuthenticationError as error:
        remedy = "Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a file with the cluster's token (mode 0600)."
        raise BadInput(
            "--address", redact(address), f"a cluster that takes this token: {first_line(error)}", remedy
        ) from None
    except (ConnectionError, TimeoutError, RuntimeError, ValueError, OSError) as error:
        raise _unanswered(address, first_line(error)) from None
    theirs = client._server_ray_version  # Ray has it from its own check, and offers it nowhere
    _say(
        f"cluster {redact(address)}, Ray {theirs}" + ("" if theirs == ray.__version__ else f"; here {ray.__version__}")
    )
    if theirs != ray.__version__:
        _say(
            "note: the job runs with the cluster's Ray and packages; make both the same, or try `doctor` as a job first"
        )
    for finding in check_token():
        if finding.status != "ok":
            _say(f"note: {finding.detail}. {finding.remedy}")
    return client


def _unanswered(address: str, why: str) -> BadInput:
    remedy = (
        "Check host and port, and that the cluster runs: its dashboard is at port 8265 unless it was given another."
    )
    return BadInput("--address", redact(address), f"the dashboard of a Ray cluster that answers: {redact(why)}", remedy)


def _start(client: Any, job_id: str, command: str, runtime: dict[str, Any]) -> None:
    """Hand the job over. Where the connection drops, the cluster is asked whether it has the job."""
    from requests.exceptions import RequestException

    try:
        bounded(UPLOAD_S, lambda: client.submit_job(entrypoint=command, submission_id=job_id, runtime_env=runtime))
    except (RequestException, ConnectionError, TimeoutError) as error:
        try:
            bounded(ANSWER_S, client.get_job_info, job_id)
        except Exception:
            why = redact(first_line(error))
            raise BftError(f"the cluster did not take the job, because the connection broke: {why}") from None
        _say("the connection broke, and the cluster has the job")
    except RuntimeError as error:
        raise BftError(f"the cluster did not take the job: {redact(first_line(error))}") from None


def _variables(env: Sequence[str]) -> dict[str, str]:
    found = {}
    for word in env:
        name, given, value = word.partition("=")
        if not given:
            if name not in os.environ:
                raise BadInput("--env", name, "NAME=VALUE, or the name of a variable that is set here")
            value = os.environ[name]
        found[name] = value
    return found


def _write(text: str) -> None:
    print(text, end="", flush=True)


def _say(line: str) -> None:
    """Beside the output of the job, which goes to stdout."""
    print(line, file=sys.stderr, flush=True)
