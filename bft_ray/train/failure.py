"""Why workers failed, with their message and advice; and whether to start them again."""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping
from typing import Literal

from bft_ray.errors import BftError
from bft_ray.places.addresses import redact
from bft_ray.places.disk import full_disk

#: never: it would fail in the same way again; once: unless it does so; always: another process has caused it
Retry = Literal["never", "once", "always"]

#: errors of code and input, which do not depend on the machine
_NEVER = (
    *(ImportError, SyntaxError, TypeError, ValueError, LookupError, AttributeError, NameError),
    *(NotImplementedError, AssertionError, ArithmeticError, MemoryError, PermissionError),
)
_LONGEST = 500  # characters of a message
_MEMORY = re.compile(
    r"out of memory|OutOfMemory|MemoryError|can't allocate memory|Cannot allocate memory|running low on memory", re.I
)
#: pattern of the message -> advice
_ADVICE = (
    (
        _MEMORY,
        "Lower data.micro_batch_tokens, data.max_length or evaluation.batch_tokens; or compute activations again "
        "(model.gradient_checkpointing=true), train adapters (lora.rank=16), share the weights out "
        "(deepspeed.preset=zero3, deepspeed.offload=all), or take a larger machine.",
    ),
    (
        re.compile(r"^(ImportError|ModuleNotFoundError)"),
        "Install it on every node, in the environment that Ray's workers use.",
    ),
    (
        re.compile(r"index out of range in self|device-side assert|indexSelectLargeIndex|out of bounds"),
        "A token or a position may be outside of the model's embedding: `bft-ray doctor CONFIG` compares the tokenizer, "
        "data.max_length and the model.",
    ),
    (
        re.compile(r"^(FileNotFoundError|PermissionError|NotADirectoryError)"),
        "Every node must reach it, with the same path and the right to use it.",
    ),
)


def advice_on(what: str) -> str:
    """Advice on an error, given as its class and message; "" where there is none."""
    return next((text for pattern, text in _ADVICE if pattern.search(what)), "")


class WorkerFailed(BftError):
    """What a worker raised, or how it died.

    Args:
        what: class and message of the error, in one line.
        where: "rank 1, linear.py:125", as far as it is known.
        retry: see `Retry`.
    """

    def __init__(self, what: str, where: str, retry: Retry):
        self.what, self.where, self.retry = what, where, retry
        advice = advice_on(what)
        ended = " It would fail the same way again, so it was not started again." if retry == "never" else ""
        super().__init__(f"training failed: {what} ({where}).{ended}{f' {advice}' if advice else ''}")

    def __reduce__(self):
        return type(self), (self.what, self.where, self.retry)


def explain(error: BaseException, rank: int | None, places: Mapping[str, str] | None = None) -> BftError:
    """An error as a worker passes it on: plain text, because the class of another library may not be picklable.

    Args:
        rank: of the worker; None: it is Ray Train's own.
        places: see `full_disk`.
    """
    if isinstance(error, BftError):
        return error
    if full := full_disk(error, places):
        return full
    if rank is None:
        return WorkerFailed(_line(error), "Ray Train", retry_of(error))
    frames = traceback.extract_tb(error.__traceback__)
    at = f", {frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else ""
    return WorkerFailed(_line(error), f"rank {rank}{at}", retry_of(error))


def retry_of(error: BaseException) -> Retry:
    """Whether to start workers again after one raised this; of a `BftError`: never."""
    if isinstance(error, WorkerFailed):
        return error.retry
    name = type(error).__name__
    if name.startswith("Dist"):  # of torch.distributed: another rank is gone
        return "always"
    if isinstance(error, OSError) and not isinstance(error, PermissionError):
        return "once"  # a file system or the hub may come back
    is_final = isinstance(error, (BftError, *_NEVER)) or is_memory(error)
    return "never" if is_final else "once"


def root_of(failures: Mapping[int, BaseException]) -> BftError:
    """The failure that explains the others: first what must fail again, then a worker that died, then the rest."""

    def rank(item: tuple[int, BftError]) -> tuple[int, int]:
        order: dict[Retry, int] = {"never": 0, "always": 1, "once": 2}
        is_echo = "onnection" in str(item[1]) or "Dist" in str(item[1])  # of a rank that is gone
        return order[retry_of(item[1])] + 3 * is_echo, item[0]

    explained = {number: _died(error, number) or explain(error, number) for number, error in failures.items()}
    return min(explained.items(), key=rank)[1]


def first_cause(failures: Mapping[int, BaseException]) -> str:
    """The same as a clause, without advice."""
    root = root_of(failures)
    return f"{root.what} ({root.where})" if isinstance(root, WorkerFailed) else str(root)


class Decision:
    """Whether to start workers again, from the failures of a run so far. Pure, apart from what it remembers."""

    def __init__(self) -> None:
        self._last: str | None = None

    def progressed(self) -> None:
        """A checkpoint was written: what comes next is another failure."""
        self._last = None

    def of(self, failures: Mapping[int, BaseException]) -> BftError | None:
        """The error to end the run with; None: start again, as often as `cluster.max_failures` allows."""
        root = root_of(failures)
        retry = retry_of(root)
        if retry == "never":
            return root
        what = root.what if isinstance(root, WorkerFailed) else str(root)
        if retry == "once" and what == self._last:
            assert isinstance(root, WorkerFailed)
            return WorkerFailed(what, f"{root.where}; the same twice, without a checkpoint in between", "never")
        self._last = what if retry == "once" else None
        return None


def _died(error: BaseException, rank: int) -> WorkerFailed | None:
    """Of Ray's error for a worker whose process is gone; None for what a worker has raised."""
    inner = getattr(error, "health_check_failure", None)
    if inner is None and not type(error).__name__.endswith(("ActorError", "ActorDiedError", "HealthCheckFailedError")):
        return None
    return WorkerFailed(how_it_died(_line(inner or error)), f"rank {rank}", "always")


def how_it_died(text: str) -> str:
    """A clause on a worker whose process is gone, from Ray's text."""
    if _MEMORY.search(text):
        return "OutOfMemoryError: Ray ended the worker, for the memory of its node was full"
    return "a worker died, its process is gone: killed, perhaps because memory was full, or its node is lost"


def is_memory(error: BaseException) -> bool:
    """Whether there was too little memory, of the host or of a GPU."""
    is_such = isinstance(error, (MemoryError, RuntimeError))
    return is_such and _MEMORY.search(f"{type(error).__name__}: {error}") is not None


def _line(error: BaseException) -> str:
    """Class and message in one line, without secrets, at most 500 characters: its two ends."""
    text = redact(" ".join(f"{type(error).__name__}: {error}".split())).rstrip(".: ")
    half = (_LONGEST - 5) // 2
    return text if len(text) <= _LONGEST else f"{text[:half]} ... {text[-half:]}"
