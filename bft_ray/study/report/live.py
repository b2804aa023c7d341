"""The display of a running study: on a terminal a table that stays in place, elsewhere one line an event."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from bft_ray.config.metrics import format_value, is_better
from bft_ray.study.records.leaderboard import counts, expected_s, span, trials_text, value_text
from bft_ray.study.records.ranking import best, ranked, tuned
from bft_ray.study.records.record import TrialRecord, mean
from bft_ray.study.records.store import BASELINES, CONFIRMATION, SEARCH
from bft_ray.waits import Wait, waiting

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_TOP = 5  # finished trials in the table
_RUNNING = 8  # running ones
_PER_SECOND = 4


@dataclass
class _Part:
    """What was shown of a part of the study.

    Args:
        total: trials that it will have; 0: not known.
        reported: numbers of the finished trials that were reported.
    """

    total: int = 0
    reported: set[int] = field(default_factory=set)


class Live:
    """The display of one study. One thread calls its methods; another one draws the terminal, a few times a second.

    Args:
        title: of the study, such as `medical_qa, domain medical_qa`.
        metric: of the objective.
        rung_metric: metric at the rungs; None: the same.
        stream: where to; None: the standard error stream.
    """

    def __init__(self, title: str, metric: str, *, rung_metric: str | None = None, stream: TextIO | None = None):
        self._title, self._metric, self._rung_metric = title, metric, rung_metric or metric
        self._stream = stream or sys.stderr
        self._parts: dict[str, _Part] = {}
        self._part = ""
        self._best: float | None = None  # of baselines and search, which are measured on the same data
        self._records: dict[str, tuple[TrialRecord, ...]] = {}
        self._slots, self._now = 0, (0.0, 0.0)  # (the driver's time, this machine's monotonic clock at that time)
        self._begun = self._entered = 0.0
        self._wait, self._waits = Wait(self._what_runs), ExitStack()
        self._console: Console | None = None
        self._display: Any = None

    def __enter__(self) -> Live:
        self._begun, self._entered = time.time(), time.monotonic()
        self._wait = self._waits.enter_context(waiting(self._what_runs))
        self._now = (self._begun, self._entered)
        if self._stream.isatty():
            from rich.console import Console
            from rich.live import Live as Display

            console = Console(file=self._stream, force_terminal=True, markup=False, highlight=False, emoji=False)
            if not console.is_dumb_terminal:
                self._console = console
                self._display = Display(console=console, get_renderable=self._draw, refresh_per_second=_PER_SECOND)
                self._display.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waits.close()
        if self._display is not None:
            with suppress(OSError):  # the terminal is gone
                self._display.stop()  # draws once more, and shows the cursor again
            self._display = self._console = None

    def note(self, text: str) -> None:
        """Print a line; on a terminal above the table."""
        self._wait.now(self._what_runs)
        with suppress(OSError):  # an error of the display must not end the study
            if self._console is not None:
                self._console.print(text, soft_wrap=True)
            else:
                print(text, file=self._stream, flush=True)

    def part(self, name: str, total: int) -> None:
        """Show that a part of the study begins, or its new total.

        Args:
            total: trials that it will have; 0: not known.
        """
        known = self._parts.setdefault(name, _Part())
        if self._part == name and known.total == total:
            return
        self._part, known.total = name, total
        if self._console is None:
            self.note(f"{name}: {trials_text(total)}{self._expectation(total)}" if total else name)

    def show(self, records: Mapping[str, Sequence[TrialRecord]], slots: int, now: float) -> None:
        """Report the trials that have finished since the last call, and update the table. It is cheap enough to be called
        in every pass of a loop.

        Args:
            records: part -> its trials.
            slots: trials that run at a time.
            now: seconds since 1970.
        """
        for name, own in records.items():
            seen = name in self._records
            part = self._parts.setdefault(name, _Part())
            new = [record for record in own if record.number not in part.reported and record.is_finished]
            if new and not seen:
                new = self._catch_up(name, new)
            for record in sorted(new, key=lambda record: (record.finished or 0.0, record.number)):
                self._report(name, record)
        self._records = {name: tuple(own) for name, own in records.items()}
        self._slots, self._now = slots, (now, time.monotonic())

    # ---- lines ------------------------------------------------------------------------------------------------------

    def _catch_up(self, name: str, finished: Sequence[TrialRecord]) -> list[TrialRecord]:
        """Print one line on the trials that had finished before this driver began; returns the others."""
        earlier = [record for record in finished if record.finished is not None and record.finished < self._begun]
        part = self._parts[name]
        part.reported.update(record.number for record in earlier)
        top = best(earlier, self._metric)
        if top is not None and name != CONFIRMATION:
            self._is_best(top)
        if earlier:
            text = f"[{name} {self._done(name)}] finished earlier"
            self.note(text + (f", best {self._value(top)} with {_label(top)}" if top and name != CONFIRMATION else ""))
        return [record for record in finished if record.number not in part.reported]

    def _report(self, name: str, record: TrialRecord) -> None:
        part = self._parts[name]
        part.reported.add(record.number)
        text: str = record.status
        if record.status == "complete" and record.value is not None:
            text += f", {self._value(record)}"
            if name != CONFIRMATION and self._is_best(record):
                text += " (best so far)"
        elif record.status == "pruned" and record.last_rung is not None:
            step, value = record.last_rung
            text += f" at step {step} with {format_value(self._rung_metric, value)}"
        elif record.status == "duplicate":
            text += f" of {record.duplicate_of}" + (f": {record.duplicate_because}" if record.duplicate_because else "")
        elif record.status == "failed":
            text += f": {' '.join(record.reason.split())}"
        if self._console is None or record.status == "failed":
            self.note(f"[{name} {self._done(name)}] {_label(record)}: {text}")
        for warning in record.warnings:
            self.note(f"{record.id}: {warning}")

    def _what_runs(self) -> str:
        """What runs now, for long waits without a table; another thread calls it, as it does for the table."""
        if not self._part:
            return "before the first trial"
        now = self._now[0] + time.monotonic() - self._now[1]
        running = [one for own in self._records.values() for one in own if one.state == "running"]
        each = [f"{_label(one)} ({span(now - (one.started or now))})" for one in running[:_RUNNING]]
        text = f"running {', '.join(each)}" if each else "waiting for a worker"
        return f"[{self._part} {self._done(self._part)}] {text}"

    def _is_best(self, record: TrialRecord) -> bool:
        """Whether it is better than all earlier ones; if so, it is the best from now on."""
        value = record.value
        if value is None or (self._best is not None and not is_better(self._metric, value, self._best)):
            return False
        self._best = value
        return True

    def _done(self, name: str) -> str:
        part = self._parts[name]
        return f"{len(part.reported)}/{part.total}" if part.total else str(len(part.reported))

    def _value(self, record: TrialRecord) -> str:
        return f"{self._metric} {format_value(self._metric, record.value)}" if record.value is not None else ""

    def _expectation(self, total: int) -> str:
        """The expected duration, from the complete trials of earlier parts."""
        whole = [r for own in self._records.values() for r in own if r.status == "complete"]
        times = [record.duration_s for record in whole if record.duration_s is not None]
        if not times or not self._slots:
            return ""
        rounds = -(-total // self._slots)
        return f", about {span(rounds * mean(times))} with {self._slots} at a time if each takes {span(mean(times))}"

    # ---- the table, drawn by a thread of its own from the records of the last `show` ------------------------------------

    def _draw(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        at, clock = self._now
        elapsed = time.monotonic()
        own = self._records.get(self._part, ())
        now = at + elapsed - clock
        head = Text.assemble((self._title, "bold"), "   ", (self._part or "begins", "bold cyan"))
        head.append(f"   {span(elapsed - self._entered)}")
        left = expected_s(own, self._total(own), now, self._slots)
        if left and self._total(own) > sum(record.is_finished for record in own):
            head.append(f", {self._part} ends in about {span(left)}")
        lines: list[RenderableType] = [head, Text(self._progress(own))]
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        for column in ("", "trial", "settings", self._metric, "status"):
            table.add_column(column, no_wrap=column != "status")
        for style, row in self._rows(own):
            table.add_row(*map(Text, row), style=style)
        if table.row_count:
            lines += [Text(), table]
        return Group(*lines)

    def _total(self, own: Sequence[TrialRecord]) -> int:
        part = self._parts.get(self._part)
        return max(part.total if part else 0, len(own))

    def _progress(self, own: Sequence[TrialRecord]) -> str:
        total, by_status = self._total(own), counts(own)
        done = sum(record.is_finished for record in own)
        if not total:
            return ""
        filled = round(20 * done / total)
        shown = [f"{by_status[name]} {name}" for name in ("pruned", "duplicate", "failed") if by_status[name]]
        running = by_status["running"]
        text = f"{'━' * filled}{'╌' * (20 - filled)}  {done} of {total} finished" + (
            f" ({', '.join(shown)})" if shown else ""
        )
        return f"{text}, {running} running, {total - done - running} to come, {self._slots} at a time"

    def _rows(self, own: Sequence[TrialRecord]) -> Iterator[tuple[str, list[str]]]:
        """(style, cells): each baseline with its best values, the best of the search, and the trials that run."""
        if self._part == CONFIRMATION:  # on data of its own: its values are not comparable with those of the search
            yield from self._arms(own)
        else:
            baselines = list(tuned(self._records.get(BASELINES, ()), self._metric).values())
            search = self._records.get(SEARCH, ())
            top = best([*baselines, *search], self._metric)
            for record in baselines:
                is_top = record is top
                yield "bold green" if is_top else "yellow", self._row("best so far" if is_top else "baseline", record)
            finished = [record for record in search if record.state in ("complete", "pruned")]
            for place, record in enumerate(ranked(finished, self._metric, self._rung_metric)[:_TOP], 1):
                title, style = ("best so far", "bold green") if record is top else (str(place), "")
                if record.state == "pruned":
                    title, style = "", "dim"
                yield style, self._row(title, record)
        running = [record for record in own if record.state == "running"]
        for record in running[:_RUNNING]:
            yield "cyan", self._row("", record)
        if len(running) > _RUNNING:
            yield "dim", ["", "", f"and {len(running) - _RUNNING} more running", "", ""]

    def _row(self, title: str, record: TrialRecord) -> list[str]:
        value = "" if record.value is None else format_value(self._metric, record.value)
        status: str = record.status
        if record.duplicate_of:
            status += f" of {record.duplicate_of}"
        elif record.state in ("running", "pruned"):
            rung = record.last_rung
            status += f" at step {rung[0]}: {format_value(self._rung_metric, rung[1])}" if rung else ""
        return [title, record.id, _label(record), value, status]

    def _arms(self, own: Sequence[TrialRecord]) -> Iterator[tuple[str, list[str]]]:
        """Rows of the arms of a confirmation: means over the seeds that have finished; no verdict."""
        arms: dict[str, list[TrialRecord]] = {}
        for record in own:
            arms.setdefault(record.name, []).append(record)
        for name, runs in arms.items():
            values = [record.value for record in runs if record.value is not None]
            value = format_value(self._metric, mean(values)) if values else ""
            yield "", ["", "", name, value, f"{len(values)} of {len(runs)} seeds"]


def _label(record: TrialRecord) -> str:
    """The name of a trial, or its settings; with the seed for a run of a confirmation."""
    text = record.name or " ".join(f"{name}={value_text(value)}" for name, value in record.assignment.items())
    if record.part == CONFIRMATION:
        text += f" seed {', '.join(map(str, record.seeds))}"
    return text or record.id
