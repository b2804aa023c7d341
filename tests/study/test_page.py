"""The page of a study: every number on it is one of the records, in each state that a study can have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from bft_ray.page.html import to_html
from bft_ray.page.model import Code
from bft_ray.places.kept import write_kept
from bft_ray.study.kept import Known, known
from bft_ray.study.records.database import Database
from bft_ray.study.records.record import TrialRecord
from bft_ray.study.records.store import BASELINES, CONFIRMATION, SEARCH, Store
from bft_ray.study.report.page import page_of
from bft_ray.study.report.sections.cost import lanes
from bft_ray.study.report.sections.course import survival
from bft_ray.study.report.sections.use import use
from tests.support.executor import METRIC, make_study
from tests.support.written import write_study

RATE, WINDOW, EPSILON, CAP = "optimizer.learning_rate", "loss.window", "loss.epsilon", "loss.weight_cap"
ITEMS, SEEDS = [f"item-{i}" for i in range(60)], (101, 102, 103, 104, 105)
SPACE: dict[str, Any] = {
    "parameters": {
        "loss.method": {"kind": "categorical", "values": ["bft", "bft_inverse"]},
        WINDOW: {"kind": "categorical", "values": [64, 256]},
        EPSILON: {"kind": "float", "low": 0.01, "high": 0.5, "log": True, "when": {"loss.method": ["bft_inverse"]}},
        CAP: {"kind": "categorical", "values": [None, 4.0], "when": {"loss.method": ["bft_inverse"]}},
        RATE: {"kind": "categorical", "values": [1e-4, 1e-3]},
    },
    "confirmation": {
        "top_k": 2,
        "overrides": {"evaluation.tasks.0.path": "other.jsonl"},
        "test": {"evaluation.tasks.0.path": "test.jsonl"},
    },
}
ROUND = 1e-9


def trials() -> list[TrialRecord]:
    """20 trials: 13 run to their end, 4 are stopped at step 4, one fails, two are duplicates."""
    random, found = np.random.default_rng(0), []
    for n in range(20):
        inverse, window, rate = n % 2 == 1, (64, 256)[n // 2 % 2], (1e-4, 1e-3)[n // 4 % 2]
        settings: dict[str, Any] = {"loss.method": "bft_inverse" if inverse else "bft", WINDOW: window, RATE: rate}
        if inverse:
            settings |= {EPSILON: 0.02 * 1.15**n, CAP: None if n % 4 == 1 else 4.0}
        value = 0.4 + 0.03 * inverse + 0.02 * (window == 64) + 0.01 * (rate == 1e-3) + 0.003 * random.normal()
        state = "failed" if n == 19 else "pruned" if n in (4, 8, 12, 16) else "complete"
        done = state == "complete"
        found.append(
            TrialRecord(
                SEARCH, n, settings, seeds=(0,), key=f"key {n}", state=state, name=f"trial{n}", planned_steps=24,
                num_steps=24 if done else 4, rungs={4: {0: value - 0.05}} | ({12: {0: value - 0.02}} if done else {}),
                by_seed={0: {METRIC: value}} if done else {}, metrics={METRIC: value} if done else {}, value=value if done else None,
                reason="out of memory" if state == "failed" else "", started=1000.0 + 30 * n, finished=1050.0 + 30 * n, attempts=1,
            )
        )  # fmt: skip
    for n, original in ((5, 1), (7, 3)):
        like = found[original]
        found[n] = replace(
            like, number=n, key=like.key, name=f"trial{n}", duplicate_of=like.id, duplicate_because="the same run"
        )
    return found


def baselines() -> list[TrialRecord]:
    values = {
        ("sft", 1e-4): 0.37,
        ("sft", 1e-3): 0.39,
        ("dft", 1e-4): 0.38,
        ("dft", 1e-3): 0.40,
        ("bft", 1e-4): 0.41,
        ("bft", 1e-3): 0.415,
    }
    return [
        TrialRecord(
            BASELINES, n, {RATE: rate}, seeds=(0,), key=f"b{n}", state="complete", name=f"{name} lr{rate}", planned_steps=24, num_steps=24,
            by_seed={0: {METRIC: value}}, metrics={METRIC: value}, value=value, started=900.0, finished=960.0, extra={"baseline": name},
        )
        for n, ((name, rate), value) in enumerate(values.items())
    ]  # fmt: skip


def confirmation(arms: dict[str, tuple[str, float]]) -> list[TrialRecord]:
    random, found = np.random.default_rng(1), []
    common = random.uniform(0.3, 0.7, 60)
    for name, (of, shift) in arms.items():
        for seed in SEEDS:
            scores = common + shift + 0.02 * random.normal(size=60)
            number = len(found)
            found.append(
                TrialRecord(
                    CONFIRMATION, number, {}, seeds=(seed,), key=f"c{number}", state="complete", name=name, planned_steps=24, num_steps=24,
                    by_seed={seed: {METRIC: float(scores.mean())}}, metrics={METRIC: float(scores.mean())}, value=float(scores.mean()),
                    started=2000.0 + number, finished=2100.0 + number,
                    extra={"arm": name, "of": of, "items": dict(zip(ITEMS, map(float, scores), strict=True))},
                )
            )  # fmt: skip
    return found


def best_two(search: list[TrialRecord]) -> list[TrialRecord]:
    own = [one for one in search if one.value is not None and not one.duplicate_of]
    return sorted(own, key=lambda one: -(one.value or 0.0))[:2]


CONFIDENCE = {"confidence_p10": 0.1, "confidence_p50": 0.3, "confidence_p90": 0.5}
PROFILE = {
    "title": "t",
    "num_samples": 160,
    "num_supervised_tokens": 12000,
    "findings": ["160 samples with 12,000 supervised tokens."],
    "lengths": {"p0": 3.0, "p50": 83.0, "p95": 200.0, "p100": 230.0},
    "equal": [["complement w256", "complement w512"]],
    "near": [],
    "drift": {},
    "windows": [{"window": at, "whole_share": share, **CONFIDENCE} for at, share in ((64, 0.37), (256, 1.0))],
    "settings": [],
}


@pytest.fixture(scope="module")
def golden(tmp_path_factory) -> Known:
    """A finished study with all parts, a test and a profile; `first` wins."""
    folder = tmp_path_factory.mktemp("golden")
    search = trials()
    first, second = best_two(search)
    arms = {"sft": ("baselines/1", -0.03), "dft": ("baselines/3", -0.01), "bft": ("baselines/5", 0.0)}
    arms |= {first.name: (first.id, 0.05), second.name: (second.id, 0.005)}
    items = dict(zip(ITEMS, np.linspace(0.2, 0.8, 60).tolist(), strict=True))
    test = {
        f"test {name}": {
            "metrics": {METRIC: 0.5 + up},
            "items": {k: v + up + 0.01 * (i % 3) for i, (k, v) in enumerate(items.items())},
        }
        for name, up in (("bft", 0.0), (first.name, 0.04))
    }
    url, study = f"sqlite:///{folder}/studies.db", make_study(folder, **SPACE)
    Path(study.folder, "profile").mkdir(parents=True)
    write_kept(Path(study.folder, "profile", "profile.json"), PROFILE)
    parts = {SEARCH: search, BASELINES: baselines(), CONFIRMATION: confirmation(arms)}
    write_study(url, study, parts, result={"text": "done"}, run_id="a", **test)
    return read(url)


def read(url: str) -> Known:
    with Database(url, make=False) as database:
        return known(Store.find(database, "small/test"))


class Parsed(HTMLParser):
    """Tables as rows of (text, exact numbers) by section, visible words, and the data of the figures."""

    def __init__(self, html: str):
        super().__init__()
        self.tables: dict[str, list[list[list[tuple[str, list[float]]]]]] = {}
        self.words: list[str] = []
        self.figures: dict[str, Any] = {}
        self.alts: dict[str, str] = {}
        self._section, self._cell, self._inside = "", None, []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        own = dict(attrs)
        if tag != "meta":
            self._inside.append(tag)
        if tag == "section":
            self._section = own["id"]
        if tag == "table":
            self.tables.setdefault(self._section, []).append([])
        if tag == "tr":
            self.tables[self._section][-1].append([])
        if tag in ("td", "th"):
            self._cell = ("", [])
        if tag == "data" and self._cell is not None:
            self._cell[1].append(float(own["value"]))
        if tag == "svg":
            self.alts[own["aria-label"]] = "svg"

    def handle_startendtag(self, tag, attrs):
        pass  # of pictures

    def handle_endtag(self, tag):
        while self._inside and self._inside.pop() != tag:
            pass
        if tag in ("td", "th"):
            self.tables[self._section][-1][-1].append(self._cell)
            self._cell = None

    def handle_data(self, data):
        if "script" in self._inside and data.startswith("{") and "gains" in data[:2000]:
            self.figures = json.loads(data)
        if self._cell is not None:
            self._cell = (self._cell[0] + data, self._cell[1])
        elif not {"script", "style", "svg", "pre", "nav"} & set(self._inside):
            self.words.append(data)

    def rows(self, section: str, place: int = 0) -> list[dict[str, tuple[str, list[float]]]]:
        head, *rows = self.tables[section][place]
        return [dict(zip([text for text, _ in head], row, strict=True)) for row in rows]


@pytest.fixture(scope="module")
def page(golden) -> Parsed:
    return Parsed(to_html(page_of(golden)))


def shows(cell: tuple[str, list[float]], *values: float) -> bool:
    """Whether a cell holds exactly these numbers, and its text is their rounding."""
    text, exact = cell
    read = [number(one) for one in re.findall(r"[+-]?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?%?", text)]
    near = all(abs(got - value) <= 0.5 * unit + ROUND for (got, unit), value in zip(read, values, strict=True))
    return exact == pytest.approx(list(values), rel=ROUND, abs=ROUND) and near


def number(text: str) -> tuple[float, float]:
    """A number as it is written, and the unit of its last digit."""
    share = 0.01 if text.endswith("%") else 1.0
    digits, _, power = text.rstrip("%").replace(",", "").partition("e")
    decimals = len(digits.partition(".")[2])
    factor = share * 10.0 ** int(power or 0)
    return float(digits) * factor, 10.0**-decimals * factor


def scores(golden: Known, arm: str) -> np.ndarray:
    """[seeds, items]"""
    own = [record for record in golden.parts[CONFIRMATION] if record.extra["arm"] == arm]
    return np.array([[record.extra["items"][item] for item in ITEMS] for record in own])


# ---- numbers ---------------------------------------------------------------------------------------------------------


def test_an_arm_s_row_is_its_records(golden, page):
    rows = page.rows("evidence")
    assert len(rows) == 5 and golden.choice is not None
    sources = {record.extra["arm"]: record.extra["of"] for record in golden.parts[CONFIRMATION]}
    by_id = {record.id: record for own in golden.parts.values() for record in own}
    for row in rows:
        name = row["arm"][0]
        own, default = scores(golden, name), scores(golden, "bft")
        assert shows(row["mean"], own.mean()) and shows(row["search"], by_id[sources[name]].value)
        assert shows(row["best"], golden.choice.best[name])
        gain = golden.choice.arm(name).gain
        if gain is None:
            assert name == "bft" and row["gain"] == ("", [])
            continue
        assert shows(row["gain"], own.mean() - default.mean())
        assert shows(row["interval"], gain.low, gain.high) and shows(row["p"], gain.p)
        assert shows(row["detectable"], gain.detectable) and gain.low < gain.gain < gain.high
    winner = golden.choice.champion
    assert rows[0]["arm"][0] == winner and shows(rows[0]["test"], 0.54)
    assert next(row["test"] for row in rows if row["arm"][0] == "bft")[1] == [0.5]
    data = page.figures["gains"]["data"]
    drawn = {trace["text"][0].partition(":")[0]: trace["x"][0] for trace in data if trace["type"] == "scatter"}
    assert drawn == pytest.approx({row["arm"][0]: (row["gain"][1] or [0.0])[0] for row in rows})


def test_the_costs_are_those_of_the_records(golden, page):
    rows = {row["part"][0]: row for row in page.rows("cost")}
    search = rows["search"]
    assert [search[name][1] for name in ("trials", "duplicates", "stopped", "failed")] == [[20], [2], [4], [1]]
    assert search["steps trained"][1] == [13 * 24 + 5 * 4] and search["steps saved"][1] == [2 * 24 + 4 * 20]
    workers = golden.study.base.cluster.num_workers
    minutes = {"search": 18 * 50 / 60, "baselines": 6.0, "confirmation": 25 * 100 / 60}
    for part, spent in minutes.items():
        hours = sum(minutes.values()) * workers / 60 >= 2
        assert rows[part]["worker-hours" if hours else "worker-minutes"][1] == pytest.approx(
            [spent * workers / (60 if hours else 1)]
        )


def test_rungs_trials_and_items_are_those_of_the_records(golden, page):
    rungs = page.rows("course")
    assert [(row["rung"][0], row["measured"][1], row["trained on"][1]) for row in rungs] == [
        ("step 4", [18], [14]),  # of the 18 that ran; one of those failed later
        ("step 12", [13], [13]),
    ]
    listed = page.rows("trials")
    values = {record.number: record.value for record in golden.parts[SEARCH] if record.value is not None}
    shown = {int(row["trial"][0]): row[METRIC] for row in listed if row["trial"][0].isdigit() and row[METRIC][1]}
    assert set(shown) == set(values) and all(shows(shown[n], values[n]) for n in values)
    every = np.array([scores(golden, arm.name) for arm in golden.choice.arms])  # [arms, seeds, items]
    mean = every.mean(axis=(0, 1))
    rows = page.rows("hardest")
    assert [row["item"][0] for row in rows] == [ITEMS[i] for i in np.argsort(mean, kind="stable")[:15]]
    for row in rows:
        place = ITEMS.index(row["item"][0])
        assert shows(row["mean of all runs"], mean[place])
        assert shows(row["best arm less worst"], np.ptp(every.mean(axis=1), axis=0)[place])


def test_the_effects_find_what_was_put_in(golden, page):
    """The truth: the inverse form 0.03, window 64 0.02, the larger rate 0.01; noise 0.003."""
    rows = page.rows("settings")
    mean = {
        (row["setting"][0], row["value"][0]): row[f"mean {METRIC}"][1][0] for row in rows if row[f"mean {METRIC}"][1]
    }
    assert mean["loss.method", "bft_inverse"] - mean["loss.method", "bft"] == pytest.approx(0.03, abs=0.006)
    assert mean["loss.window", "64"] - mean["loss.window", "256"] == pytest.approx(0.02, abs=0.006)
    assert mean[RATE, "0.001"] - mean[RATE, "0.0001"] == pytest.approx(0.01, abs=0.006)
    drawn = page.figures["effects"]["data"][1]
    assert sorted(drawn["x"]) == pytest.approx(sorted(mean.values()))
    for row in rows:
        exact = row["95 % interval"][1]
        assert exact[0] < row[f"mean {METRIC}"][1][0] < exact[1]
    shares = dict(
        zip(
            page.figures["importance"]["layout"]["yaxis"]["ticktext"],
            page.figures["importance"]["data"][0]["x"],
            strict=True,
        )
    )
    assert next(iter(shares)) == "method" and shares["method"] > shares["window"] > 50
    map_ = page.figures["map"]["data"][0]
    own = [r for r in golden.parts[SEARCH] if EPSILON in r.assignment and r.value is not None and not r.duplicate_of]
    assert map_["x"] == [r.assignment[EPSILON] for r in own] and map_["marker"]["color"] == [r.value for r in own]
    assert map_["y"] == [8.0 if r.assignment[CAP] is None else 4.0 for r in own]


def test_the_profile_is_that_of_the_study(page):
    rows = page.rows("profile")
    assert [(row["window"][0], row["covered whole"][1]) for row in rows] == [("64", [0.37]), ("256", [1.0])]
    assert [cell[1] for cell in list(page.rows("profile", 1)[0].values())[1:]] == [[3.0], [83.0], [200.0], [230.0]]


def test_no_number_of_a_sentence_is_from_elsewhere(golden, page):
    """Each is the rounding of a number of the records, of the choice, or of the settings."""
    allowed = set(_numbers_of(golden))
    unknown = []
    text = re.sub(r"\b(?:trial|item-|w|e|c|lr|slot )[\d.]+\b|\d{4}-\d\d-\d\d \d\d:\d\d", "", " ".join(page.words))
    for word in re.findall(r"(?<![\w.])[+-]?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?%?", text):
        value, unit = number(word.rstrip(","))
        if not any(abs(abs(value) - abs(one)) <= 0.5 * unit + ROUND for one in allowed):
            unknown.append(word)
    assert not unknown


def _numbers_of(golden: Known) -> Iterator[float]:
    yield from range(101)  # counts of trials, arms, items and seeds; percent of levels
    yield from (0.05, 0.95, 256, 1000, 0.2, 0.8)
    for own in golden.parts.values():
        for record in own:
            yield from [v for v in (record.value, record.duration_s) if v is not None]
            yield from record.rung_values.values()
            yield from (float(v) for v in record.assignment.values() if isinstance(v, (int, float)))
    choice, test = golden.choice, golden.test
    assert choice is not None and test is not None
    yield from choice.best.values()
    for arm in choice.arms:
        yield arm.mean or 0.0
        if arm.gain:
            gain = arm.gain
            yield from (gain.gain, gain.low, gain.high, gain.detectable, gain.p, gain.half_seeds, gain.half_items)
            yield (gain.high - gain.low) / 2
    yield from (test.gain, test.low, test.high, test.detectable, test.champion_value, test.default_value)
    yield 1 - 0.05 ** (1 / len(SEEDS))
    yield from (2 * len(SEEDS), 2 * len(ITEMS), len(ITEMS))
    every = [record for own in golden.parts.values() for record in own]
    steps = sum(record.num_steps for record in every if not record.duplicate_of)
    lost = 2 * 24 + 4 * 20
    yield from (steps, 48, 80, lost / (steps + lost))
    ran = [record for record in every if not record.duplicate_of]
    workers = golden.study.base.cluster.num_workers
    seconds = sum(record.duration_s or 0.0 for record in ran) * workers
    yield from (seconds / 60, seconds / 3600)
    wall = max(r.finished for r in ran if r.finished) - min(r.started for r in ran if r.started)
    yield from (wall / 60, wall // 60, 12000, 160)


# ---- words and states --------------------------------------------------------------------------------------------------


def test_question_and_answer_stand_at_the_top(golden):
    found = page_of(golden)
    assert found.question == (
        f"Judged by {METRIC}, which method, window, epsilon, weight cap and learning rate of BFT suit test, and do they beat "
        "`bft` at window 256 as published?"
    )
    assert golden.choice is not None and golden.choice.verdict == "candidate"
    assert found.answer.startswith(f"**`{golden.choice.champion}` wins**, by +0.05")
    names = [section.name for section in found.sections]
    assert names == [
        "evidence", "change", "look", "settings", "course", "cost", "profile", "hardest", "use", "trials", "words",
    ]  # fmt: skip
    change = next(section for section in found.sections if section.name == "change").parts[0]
    assert change[0] == "**Without any one of the 5 seeds** the choice is the same in 5 of 5 cases."
    config = next(
        part
        for section in found.sections
        if section.name == "use"
        for part in section.parts
        if getattr(part, "title", "") == "The exact config of the champion"
    )
    assert "method: bft_inverse" in config.text and "seed: 101" in config.text


def test_every_figure_reads_without_script(golden):
    html = to_html(page_of(golden))
    for figure in page_of(golden).figures:
        assert len(figure.alt) > 20
    assert (
        html.count("<svg viewBox") == len(page_of(golden).figures) - 1
    )  # the parallel coordinates have a table instead
    assert len(html) < 6e6


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({}, "**No answer yet**: 0 of at most 51 trials have ended, none of them with a result."),
        ({BASELINES: baselines()}, "**No answer yet**: 6 of at most 51 trials have ended; the best so far, `bft lr0.001`, has 0.415"),
        ({BASELINES: baselines(), SEARCH: trials()[:9]}, "**No answer yet**: 15 of at most 51"),
    ],
)  # fmt: skip
def test_a_study_that_runs_has_a_page_too(tmp_path, parts, says):
    url, study = f"sqlite:///{tmp_path}/studies.db", make_study(tmp_path, **SPACE)
    write_study(url, study, {SEARCH: [], **parts})
    own = read(url)
    found = page_of(own)
    assert found.answer.startswith(says) and own.choice is None and "not finished, and not running" in found.above
    assert "</html>" in to_html(found)


def test_a_study_without_a_confirmation(tmp_path):
    url, study = (
        f"sqlite:///{tmp_path}/studies.db",
        make_study(tmp_path, **SPACE | {"confirmation": None, "baselines": [], "budget": {"trials": 20, "steps": 24}}),
    )
    write_study(url, study, {SEARCH: trials()})
    found = page_of(read(url))
    assert found.answer.startswith("**No winner is named**: the best trial is")
    assert "evidence" in [section.name for section in found.sections]


def test_configs_on_the_page_load_and_hold_no_password(golden):
    """One at the end of an address, where the text of YAML may have a quote behind it."""
    uri = "postgresql://h/db?password=secret"
    base = golden.study.base
    base = base.model_copy(
        update={"tracking": base.tracking.model_copy(update={"uri": uri, "tags": {"a": f"{uri}: "}})}
    )
    section = use(replace(golden, study=replace(golden.study, base=base)))
    texts = [part.text for part in section.parts if isinstance(part, Code) and part.title.endswith("varies")]
    texts += [
        part.text for part in section.parts if isinstance(part, Code) and part.title.startswith("The exact config")
    ]
    assert len(texts) == 2 and not any("secret" in text for text in texts)
    for text in texts:
        assert yaml.safe_load(text)["tracking"]["uri"] == "postgresql://h/db?password=***"


def test_lanes_hold_trials_that_follow_each_other():
    spans = [(0, 10), (1, 4), (4, 9), (10, 12), (2, 3)]
    records = [TrialRecord(SEARCH, n, {}, started=a, finished=b) for n, (a, b) in enumerate(spans)]
    own = lanes(records, 20.0)
    assert own["search/0"] == own["search/3"] and own["search/1"] == own["search/2"]
    assert len(set(own.values())) == 3


def test_survival_counts_trials_at_rungs():
    assert survival(trials()) == {4: (18, 14), 12: (13, 13)}


@pytest.mark.release
def test_a_study_of_500_trials_is_one_page(tmp_path):
    random = np.random.default_rng(0)
    search = []
    for n, like in enumerate(trials() * 25):
        value = None if like.value is None else float(like.value + 0.01 * random.normal())
        own = {} if value is None else {"value": value, "metrics": {METRIC: value}, "by_seed": {0: {METRIC: value}}}
        search.append(
            replace(
                like,
                number=n,
                key=f"k{n}",
                name=f"trial{n}",
                duplicate_of=None,
                started=30.0 * n + 1,
                finished=30.0 * n + 50,
                **own,
            )
        )
    url, study = (
        f"sqlite:///{tmp_path}/studies.db",
        make_study(tmp_path, **SPACE | {"budget": {"trials": 500, "steps": 24}}),
    )
    write_study(url, study, {SEARCH: search, BASELINES: baselines()})
    html = to_html(page_of(read(url)))
    assert len(html) < 6e6 and len(Parsed(html).rows("trials")) == 506
