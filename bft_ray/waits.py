"""No long wait without a line: after 30 s without output a command prints what it waits for, and since when.

Code that may take long runs within `waiting`. `report_waits`, once around a command, watches when a line was last printed.
So no waiting code needs a clock of its own. Elsewhere, as on Ray's workers, `waiting` costs almost nothing.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from typing import Any, TextIO, TypeVar

T = TypeVar("T")

QUIET_S = 30.0  # without a line, after which one is printed

_open: list[Wait] = []  # of all threads, the outermost first: another thread prints them


class Wait:
    """What a block of code waits for."""

    def __init__(self, what: str | Callable[[], str]):
        self.now(what)

    def now(self, what: str | Callable[[], str]) -> None:
        """Set what it waits for from now on.

        Args:
            what: such as `starting Ray`, to follow "still"; a function is called when the line is printed.
        """
        self._what, self.since = what, time.time()

    def __str__(self) -> str:
        return self._what if isinstance(self._what, str) else self._what()


@contextlib.contextmanager
def waiting(what: str | Callable[[], str]) -> Iterator[Wait]:
    """Set what the block waits for, see `Wait.now`; within another such block, it is a part of that one."""
    wait = Wait(what)
    _open.append(wait)
    try:
        yield wait
    finally:
        _open.remove(wait)


@contextlib.contextmanager
def report_waits(quiet_s: float | None = None) -> Iterator[None]:
    """While the context lasts, print a line to the standard error stream after each time without output.

    Args:
        quiet_s: that time, in seconds; None: `QUIET_S`.
    """
    out, err = _Heard(sys.stdout), _Heard(sys.stderr)
    before, ended = (sys.stdout, sys.stderr), threading.Event()
    sys.stdout, sys.stderr = out, err  # type: ignore[assignment]  # it has all methods of a stream
    limit_s = QUIET_S if quiet_s is None else quiet_s

    def watch() -> None:
        while not ended.wait(min(1.0, limit_s / 4)):
            if time.monotonic() - max(out.at, err.at) >= limit_s:
                with contextlib.suppress(OSError, ValueError):  # the terminal is gone
                    _say(describe(), err)

    thread = threading.Thread(target=watch, name="bft-ray-waits", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=5)
        sys.stdout, sys.stderr = before


def call_again(
    call: Callable[[], T],
    patience_s: float,
    may_pass: Callable[[Exception], bool],
    *,
    pauses_s: tuple[float, float],
    before_pause: Callable[[Exception], None] = lambda error: None,
) -> T:
    """Call, and call again after pauses that double, for as long as its error may pass; returns the first answer.

    Args:
        call: safe to repeat. Run this within `waiting`, which says what is waited for.
        patience_s: a pause that would end later than this is not begun.
        may_pass: whether to wait may help against this error.
        pauses_s: the first pause, and the longest one.
        before_pause: told of the error before each pause.

    Raises:
        Exception: the last error of `call`.
    """
    deadline, (pause, longest) = time.monotonic() + patience_s, pauses_s
    while True:
        try:
            return call()
        except Exception as error:
            if not may_pass(error) or time.monotonic() + pause > deadline:
                raise
            before_pause(error)
        time.sleep(pause)
        pause = min(2 * pause, longest)


def bounded(timeout_s: float, function: Callable[..., T], *args: Any) -> T:
    """Call the function in a thread of its own; TimeoutError when it takes longer (the thread is left behind)."""
    outcome = in_thread(function, *args)
    if not wait_for([outcome], timeout_s).done:
        raise TimeoutError(f"no answer within {timeout_s:g} s")
    return outcome.result()


def in_thread(function: Callable[..., T], *args: Any, name: str | None = None) -> Future[T]:
    """Call the function in a thread of its own, which does not keep the process alive."""
    outcome: Future[T] = Future()

    def call() -> None:
        try:
            outcome.set_result(function(*args))
        except BaseException as error:  # handed to whoever asks for the outcome
            outcome.set_exception(error)

    threading.Thread(target=call, name=name, daemon=True).start()
    return outcome


def describe() -> str:
    """What is waited for now, from the whole to its part, and how long the innermost part takes already."""
    waits = list(_open)
    if not waits:
        return "still at work"
    since = waits[-1].since
    return (
        f"still {': '.join(map(str, waits))}, for {time.time() - since:.0f} s "
        f"(since {time.strftime('%H:%M:%S', time.localtime(since))})"
    )


def _say(text: str, stream: Any) -> None:
    bars = getattr(sys.modules.get("tqdm"), "tqdm", None)
    if bars is not None:  # above a progress bar, if there is one
        bars.write(text, file=stream)
        stream.flush()
    else:
        print(text, file=stream, flush=True)


class _Heard:
    """A stream, and when something was last written to it."""

    def __init__(self, stream: TextIO):
        self._stream, self.at = stream, time.monotonic()

    def write(self, text: str) -> int:
        self.at = time.monotonic()
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
