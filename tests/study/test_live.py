"""What people see of a study: the lines exactly, and the table through a terminal of its own."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import select
import struct
import sys
import termios
import time
from dataclasses import replace

import pytest

from bft_ray.study.records.record import TrialRecord
from bft_ray.study.report.live import Live
from bft_ray.waits import describe
from tests.support.paths import ROOT

METRIC = "choices/probability"
LATER = time.time() + 3600  # records of these tests finish while the display is open


def trial(number, state="complete", value=None, part="search", name="w128 e0.05 c8", took=10.0, **more) -> TrialRecord:
    finished = LATER + number if state in ("complete", "pruned", "failed") else None
    more = {"started": (finished or LATER) - took, "finished": finished, **more}
    metrics = {} if value is None else {METRIC: value}
    return TrialRecord(
        part,
        number,
        {"loss.window": 128},
        name=name,
        state=state,
        value=value,
        metrics=metrics,
        planned_steps=81,
        **more,
    )


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_what_is_told_where_no_line_was_printed_for_a_while(monkeypatch):
    stream, clock = io.StringIO(), [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    records = {"search": [trial(0, "waiting"), trial(1, "waiting")]}
    with Live("medical_qa", METRIC, stream=stream) as live:
        assert describe().startswith("still before the first trial, for 0 s (since ")
        live.part("search", 2)
        live.show(records, 2, LATER)
        assert describe().startswith("still [search 0/2] waiting for a worker, for 0 s (since ")
        records["search"][0] = trial(0, "running", started=LATER - 90)
        live.show(records, 2, LATER)
        clock[0] += 55.0
        assert describe().startswith("still [search 0/2] running w128 e0.05 c8 (2 min 25 s), for 0 s (since ")


# ---- lines -------------------------------------------------------------------------------------------------------


def test_the_lines_of_a_study():
    stream = io.StringIO()
    tuned = [
        trial(0, value=0.39, part="baselines", name="sft lr0.001"),
        trial(1, value=0.4, part="baselines", name="bft"),
    ]
    search = [trial(number, "waiting") for number in range(6)]
    with Live("medical_qa", METRIC, rung_metric="validation/nll", stream=stream) as live:
        live.note("data: 150 samples [train]")
        live.part("baselines", 2)
        live.show({"baselines": [replace(one, state="running", finished=None) for one in tuned]}, 2, LATER)
        live.show({"baselines": tuned}, 2, LATER)
        live.part("search", 6)
        live.part("search", 6)
        live.show({"baselines": tuned, "search": search}, 2, LATER)
        search[0] = trial(0, value=0.412)
        search[2] = trial(2, value=0.399, started=LATER - 11, finished=LATER - 1)
        live.show({"baselines": tuned, "search": search}, 2, LATER)
        search[1] = trial(1, "pruned", rungs={9: {0: 2.0}, 27: {0: 1.87654}})
        search[3] = trial(
            3,
            value=0.4,
            name="w512",
            duplicate_of="search/0",
            duplicate_because="windows 512 and 1024 both hold the longest sample (350 tokens) whole",
        )
        search[4] = trial(4, "failed", name="", reason="the loss is\nnot finite")
        search[5] = trial(5, "running")
        for _ in range(3):
            live.show({"baselines": tuned, "search": search}, 2, LATER)
        live.part("confirmation", 0)
        live.part("confirmation", 10)
        run = trial(0, value=0.5, part="confirmation", seeds=(101,))
        live.show({"search": search, "confirmation": [run]}, 2, LATER)
    assert stream.getvalue().splitlines() == [
        "data: 150 samples [train]",
        "baselines: 2 trials",
        "[baselines 1/2] sft lr0.001: complete, choices/probability 0.390 (best so far)",
        "[baselines 2/2] bft: complete, choices/probability 0.400 (best so far)",
        "search: 6 trials, about 30 s with 2 at a time if each takes 10 s",
        "[search 1/6] w128 e0.05 c8: complete, choices/probability 0.399",  # a baseline had 0.4
        "[search 2/6] w128 e0.05 c8: complete, choices/probability 0.412 (best so far)",
        "[search 3/6] w128 e0.05 c8: pruned at step 27 with 1.877",
        "[search 4/6] w512: duplicate of search/0: windows 512 and 1024 both hold the longest sample (350 tokens) whole",
        "[search 5/6] loss.window=128: failed: the loss is not finite",
        "confirmation",
        "confirmation: 10 trials, about 50 s with 2 at a time if each takes 10 s",
        "[confirmation 1/10] w128 e0.05 c8 seed 101: complete, choices/probability 0.500",
    ]


def test_what_was_wrong_with_the_files_of_a_trial_is_told_below_its_line():
    stream = io.StringIO()
    with Live("medical_qa", METRIC, stream=stream) as live:
        live.part("search", 1)
        live.show(
            {"search": [trial(0, "running", extra={"warnings": ["the checkpoint s is passed over: cut"]})]}, 2, LATER
        )
        before = stream.getvalue()
        live.show(
            {"search": [trial(0, value=0.4, extra={"warnings": ["the checkpoint s is passed over: cut"]})]}, 2, LATER
        )
    assert "passed over" not in before
    assert stream.getvalue().splitlines()[-1] == "search/0: the checkpoint s is passed over: cut"


def test_a_study_that_goes_on_tells_what_was_there_in_one_line():
    stream = io.StringIO()
    earlier = [trial(number, value=0.1 * number, finished=5.0, name=f"w{number}") for number in range(1, 4)]
    earlier = [replace(record, number=record.number - 1) for record in earlier]
    with Live("medical_qa", "validation/nll", stream=stream) as live:
        live.part("search", 5)
        live.show({"search": earlier}, 2, LATER)
        live.show({"search": [*earlier, trial(3, value=0.2), trial(4, value=0.05)]}, 2, LATER)
    assert stream.getvalue().splitlines() == [
        "search: 5 trials",
        "[search 3/5] finished earlier, best validation/nll 0.1 with w1",
        "[search 4/5] w128 e0.05 c8: complete, validation/nll 0.2",
        "[search 5/5] w128 e0.05 c8: complete, validation/nll 0.05 (best so far)",
    ]


def test_a_call_in_which_nothing_changed_costs_next_to_nothing():
    records = {
        "search": [trial(number, value=0.3) if number < 490 else trial(number, "running") for number in range(500)]
    }
    with Live("medical_qa", METRIC, stream=io.StringIO()) as live:
        live.show(records, 10, LATER)
        times = []
        for _ in range(20):
            start = time.perf_counter()
            live.show(records, 10, LATER)
            times.append(time.perf_counter() - start)
    assert min(times) < 1e-3


def test_a_reader_that_has_gone_does_not_end_the_study():
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with Live("medical_qa", METRIC, stream=Gone()) as live:
        live.part("search", 5)
        live.show({"search": [trial(0, value=0.3)]}, 2, LATER)


# ---- the table ---------------------------------------------------------------------------------------------------


def plain(text: str) -> str:
    """Without control sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).replace("\r", "")


@pytest.fixture
def wide(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("LINES", "40")


def rows_of(text: str) -> dict[str, list[str]]:
    """The rows of the last table that was drawn, by trial or arm: the words of each, in order."""
    table = text[text.rindex("at a time\n") :].splitlines()[1:]
    return {words[0]: words for line in table if (words := line.split())}


@pytest.fixture
def table(wide) -> str:
    """What a terminal shows of a search of 8: one trial complete and best, one complete, failed, running, pruned."""
    stream = Terminal()
    tuned = [
        trial(0, value=0.39, part="baselines", name="sft lr0.001", extra={"baseline": "sft"}),
        trial(1, value=0.4, part="baselines", name="bft lr0.001", extra={"baseline": "bft"}),
    ]
    search = [
        trial(0, value=0.35, name="w64"),
        trial(1, "failed", reason="out of memory"),
        trial(2, value=0.412, name="w256"),
        trial(3, "running", name="w512", started=LATER - 4, rungs={9: {0: 0.31}, 27: {0: 0.381}}),
        trial(4, "pruned", name="w32", rungs={9: {0: 0.21}}),
    ]
    with Live("medical_qa", METRIC, stream=stream) as live:
        live.note("note [one]")
        live.part("baselines", 2)
        live.part("search", 8)
        live.show({"baselines": tuned, "search": search}, 2, LATER)
    return stream.getvalue()


def test_above_the_table_stand_notes_and_failures_alone(table):
    text = plain(table)
    assert "note [one]\n" in text and "[search 2/8] w128 e0.05 c8: failed: out of memory\n" in text
    assert "pruned at step 9 with" not in text


def test_the_table_says_how_far_the_search_is(table):
    """10 s a trial, all run: three to come and 6 s of the running one, two at a time."""
    text = plain(table)
    assert "search ends in about 18 s" in text[text.rindex("medical_qa") :]
    assert "4 of 8 finished (1 pruned, 1 failed), 1 running, 3 to come, 2 at a time" in text
    bar = next(line for line in reversed(text.splitlines()) if "4 of 8 finished" in line).partition("  ")[0]
    assert bar.count(bar[0]) == bar.count(bar[-1]) == len(bar) // 2  # half of the trials


def test_the_table_ranks_trials_below_the_baselines(table):
    text = plain(table)
    last = text[text.rindex("at a time\n") :].splitlines()
    ranked = [line.split() for line in last if re.search(r"(baselines|search)/\d", line)]
    trials = [next(word for word in words if "/" in word) for words in ranked]
    assert trials == ["baselines/1", "baselines/0", "search/2", "search/0", "search/4", "search/3"]
    said = dict(zip(trials, ranked, strict=True))
    assert said["baselines/1"][0] == "baseline" and said["search/2"][:3] == ["best", "so", "far"]
    assert said["search/0"][-2:] == ["0.350", "complete"]
    assert said["search/4"][-5:] == ["pruned", "at", "step", "9:", "0.210"]
    assert said["search/3"][-5:] == ["running", "at", "step", "27:", "0.381"]


def test_the_cursor_is_back_after_the_table(table):
    assert table.rindex("\x1b[?25h") > table.rindex("\x1b[?25l")


def test_the_table_of_a_confirmation_has_a_row_an_arm(wide):
    stream = Terminal()
    runs = [
        trial(0, value=0.4, part="confirmation", name="w64", seeds=(101,)),
        trial(1, value=0.5, part="confirmation", name="w64", seeds=(102,)),
        *[trial(number, "running", part="confirmation", name="bft", seeds=(number,)) for number in range(2, 13)],
    ]
    with Live("medical_qa", METRIC, stream=stream) as live:
        live.part("confirmation", 13)
        live.show({"search": [trial(0, value=0.9)], "confirmation": runs}, 16, LATER)
    text = plain(stream.getvalue())
    rows = rows_of(text)
    assert rows["w64"] == ["w64", "0.450", "2", "of", "2", "seeds"]
    assert rows["bft"] == ["bft", "0", "of", "11", "seeds"]
    assert rows["confirmation/2"] == ["confirmation/2", "bft", "seed", "2", "running"]
    assert rows["and"] == ["and", "3", "more", "running"]  # no more lines than a terminal has
    assert "0.900" not in text  # of the search


STUDY = """
import time
from bft_ray.study.report.live import Live
from bft_ray.study.records.record import TrialRecord
try:
    with Live("medical_qa", "choices/probability") as live:
        live.part("search", 3)
        live.show({"search": [TrialRecord("search", 0, {}, state="running", name="w64")]}, 1, time.time())
        print("from a worker", flush=True)
        time.sleep(60)
except KeyboardInterrupt:
    print("sane")
"""


def test_time_goes_on_and_ctrl_c_leaves_the_terminal_sane():
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(ROOT)
        os.execve(
            sys.executable, [sys.executable, "-c", STUDY], {**os.environ, "TERM": "xterm", "PYTHONPATH": str(ROOT)}
        )
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    text, end, stopped = "", time.monotonic() + 60, False
    try:
        while time.monotonic() < end and select.select([terminal], [], [], 60)[0]:
            try:
                text += os.read(terminal, 65536).decode(errors="replace")
            except OSError:  # the other side has closed
                break
            if not stopped and re.search(r"search.{0,20} 1 s", text):  # drawn while the driver slept
                os.write(terminal, b"\x03")
                stopped = True
    finally:
        os.close(terminal)
        _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 0, plain(text)
    assert stopped and plain(text).rstrip().endswith("sane")
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1
    assert "from a worker\n" in plain(text) and "w64" in plain(text)[plain(text).index("from a worker") :]
