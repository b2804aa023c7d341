"""The display of a running training: a bar on a terminal, one line an event elsewhere."""

from __future__ import annotations

import logging
import sys
import threading
from collections import deque
from typing import Any, TextIO

from bft_ray.config.metrics import format_value
from bft_ray.waits import Wait

log = logging.getLogger(__name__)

Event = tuple[str, dict[str, Any]]

_TAKE_S = 5.0  # wait for an answer of the board, which is one of many processes of a busy machine


class Board:
    """A Ray actor between rank 0, which posts events, and the driver, which reads them. It drops the oldest events."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque(maxlen=10_000)

    def post(self, event: str, values: dict[str, Any]) -> None:
        """Add an event."""
        self._events.append((event, values))

    def take(self) -> list[Event]:
        """All events since the last call."""
        taken = list(self._events)
        self._events.clear()
        return taken


class Display:
    """Shows events on a stream; a progress bar when that is a terminal."""

    def __init__(self, stream: TextIO | None = None, every: int | None = None):
        self._stream = stream or sys.stderr
        self._every = every
        self._bar: Any = None

    def show(self, event: str, values: dict[str, Any]) -> None:
        """One event of the training loop."""
        if event == "step":
            self._step(values)
        elif text := describe_event(event, values):
            self.line(text)
        if event == "end" and self._bar is not None:
            self._bar.close()
            self._bar = None

    def line(self, text: str) -> None:
        """One line, above the bar if there is one."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def _step(self, values: dict[str, Any]) -> None:
        done, total = values["step"], values["num_steps"]
        if self._stream.isatty():
            if self._bar is None:
                from tqdm import tqdm

                self._bar = tqdm(total=total, initial=done - 1, unit="step", file=self._stream, dynamic_ncols=True)
            self._bar.update(done - self._bar.n)
            self._bar.set_postfix_str(f"nll {values['train/nll']:.3f}", refresh=False)
        elif done % (self._every or max(1, total // 10)) == 0 or done == total:
            self.line(describe_event("step", values))


def describe_event(event: str, values: dict[str, Any]) -> str:
    """One line for people; empty for events that need none."""
    if event in ("start", "resume"):
        begin = "resumes after step {step}" if event == "resume" else "starts"
        return (
            f"{begin}: {{num_steps}} steps of {{global_batch_size}} samples from {{num_samples}} "
            "({num_supervised_tokens:,} supervised of {num_tokens:,} tokens), {num_workers} workers on {device}, "
            "{num_trainable:,} of {num_parameters:,} parameters train; rows: {rows}{anchor}"
        ).format(**values)
    if event == "prior":
        made = "found beside the tokens" if values["found"] else f"one forward pass, {values['seconds']:.1f} s"
        return f"log-probabilities under the starting weights, which the token weights read: {made}"
    if event == "profile":
        return f"{values['table']}profile: {values['folder']} (trace.json.gz opens in ui.perfetto.dev)"
    if event == "step":
        shown = ("train/loss", "train/nll", "train/grad_norm", "train/supervised_tokens_per_s")
        figures = ", ".join(f"{name.removeprefix('train/')} {format_value(name, values[name])}" for name in shown)
        return f"step {values['step']}/{values['num_steps']}: {figures}"
    if event == "validation":
        figures = ", ".join(
            f"{name.removeprefix('validation/')} {format_value(name, value)}"
            for name, value in values.items()
            if name.startswith("validation/")
        )
        return f"validation after step {values['step']}: {figures}"
    if event == "checkpoint":
        best = values["best_step"]
        return f"checkpoint of step {values['step']} saved" + (f" (best so far: step {best})" if best else "")
    if event == "passed over":
        return "\n".join(values["lines"])
    if event == "failed":
        return f"workers ended: {values['why']}"
    if event == "notice":
        what = "the workers start anew from there" if values["leaves"] else "there is no room elsewhere, so they stay"
        return f"{values['why']}: the workers save step {values['step']}, and {what}"
    return ""


def what_follows(event: str, values: dict[str, Any]) -> str:
    """What the workers do after an event; "" for events that do not show it."""
    step = values.get("step", 0)
    return {
        "ready": "training: loading data and model on the workers",
        "prior": "training: what follows the pass under the starting weights",
        "start": "training: the first step",
        "resume": f"training: the step after {step}",
        "step": f"training: the step after {step}",
        "validating": f"training: validation after step {step}",
        "validation": f"training: what follows validation after step {step}",
        "saving": f"training: saving the checkpoint of step {step}",
        "checkpoint": f"training: the step after {step}",
        "end": "training: the export of the weights",
        "failed": "training: starting workers again",
        "notice": f"training: what follows the notice after step {step}",
    }.get(event, "")


class Watcher:
    """Moves events from the board to the display, and to what the driver waits for, in a thread of the driver."""

    def __init__(self, board: Any, display: Display, wait: Wait, interval_s: float = 0.5):
        self._board, self._display, self._wait, self._interval_s = board, display, wait, interval_s
        self._is_shown = True
        self._asked: Any = None  # a call of the board that has not answered yet
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bft-ray-progress", daemon=True)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=3 * _TAKE_S)

    def _run(self) -> None:
        while True:
            stopping = self._stop.wait(self._interval_s)
            is_late = self._asked is not None
            events = self._take()
            if stopping and is_late:  # that answer is of a time before the last events
                events += self._take()
            for event, values in events:
                self._show(event, values)
                if what := what_follows(event, values):
                    self._wait.now(what)
            if stopping:
                return

    def _take(self) -> list[Event]:
        """What the board has. It forgets what it hands out, so an answer that is late is waited for again, and never asked anew."""
        import ray

        try:
            self._asked = self._asked or self._board.take.remote()
            if not ray.wait([self._asked], timeout=_TAKE_S)[0]:
                return []
            asked, self._asked = self._asked, None
            return ray.get(asked)
        except ray.exceptions.RayError:
            return []

    def _show(self, event: str, values: dict[str, Any]) -> None:
        try:
            self._display.show(event, values)
        except Exception:  # a closed terminal must end neither the run nor this thread, which says what one waits for
            if self._is_shown:
                log.warning("progress cannot be shown; the training goes on", exc_info=True)
            self._is_shown = False
