"""A study in words, from records made by hand: the note of its run and the end on a terminal."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from bft_ray.page.model import Number
from bft_ray.places.addresses import absolute_uri
from bft_ray.space.definition import SearchSpace
from bft_ray.stats.power import detectable
from bft_ray.study.confirm.choice import Choice, Plan, Record
from bft_ray.study.confirm.choose import choose
from bft_ray.study.confirm.tested import TestResult
from bft_ray.study.records.record import TrialRecord
from bft_ray.study.report.arms import arms_table
from bft_ray.study.report.compare import evidence, reach, verdict
from bft_ray.study.report.describe import LIMIT, conclusion, describe, searched
from bft_ray.study.report.explain import explain
from tests.support.noted import METRIC, baseline, known, space, trial

PLAN = Plan(METRIC, ("w128 lr0.001", "w64 lr0.001"), ("sft", "bft"), "bft", (1, 2, 3, 4, 5))


RECORDS = {
    "baselines": [baseline(0, "sft", 0.31, 1e-4), baseline(1, "sft", 0.33, 1e-3), baseline(2, "bft", 0.35, 1e-4)],
    "search": [
        trial(0, 0.37),
        trial(1, 0.4, window=128),
        trial(2, state="pruned", window=512, num_steps=9, rungs={9: {0: 0.2}}),
        trial(3, window=1024, state="pruned", num_steps=9, rungs={9: {0: 0.2}}, duplicate_of="search/2"),
        trial(4, state="failed", reason="out of memory"),
    ],
    "confirmation": [
        trial(n, part="confirmation", name=arm, extra={"arm": arm, "of": of})
        for n, (arm, of) in enumerate({"w128 lr0.001": "search/1", "sft": "baselines/1", "bft": "baselines/2"}.items())
    ],
}
TEST = TestResult("w128 lr0.001", "bft", METRIC, 0.391, 0.352, 0.0391, 0.0101, 0.0681, 200, 0.0415)


def chosen(shifts: dict[str, float], plan: Plan = PLAN) -> Choice:
    random = np.random.default_rng(0)
    common = random.uniform(0.3, 0.7, 40)
    return choose(
        [
            Record(name, seed, {f"i{i}": float(v) for i, v in enumerate(common + shifts.get(name, 0) + noise)})
            for name in (*plan.candidates, *plan.baselines)
            for seed in plan.seeds
            for noise in [0.03 * random.normal(size=40)]
        ],
        plan,
        draws=200,
    )


WON = chosen({"w128 lr0.001": 0.1})


# ---- the note --------------------------------------------------------------------------------------------------


def test_the_note_warns_of_what_the_records_show():
    alike = [trial(n, 0.25, window=2**n, rungs={9: {0: 0.25}}) for n in range(3)]
    note = describe(known({"search": alike}, space(), None, None, domain="medical_qa"))
    assert f"At step 9 (3 trials) all values of {METRIC} were the same, so the first trial was promoted" in note
    moved = [*alike[:2], trial(2, 0.25, rungs={9: {0: 0.26}})]
    assert "#### What to look at" not in describe(known({"search": moved}, space(), None, None, domain="medical_qa"))


def test_the_note_begins_with_the_page_and_the_answer():
    note = describe(
        known(RECORDS, space(), WON, TEST, domain="medical_qa"), page="#/experiments/1/runs/a/artifacts/report.html"
    )
    lines = note.splitlines()
    assert lines[0] == "[**Read the report**](#/experiments/1/runs/a/artifacts/report.html)"
    assert lines[2] == explain(WON).splitlines()[0] and lines[2].startswith("**`w128 lr0.001` wins**, by +0.1")
    assert lines[4] == (
        "**Test split, measured once**: `w128 lr0.001` has choices/probability 0.391 on 200 items, the default `bft` 0.352: "
        "gain +0.0391 [+0.0101, +0.0681], paired by item: of these two models, not of their "
        "settings. A true gain of 0.0415 shows in 8 of 10 such tests."
    )
    for line in (
        "| loss.method | bft_inverse |",  # fixed, and of the loss
        "| loss.window | 128 |",
        "| optimizer.learning_rate | 0.001 |",
        "- `bft-ray best medical_qa`: the chosen configuration",
        "- `bft-ray train --champion medical_qa`: trains with it",
    ):
        assert line in lines, line
    assert "data.max_length" not in note
    assert explain(WON).split("\n\n", 1)[1].strip() in note


def test_how_it_was_found():
    assert searched(known(RECORDS, space(), domain="medical_qa", samples=(2400,))) == [
        "study `long_answers`, domain `medical_qa`, config `starter`, objective choices/probability",
        "varied: `loss.window` {64, 128, 512, 1024}, `optimizer.learning_rate` {0.0001, 0.001}, "
        "`loss.weight_cap` 1.5 to 20 (log)",
        "samples: train 2,400",
        "budget: 5 trials (2 complete, 1 pruned, 1 failed, 1 duplicate), 81 steps each, seeds 0",
        "sampler tpe, seed 0; early stops: ASHA from step 9, 1 of 3 is promoted",
        # baselines 3 x 81, search 81 + 81 + 9, merged 9, stopped 81 - 9: 81 of 495
        "414 steps trained; saved: 9 by 1 duplicate, 72 by stopping 1 trial early: 16% less than all",
        "from the first start to the last end: 7 min 40 s",
    ]


def test_an_arm_s_values_stand_side_by_side():
    """So that a choice that fits the search alone shows."""
    table = arms_table(WON, {"w128 lr0.001": 0.4}, TEST)
    row = dict(zip(table.head, table.rows[0], strict=True))
    assert (row["arm"], row["search"], row["test"]) == (
        "**w128 lr0.001**",
        Number(0.4, "0.4000"),
        Number(0.391, "0.3910"),
    )
    assert row["mean"] == Number(WON.arms[0].mean, f"{WON.arms[0].mean:.4f}") and table.strong == [0]
    assert [name for name in table.head if name not in arms_table(WON).head] == ["search", "test"]


def test_settings_of_a_baseline_that_won():
    found = chosen({"sft": 0.2})
    note = describe(known(RECORDS, space(), found))
    assert found.champion == "sft"
    settings = note[note.index("#### Chosen settings") : note.index("#### Evidence")]
    assert "| loss.method | sft |\n| optimizer.learning_rate | 0.001 |" in settings and "window" not in settings
    # a confirmation knows which trial it repeats, whatever the names
    runs = [trial(0, 0.5, part="confirmation", name="sft", extra={"arm": "sft", "of": "search/0"})]
    note = describe(known({**RECORDS, "confirmation": runs}, space(), found))
    assert "| loss.window | 64 |" in note


def test_the_test_split_may_not_agree():
    worse = TestResult("a", "bft", METRIC, 0.3, 0.352, -0.05, -0.06, -0.04, 200, 0.014)
    alone = TestResult("a", "bft", METRIC, 0.3, 0.299, 0.001, math.nan, math.nan, 1, math.nan)
    near = TestResult("a", "bft", METRIC, 0.3, 0.299, 0.001, -0.06, 0.07, 200, 0.09)
    same = TestResult("bft", "bft", METRIC, 0.3, 0.3, 0.0, 0.0, 0.0, 200, 0.0)
    notes = [describe(known(RECORDS, space(), WON, test)).splitlines()[2] for test in (worse, near, same, alone)]
    told = "A true gain of {} shows in 8 of 10 such tests."
    assert notes[0].endswith("not of their settings. It is worse there. " + told.format("0.0140"))
    assert notes[1].endswith("not of their settings. The gain is not beyond noise there. " + told.format("0.0900"))
    assert notes[3].endswith("0.299: gain +0.0010. The items have no spread, so noise cannot be ruled out.")
    assert notes[2].endswith("has choices/probability 0.300 on 200 items; it is the default.")


def test_fewer_candidates_than_were_asked_for_are_told():
    asked = space(confirmation={"top_k": 3, "overrides": {"data.validation.0.path": "x"}})
    told = "Confirmed: 2 of the 3 candidates"
    assert f"**{told}** that confirmation.top_k asks for." in describe(known(RECORDS, asked, WON, TEST))
    assert told in conclusion(known(RECORDS, asked, WON, TEST))
    assert "Confirmed:" not in describe(known(RECORDS, space(), WON, TEST))
    none = chosen({}, Plan(METRIC, (), ("sft", "bft"), "bft", (1, 2)))
    assert "**Confirmed: none of the 2 candidates**" in describe(known(RECORDS, space(), none))


@pytest.mark.parametrize(
    ("uri", "option"),
    [
        ("sqlite:///mlflow.db", ""),
        (absolute_uri("sqlite:///mlflow.db"), ""),  # the driver pins it
        ("sqlite:////data/my runs.db", " --uri 'sqlite:////data/my runs.db'"),
        ("http://mlflow:5000", " --uri http://mlflow:5000"),
        ("postgresql://ann:s3cr3t@db/mlflow", ' --uri "$MLFLOW_TRACKING_URI"'),
    ],
)
def test_the_commands_work_as_they_are_printed(uri, option):
    texts = [tell(known(RECORDS, space(), WON, TEST, uri=uri)) for tell in (describe, conclusion)]
    for text in texts:
        assert f"bft-ray best d{option}" in text and f"bft-ray train --champion d{option}" in text
        assert "s3cr3t" not in text and ("MLFLOW_TRACKING_URI=postgresql://ann:***@db/mlflow" in text) == (
            "$" in option
        )
        assert ("--uri" in text) == bool(option)


@pytest.mark.slow
@pytest.mark.parametrize("num_arms", [3, 46, 200])
def test_the_note_stays_below_the_limit_of_mlflow(num_arms):
    names = tuple(f"bft_inverse w128 e0.05 c8 lr0.001 {n}" for n in range(num_arms))
    found = chosen({}, Plan(METRIC, names[:3], ("bft",), "bft", (1, 2)))
    like = next(arm for arm in found.arms if arm.kind == "candidate")  # the others are as this one
    found = replace(found, plan=replace(found.plan, candidates=names), not_told=found.not_told + names[3:])
    found = replace(found, arms=found.arms + tuple(replace(like, name=name) for name in names[3:]))
    search = [trial(n, state="failed", reason=f"a long reason {n} " * 30) for n in range(100)]
    note = describe(known({**RECORDS, "search": search}, space(), found))
    assert len(note) <= LIMIT < 8000
    assert "**Many trials failed**. 100 of 106 trials failed; 1 of them: a long reason 0" in note
    assert note.startswith("**The default `bft` stays**")


# ---- studies that confirm nothing --------------------------------------------------------------------------------


WINDOWS = [[0.30, 0.32, 0.34], [0.40, 0.41, 0.42], [0.35, 0.36, 0.37], [0.35, 0.36, 0.37]]


def window_study(runs=WINDOWS) -> tuple[SearchSpace, list[TrialRecord]]:
    one = {"loss.window": {"kind": "categorical", "values": [64, 128, 512, 1024]}}
    kind = {"sampler": {"kind": "grid"}, "confirmation": None, "baselines": [], "scheduler": {"kind": "none"}}
    search = [
        trial(n, own, window=window, assignment={"loss.window": window}, duplicate_of="search/2" if n == 3 else None)
        for n, (window, own) in enumerate(zip((64, 128, 512, 1024), runs, strict=True))
    ]
    return space(parameters=one, name="window", **kind), search


def test_windows_side_by_side():
    """Three windows ran, three runs each: variances 4e-4, 1e-4, 1e-4, so s^2 = 2e-4 with 6 degrees of freedom."""
    own, search = window_study()
    seen = reach(search, METRIC, "loss.window")
    assert seen is not None
    se = math.sqrt(2e-4 / 3)
    assert seen.least == pytest.approx(4.339 * se, rel=1e-3)  # q(0.95; 3, 6) of the tables
    assert seen.detectable == pytest.approx(detectable(math.sqrt(2) * se, 6, critical=seen.least / math.sqrt(2) / se))
    note = describe(known({"search": search}, own))
    assert note.splitlines()[0] == (
        "**loss.window 128 has the best mean choices/probability, 0.410**; the worst, 64, has 0.320: a difference beyond "
        "noise (two means must differ by 0.035)."
    )
    table = [
        "| loss.window | mean choices/probability | sd | least | largest | runs |",
        "| --- | --- | --- | --- | --- | --- |",
        "| 128 | 0.410 | 0.01 | 0.400 | 0.420 | 3 |",
        "| 512 | 0.360 | 0.01 | 0.350 | 0.370 | 3 |",
        "| 1024 | 0.360 | 0.01 | 0.350 | 0.370 | 3 |",
        "| 64 | 0.320 | 0.02 | 0.300 | 0.340 | 3 |",
    ]
    assert "\n".join(table) in note
    assert "Any two means that differ by 0.035 or more differ beyond noise" in note and "0.055 shows in 8 of 10" in note
    assert "No confirmation, so no champion" in note and "use it" not in note


def test_what_cannot_be_told():
    noisy = [[0.30, 0.42, 0.34], [0.30, 0.41, 0.42], [0.35, 0.26, 0.47], [0.35, 0.26, 0.47]]
    own, search = window_study(noisy)
    assert ": a difference within noise (two means must differ by " in verdict({"search": search}, own)
    shared = [replace(record, duplicate_of="baselines/0") for record in search[:2]] + search[2:]
    assert reach(shared, METRIC, "loss.window") == reach(search[:1] + search[2:], METRIC, "loss.window")
    own, search = window_study([runs[:1] for runs in WINDOWS])
    assert reach(search, METRIC, "loss.window") is None
    assert verdict({"search": search}, own).endswith("has 0.300: with one run each, noise cannot be ruled out.")
    assert verdict({}, own) == "**No trial has finished**: there is no choices/probability yet."
    assert evidence([], own) == ""
    several = space(confirmation=None)
    assert verdict({"search": RECORDS["search"]}, several) == (
        "**No winner is named**: the best trial is `w128 lr0.001` (choices/probability 0.400), the next trial, `w64 lr0.001` "
        "(0.370). The noise is not known: there are no scores of single items."
    )
    assert evidence(RECORDS["search"], several).endswith("in the other settings as well: this is a hint, not a test.")
    assert verdict(RECORDS, space()).startswith("**Not confirmed**: `w128 lr0.001` has the best")


# ---- the end on a terminal ----------------------------------------------------------------------------------------


def test_the_conclusion():
    text = conclusion(known(RECORDS, space(), WON, TEST, domain="medical_qa"))
    lines = text.splitlines()
    gain = WON.arm("w128 lr0.001").gain
    assert gain is not None
    assert lines[0].startswith(f"w128 lr0.001 wins, by {gain.gain:+.4f} [")
    assert "Settings: method bft_inverse, window 128, learning_rate 0.001" in lines
    interval = f"[{gain.low:+.4f}, {gain.high:+.4f}]"
    row = next(line for line in lines if line.startswith("w128 lr0.001  "))
    assert row.split() == [
        "w128",
        "lr0.001",
        f"{WON.arms[0].mean:.4f}",
        f"{gain.gain:+.4f}",
        *interval.split(),
        f"{gain.detectable:.4f}",
    ]
    assert lines[-2].split(maxsplit=4) == ["bft-ray", "best", "medical_qa", "#", "the chosen configuration"]
    assert lines[-1].startswith("bft-ray train --champion medical_qa ")
    assert len(lines) <= 25 and not {"*", "`", "|"} & set(text)


def test_the_conclusion_of_a_large_study_is_cut_and_of_others_still_told():
    plan = Plan(METRIC, tuple(f"w{n}" for n in range(60)), ("bft",), "bft", (1, 2))
    text = conclusion(known(RECORDS, space(), chosen({}, plan), TEST))
    assert len(text.splitlines()) == 25 and "bft-ray train --champion d" in text.splitlines()[-1]
    own, search = window_study()
    lines = conclusion(known({"search": search}, own)).splitlines()
    assert lines[0].startswith("loss.window 128 has the best mean") and "bft-ray" not in "".join(lines)
    assert [line.split()[0] for line in lines if line.endswith(" 3")] == ["128", "512", "1024", "64"]
    lines = conclusion(known(RECORDS, space())).splitlines()
    assert lines[0].startswith("Not confirmed: ") and ["1", "1", "128"] in [line.split()[:3] for line in lines]
    assert conclusion(known({}, own)).startswith("No trial has finished")
