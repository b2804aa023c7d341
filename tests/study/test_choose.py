"""Confirmation and choice: by hand on small cases, errors as often as promised, and a choice that order cannot move."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bft_ray.errors import BadInput
from bft_ray.evaluate.classify import areas
from bft_ray.study.confirm.choice import Limit, Plan, Record
from bft_ray.study.confirm.choose import choose
from bft_ray.study.confirm.items import item_groups, item_scores
from bft_ray.study.report.arms import signed
from bft_ray.study.report.explain import explain

PLAN = Plan("choices/probability", ("a", "b"), ("sft", "dft", "bft"), "bft", (1, 2, 3, 4, 5))
ARMS = (*PLAN.candidates, *PLAN.baselines)
NUM_ITEMS = 40


def study(shifts: dict[str, float], noise: float = 0.05, plan: Plan = PLAN, seed: int = 0) -> list[Record]:
    """Records whose arms differ from a common item difficulty by a shift and some noise."""
    draw = np.random.default_rng(seed)
    common = draw.uniform(0.3, 0.7, NUM_ITEMS)
    return [
        Record(
            name,
            run,
            {f"i{i}": float(v) for i, v in enumerate(common + shifts.get(name, 0.0) + noise * draw.normal(size=40))},
        )
        for name in (*plan.candidates, *plan.baselines)
        for run in plan.seeds
    ]


def chosen(shifts: dict[str, float], **more: Any):
    return choose(study(shifts, **more), PLAN, draws=500)


# ---- the choice, by hand -------------------------------------------------------------------------------


def test_a_candidate_beyond_noise_wins():
    choice = chosen({"a": 0.1})
    assert (choice.champion, choice.verdict) == ("a", "candidate")
    gain = choice.arm("a").gain
    assert gain is not None and gain.low > 0 and abs(gain.gain - 0.1) < 0.02
    text = explain(choice)
    assert text.startswith(f"**`a` wins**, by {gain.gain:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}] over the default")
    assert "positive for better" in text


def test_within_noise_the_default_wins():
    choice = chosen({"a": 0.004}, noise=0.3)
    assert (choice.champion, choice.verdict) == ("bft", "default")
    best = next(arm for arm in choice.arms if arm.kind == "candidate")
    assert best.gain is not None and best.gain.low < 0
    text = explain(choice)
    assert text.startswith(
        "**The default `bft` stays**: no candidate beats it beyond noise, and ties go to it; the best"
    )
    assert "could be better than the default by up to" in text and "would have been missed" in text


def test_a_baseline_beyond_noise_of_all_is_the_champion():
    choice = chosen({"a": 0.05, "sft": 0.2, "dft": 0.1})
    assert (choice.champion, choice.verdict) == ("sft", "baseline")
    assert [comparison.against for comparison in choice.against] == ["a", "bft"]
    assert all(comparison.is_better for comparison in choice.against)
    assert explain(choice).startswith("**The baseline `sft` wins, not BFT**, by +0.")
    assert "Over `a` it gains +0.1" in explain(choice)
    assert "beyond noise it beats the default bft and every candidate that does so too." in explain(choice)


def test_a_baseline_need_not_beat_a_weaker_candidate_that_is_only_noisy():
    """`sft` is shown to be better than the default and the best candidate `a`, and not than `b`, whose items scatter."""
    scatter = np.random.default_rng(5).normal(0.0, 0.5, NUM_ITEMS)
    scatter += 0.25 - scatter.mean()
    records = [
        replace(one, items={item: value + scatter[int(item[1:])] for item, value in one.items.items()})
        if one.name == "b"
        else one
        for one in study({"a": 0.27, "sft": 0.31}, noise=0.01)
    ]
    choice = choose(records, PLAN, draws=500)
    assert {comparison.against: comparison.is_better for comparison in choice.against} == {
        "a": True,
        "b": False,
        "bft": True,
    }
    assert (choice.champion, choice.verdict) == ("sft", "baseline")
    assert choice.reason == "beyond noise it beats the best candidate, a, and the default bft"
    worse = [
        replace(one, items={k: v - 0.06 for k, v in one.items.items()}) if one.name == "sft" else one for one in records
    ]
    assert choose(worse, PLAN, draws=500).champion == "a"  # which it has to beat


def test_a_published_form_of_bft_that_wins_is_bft_too():
    assert explain(replace_names(chosen({"a": 0.05, "sft": 0.2, "dft": 0.1}))).startswith(
        "**The baseline `bft_group` wins, not the default**, by +0."
    )


def replace_names(choice):
    """The same choice, with `bft_group` in the place of `sft`."""
    named = [replace(arm, name="bft_group") if arm.name == "sft" else arm for arm in choice.arms]
    return replace(choice, champion="bft_group", arms=named)


def test_a_difference_of_rounding_is_none():
    """A mean that differs by 1e-17 from the default's is no better mean, and is not shown with 18 digits after the point."""
    records = [
        Record(name, seed, {str(item): 0.5 + 0.01 * seed + 0.001 * item for item in range(30)})
        for name in ARMS
        for seed in PLAN.seeds
    ]
    near = [
        replace(one, items={k: v + 1e-16 for k, v in one.items.items()}) if one.name == "dft" else one
        for one in records
    ]
    text = explain(choose(near, PLAN, draws=500))
    assert "better mean" not in text and "e-1" not in text
    assert (signed(-8.3e-18), signed(3e-17), signed(-2e-5), signed(0.01)) == ("+0", "+0", "-2e-05", "+0.0100")


def test_a_baseline_that_ties_with_a_candidate_does_not_win():
    choice = chosen({"a": 0.1, "sft": 0.102})
    assert (choice.champion, choice.verdict) == ("a", "candidate")
    assert choice.arms[0].name == "sft"
    assert "But `sft` had a better mean than it" in explain(choice).splitlines()[0]


def test_candidates_within_noise_of_the_default_do_not_shield_it_from_a_baseline():
    """`a` beats nothing, so it stands behind the default; `sft` beats the default, though not `a`, beyond noise."""
    base = np.linspace(0.4, 0.6, NUM_ITEMS)
    wobble = np.where(np.arange(NUM_ITEMS) % 2, 0.4, -0.4)
    scores = {"a": base + 0.08 + wobble, "b": base, "sft": base + 0.09, "dft": base, "bft": base}
    tiny = np.random.default_rng(0).normal(size=(5, 5, NUM_ITEMS)) * 0.01
    records = [
        Record(name, run, {str(i): float(v) for i, v in enumerate(scores[name] + tiny[arm, run - 1])})
        for arm, name in enumerate(ARMS)
        for run in PLAN.seeds
    ]
    choice = choose(records, PLAN, draws=500)
    assert choice.champion == "sft" and [comparison.against for comparison in choice.against] == ["bft"]
    text = explain(choice)
    assert "beyond noise it beats the default bft, which no candidate does." in text.splitlines()[0]
    assert "That it is better than `a` is not shown: their intervals overlap with its own." in text


def test_what_the_data_rule_out_is_not_more_than_their_intervals_say():
    choice = chosen({"a": -0.3, "b": -0.3, "sft": -0.3, "dft": -0.3})
    assert choice.champion == "bft" and all(arm.gain.high < 0 for arm in choice.arms if arm.gain)
    text = explain(choice)
    assert "as far as intervals of 95% tell" in text and "none is likely to be better than the default" in text
    assert "can be better" not in text


def test_the_same_runs_under_two_names_are_a_tie():
    records = [record for record in study({}) if record.name != "a"]
    records += [Record("a", record.seed, record.items) for record in records if record.name == "bft"]
    choice = choose(records, PLAN, draws=200)
    gain = choice.arm("a").gain
    assert gain is not None and (gain.gain, gain.low, gain.high, gain.se) == (0, 0, 0, 0)
    assert choice.champion == "bft"


def test_lower_is_better_where_the_metric_says_so():
    plan = Plan("validation/nll", ("a",), ("bft",), "bft", (1, 2, 3, 4, 5))
    choice = choose(study({"a": -0.1}, plan=plan), plan, draws=200)
    assert choice.champion == "a"
    arm = choice.arm("a")
    assert arm.gain is not None and arm.gain.gain > 0 and arm.mean is not None
    assert arm.mean < (choice.arm("bft").mean or 0)
    assert choose(study({"a": 0.1}, plan=plan), plan, draws=200).champion == "bft"


def mirrored(records: list[Record]) -> list[Record]:
    return [Record(r.name, r.seed, {k: -v for k, v in r.items.items()}, r.second, r.failed) for r in records]


@pytest.mark.parametrize(
    ("records", "champion", "verdict"),
    [
        (study({"a": 0.1}), "a", "candidate"),
        (study({"a": 0.004}, noise=0.3), "bft", "default"),
        (study({"a": 0.05, "sft": 0.2, "dft": 0.1}), "sft", "baseline"),
        (study({"a": 0.1, "sft": 0.102}), "a", "candidate"),  # a baseline that ties does not win
        (study({name: -0.3 for name in ARMS if name != "bft"}), "bft", "default"),
        ([r for r in study({"a": 0.3, "b": 0.1}) if (r.name, r.seed) != ("a", 3)], "b", "candidate"),
    ],
)
def test_every_rule_is_the_same_for_a_metric_that_is_better_below(records, champion, verdict):
    lower = Plan(**{**PLAN.__dict__, "metric": "validation/nll"})
    up, down = choose(records, PLAN, draws=500), choose(mirrored(records), lower, draws=500)
    assert (up.champion, up.verdict) == (down.champion, down.verdict) == (champion, verdict)
    assert up.reason == down.reason and up.not_told == down.not_told and up.against == down.against
    for one, other in zip(up.arms, down.arms, strict=True):
        assert (one.name, one.gain, one.excluded) == (other.name, other.gain, other.excluded)
        assert one.mean == other.mean is None or one.mean == pytest.approx(-(other.mean or 0.0))
    assert "(higher is better)" in explain(up) and "(lower is better)" in explain(down)


def test_one_item_tells_nothing():
    one = [Record(r.name, r.seed, {"i0": r.items["i0"]}) for r in study({"a": 0.3})]
    choice = choose(one, PLAN, draws=200)
    assert (choice.champion, choice.num_items) == ("bft", 1)
    assert all(arm.gain is None or not arm.gain.has_spread for arm in choice.arms)
    assert "(no spread to compare it with)" in explain(choice).splitlines()[0] and "nan" not in explain(choice)


@pytest.mark.parametrize(
    ("flaw", "said"),
    [
        (lambda record: None, "no run with seed 3"),
        (lambda record: Record("a", 3, failed="loss of step 7 is not finite"), "seed 3 failed: loss of step 7"),
        (lambda record: Record("a", 3, dict(record.items) | {"i1": math.nan}), "seed 3 has a score that is not finite"),
        (lambda record: Record("a", 3, dict(record.items) | {"i1": math.inf}), "seed 3 has a score that is not finite"),
        (lambda record: Record("a", 3, {}), "seed 3 has no scores"),
        (
            lambda record: Record("a", 3, {k: v for k, v in record.items.items() if k != "i1"}),
            "seed 3 has a score for only 39 of 40 items",
        ),
        (
            lambda record: Record("a", 3, dict(record.items) | {"other": 1.0}),
            "seed 3 was measured on other items than the default",
        ),
        (lambda record: Record("a", 3, record.items, failed="out of memory"), "seed 3 failed: out of memory"),
    ],
)
def test_an_arm_with_a_flawed_run_is_not_eligible(flaw, said):
    records = [
        flaw(record) if (record.name, record.seed) == ("a", 3) else record for record in study({"a": 0.3, "b": 0.1})
    ]
    choice = choose([record for record in records if record is not None], PLAN, draws=200)
    assert choice.champion == "b"
    assert said in choice.arm("a").excluded and choice.arm("a").mean is None
    assert f"- `a`: {choice.arm('a').excluded}" in explain(choice)


def test_without_the_default_nothing_is_chosen():
    records = [record for record in study({"a": 0.3}) if (record.name, record.seed) != ("bft", 2)]
    choice = choose(records, PLAN, draws=200)
    assert (choice.champion, choice.verdict) == (None, "none")
    assert explain(choice).startswith(
        "**Nothing was chosen**: the default bft has no whole set of runs (no run with seed 2)"
    )


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (Record("c", 1, {"i": 1.0}), "`record` is 'c', but must be of an arm of the plan"),
        (Record("a", 9, {"i": 1.0}), "`record of a` is 9, but must be of a seed of the plan"),
        (Record("a", 1, {"i": 1.0}), "`record of a` is 1, but must be given once for each seed"),
    ],
)
def test_records_must_belong_to_the_plan(record, message):
    with pytest.raises(BadInput) as caught:
        choose([*study({}), record], PLAN, draws=10)
    assert message in str(caught.value)


def test_plans_are_checked():
    for fields in ({"default": "x"}, {"seeds": (1,)}, {"seeds": (1, 1)}, {"candidates": ("sft",)}):
        with pytest.raises(BadInput):
            Plan(**({**PLAN.__dict__} | fields))


# ---- the second objective ------------------------------------------------------------------------------


def with_second(values: dict[str, float], shifts: dict[str, float], largest_loss: float = 0.1):
    """Bits per byte of general text after training; 2.0 before."""
    plan = Plan(**{**PLAN.__dict__, "second": Limit("general/bits_per_byte", 2.0, largest_loss)})
    records = [
        Record(record.name, record.seed, record.items, second=values.get(record.name, 2.05)) for record in study(shifts)
    ]
    return choose(records, plan, draws=200)


def test_what_breaks_the_limit_is_not_chosen():
    choice = with_second({"a": 2.2}, {"a": 0.3, "b": 0.1})
    assert choice.champion == "b" and choice.arm("a").excluded == "is not shown to keep the limit"
    assert choice.arm("a").on_front  # best in the first metric
    assert choice.arm("b").second == pytest.approx(2.05)
    assert "Second objective: general/bits_per_byte, 2 before" in explain(choice)


def test_the_front_by_hand():
    shifts = {"a": 0.3, "b": 0.2, "sft": 0.1, "dft": -0.1, "bft": 0.0}
    choice = with_second({"a": 2.08, "b": 2.06, "sft": 2.07, "dft": 2.01, "bft": 2.02}, shifts)
    assert {arm.name for arm in choice.arms if arm.on_front} == {"a", "b", "bft", "dft"}  # b beats sft in both
    assert choice.champion == "a"


def test_a_default_that_breaks_the_limit_gives_way():
    choice = with_second({"bft": 2.3}, {"b": -0.05})
    assert choice.verdict == "candidate" and choice.champion == "a"
    choice = with_second({"bft": 2.3, "a": 2.3, "b": 2.3}, {"dft": 0.1})
    assert (choice.champion, choice.verdict) == ("dft", "baseline")
    choice = with_second(dict.fromkeys(ARMS, 2.3), {})
    assert (choice.champion, choice.reason) == (None, "no arm keeps the limit of the second objective")
    assert "| a |" in explain(choice)


@pytest.mark.parametrize(("metric", "sign"), [("general/bits_per_byte", 1), ("mmlu/accuracy", -1)])
def test_noise_does_not_dethrone_the_default_nor_keep_the_limit(metric, sign):
    """Losses over seeds: mean 0.11, sd 0.0158, so se 0.0071 and one-sided bounds of 0.11 -+ 2.132 se = [0.095, 0.125]."""
    losses = dict(zip(PLAN.seeds, (0.09, 0.10, 0.11, 0.12, 0.13), strict=True))

    def verdict(limit, shifts):
        plan = Plan(**{**PLAN.__dict__, "second": Limit(metric, 1.0, limit)})
        records = [Record(r.name, r.seed, r.items, second=1.0 + sign * losses[r.seed]) for r in study(shifts)]
        return choose(records, plan, draws=200)

    within = verdict(0.1, {"a": 0.2})
    assert within.champion == "bft" and within.arm("bft").excluded == ""
    assert within.arm("a").excluded == "is not shown to keep the limit"
    assert verdict(0.13, {"a": 0.2}).champion == "a"
    beyond = verdict(0.09, {"a": 0.2})
    assert beyond.champion is None and beyond.arm("bft").excluded == "breaks the limit beyond noise"


def test_a_limit_that_is_met_exactly_is_kept():
    plan = Plan(**{**PLAN.__dict__, "second": Limit("general/bits_per_byte", 1.0, 0.1)})
    choice = choose([Record(r.name, r.seed, r.items, second=1.1) for r in study({"a": 0.2})], plan, draws=200)
    assert 1.1 - 1.0 > 0.1 and choice.champion == "a"


# ---- what there is no noise, or not every verdict, for -------------------------------------------------


def test_a_shift_that_is_the_same_everywhere_is_never_beyond_noise():
    base = study({})
    default = {record.seed: record.items for record in base if record.name == "bft"}
    for shift in (1e-9, 0.05):
        records = [record for record in base if record.name != "a"]
        records += [Record("a", seed, {k: v + shift for k, v in items.items()}) for seed, items in default.items()]
        choice = choose(records, PLAN, draws=200)
        gain = choice.arm("a").gain
        assert choice.champion == "bft" and gain is not None and not gain.has_spread and not gain.is_better
        row = next(line for line in explain(choice).splitlines() if line.startswith("| a |"))
        assert "no spread" in row and row.rstrip().endswith("|  |")


def test_seeds_that_agree_by_chance_are_not_believed():
    """Right and wrong: three seeds that each gain two other items of 40: +0.05 in each, which is 6 of 120 in truth."""
    base = {f"i{i}": float(i % 2) for i in range(40)}
    plan = Plan("choices/accuracy", ("a",), ("bft",), "bft", (1, 2, 3))
    gained = {1: ("i0", "i2"), 2: ("i4", "i6"), 3: ("i8", "i10")}
    records = [Record("bft", seed, base) for seed in plan.seeds]
    records += [Record("a", seed, base | dict.fromkeys(gained[seed], 1.0)) for seed in plan.seeds]
    gain = choose(records, plan).arm("a").gain
    assert gain is not None and gain.gain == pytest.approx(0.05)
    assert gain.se == pytest.approx(math.sqrt(0.05 * 0.95 / 120), rel=0.05) and gain.low < 0.03 and gain.high > 0.07


def test_where_all_arms_are_the_default_they_are_named_identical():
    items = study({})[0].items
    choice = choose([Record(name, seed, items) for name in ARMS for seed in PLAN.seeds], PLAN, draws=100)
    text = explain(choice)
    assert choice.champion == "bft" and "the best candidate, `a`, is identical to it" in text.splitlines()[0]
    assert "8 of 10" not in text and "none is likely" not in text and "nan" not in text


def test_arms_that_failed_are_not_counted_among_those_that_the_intervals_hold_for():
    records = [
        record if record.name != "dft" else Record("dft", record.seed, failed="x") for record in study({"a": 0.1})
    ]
    assert "the intervals hold for all 3 arms together at 95%" in explain(choose(records, PLAN, draws=200))


def test_what_would_narrow_it_and_what_cannot_be_seen():
    choice = chosen({"a": 0.1})
    gain, text = choice.arm("a").gain, explain(choice)
    assert gain is not None and gain.half_items < (gain.high - gain.low) / 2 and gain.half_seeds < gain.half_items * 1.5
    assert f"with 10 seeds it would be about {gain.half_seeds:.4f}, with 80 items {gain.half_items:.4f}." in text
    assert (
        "What happens to up to 45% of all runs, such as a collapse, could be absent from 5 seeds." in text
    )  # 1 - .05^.2


def test_a_few_missing_verdicts_are_left_out_and_counted_worst():
    plan = Plan("judged/rubric_score", ("a",), ("bft",), "bft", PLAN.seeds)
    draw = np.random.default_rng(0)
    base = draw.uniform(0.3, 0.7, 200)

    def records(shift, missing):
        return [
            Record(
                name,
                seed,
                {
                    f"i{i}": float(v)
                    for i, v in enumerate(base + (name == "a") * shift + 0.001 * draw.normal(size=200))
                    if not (name == "a" and seed == 1 and i < missing)
                },
            )
            for name in ("a", "bft")
            for seed in plan.seeds
        ]

    choice = choose(records(0.05, 2), plan, draws=300)
    assert (choice.champion, choice.num_items, choice.num_missing) == ("a", 198, 2)
    assert "2 items lack a verdict in some run and are left out of all." in explain(choice)
    choice = choose(records(0.0006, 2), plan, draws=300)
    assert choice.champion == "bft" and choice.reason == (
        "a would win, but not with the 2 items without a verdict counted worst for it"
    )
    assert (
        choose(records(0.05, 3), plan, draws=300).arm("a").excluded.startswith("seed 1 has a score for only 197 of 200")
    )


def test_a_gain_that_hangs_on_a_few_bad_items_is_warned_of():
    """29 of 30 items gain 0.1, one loses 0.5 (T = 4): the next study may have two of those."""
    plan = Plan("choices/probability", ("a",), ("bft",), "bft", PLAN.seeds)
    draw = np.random.default_rng(0)
    base = {f"i{i}": 0.5 for i in range(30)}
    records = [Record("bft", seed, base) for seed in plan.seeds]
    loss = {f"i{i}": 0.6 for i in range(29)} | {"i29": 0.0}
    records += [Record("a", s, {k: v + 0.001 * draw.normal() for k, v in loss.items()}) for s in plan.seeds]
    choice = choose(records, plan)
    gain = choice.arm("a").gain
    assert gain is not None and gain.is_skewed and choice.champion == "bft"
    assert "`a` seems better, but most of its items gain a little and few lose much" in explain(choice)
    turned = [Record(r.name, r.seed, {k: -v for k, v in r.items.items()}) for r in records]
    lower = choose(turned, Plan(**{**plan.__dict__, "metric": "validation/nll"}))
    assert lower.champion == "bft" and lower.arm("a").gain == gain  # the same, whichever way the metric points


# ---- a whole study, worked out by hand -----------------------------------------------------------------


def golden() -> list[Record]:
    """5 arms x 5 seeds x 120 items. Only `a` and the default have runs that differ (by u = 0.01 times -2 to 2, in opposite
    order), and only `a` has items of its own (0.1 up, 0.1 down); nothing else varies.
    """
    shift = {"a": 0.05, "b": 0.012, "sft": -0.02, "dft": 0.0, "bft": 0.0}
    run = {"a": (0.02, 0.01, 0.0, -0.01, -0.02), "bft": (-0.02, -0.01, 0.0, 0.01, 0.02)}
    return [
        Record(
            name,
            seed,
            {
                f"i{i}": 0.3
                + 0.002 * i
                + shift[name]
                + run.get(name, (0.0,) * 5)[place]
                + (0.1 - 0.2 * (i % 2)) * (name == "a")
                for i in range(120)
            },
        )
        for name in ARMS
        for place, seed in enumerate(PLAN.seeds)
    ]


def test_the_golden_study():
    """By hand, for `a`:

    run means less their arm's: the five columns of `a` and `bft` cancel, so they are the rest; their squares sum to
        2 x 10 u^2 = 0.002; degrees (5 - 1)(5 - 1) = 16
        MS = 0.002 / 16 = 1.25e-4,   pooled v_S = 2 MS / 5 = 5e-5
    items: 120 of +-0.1: variance 0.01 x 120 / 119, over 120: v_I = 8.403e-5; no rest, no skewness
        se = sqrt(5e-5 + 8.403e-5) = 0.011577,  T = 0.05 / se = 4.319; Dunnett's one-sided t of 4 arms is 2.2
    its own runs: differences 0.04 0.02 0 -0.02 -0.04: variance 1e-3, v_S = 2e-4
        se = 0.016853,  T = 2.967; two-sided t is between 1.98 (items) and 2.78 (4 degrees): beyond
    so `a` wins. `b` gains 0.012; its v_S is 5e-5 alone, T = 1.70, below 2.1 as the next of all, and its own runs
        (differences 0.02 0.01 0 -0.01 -0.02: v_S = 5e-5) give T = 1.70, below 2.78: it does not beat the default.
    """
    choice = choose(golden(), PLAN)
    a, b = choice.arm("a").gain, choice.arm("b").gain
    assert a is not None and b is not None
    assert (choice.champion, choice.verdict) == ("a", "candidate")
    assert (a.gain, a.se) == (pytest.approx(0.05), pytest.approx(0.011577, rel=1e-3))
    assert a.seed_share == pytest.approx(5e-5 / 1.3403e-4, rel=1e-3)
    assert 0.005 < a.p < 0.04 and not b.is_better and b.p > 0.05
    assert (b.gain, b.se) == (pytest.approx(0.012), pytest.approx(math.sqrt(5e-5)))
    assert 2.27 < (a.high - a.low) / 2 / 0.016853 < 3.50  # its own paired interval at 97.5 %: t of 119, of 4
    assert choice.best["a"] > 0.9 and sum(choice.best.values()) == pytest.approx(1)
    assert choice.not_told[0] == "a" and "sft" not in choice.not_told
    text = explain(choice)
    assert text.startswith("**`a` wins**, by +0.0500 [")
    assert "the intervals hold for all 4 arms together at 95%" in text


def test_a_second_value_that_is_missing_makes_an_arm_ineligible():
    choice = with_second({"a": math.nan}, {"a": 0.3})
    assert choice.arm("a").excluded == "seed 1 has no finite general/bits_per_byte"


# ---- order ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=25)
@given(order=st.randoms(use_true_random=False), seed=st.integers(0, 5), shift=st.sampled_from([0.0, 0.02, 0.2]))
def test_order_changes_nothing(order: random.Random, seed: int, shift: float):
    records = study({"a": shift, "sft": 0.02}, seed=seed)
    records[3] = Record(records[3].name, records[3].seed, failed="x") if seed == 5 else records[3]
    expected = choose(records, PLAN, draws=100)
    shuffled = [
        Record(r.name, r.seed, dict(order.sample(sorted(r.items.items()), len(r.items))), r.second, r.failed)
        for r in order.sample(records, len(records))
    ]
    plan = Plan(**{**PLAN.__dict__, "seeds": tuple(order.sample(PLAN.seeds, 5)), "candidates": ("b", "a")})
    found = choose(shuffled, plan, draws=100)
    assert (found.champion, found.arms, found.against, found.best, found.reason) == (
        expected.champion,
        expected.arms,
        expected.against,
        expected.best,
        expected.reason,
    )
    assert explain(found) == explain(expected)


# ---- from records to scores of items -------------------------------------------------------------------


def records_of(name: str, **columns: Any) -> list[dict[str, Any]]:
    count = len(next(iter(columns.values())))
    return [{"set": name, "id": f"i{i}"} | {key: column[i] for key, column in columns.items()} for i in range(count)]


def test_the_mean_of_the_scores_is_the_metric():
    draw = np.random.default_rng(0)
    score, label = np.round(draw.normal(size=50), 1), draw.integers(0, 2, 50)
    tokens, right = draw.integers(1, 30, 50), draw.uniform(size=50)
    correct, subject = draw.integers(0, 2, 50), draw.integers(0, 4, 50)
    pairs = records_of("pairs", score=score, label=label)
    text = records_of("validation", num_tokens=tokens, num_correct=right * tokens, nll=2 * tokens, num_bytes=tokens)
    choices = records_of("choices", correct=correct, subject=subject, probability=right)
    macro = np.mean([correct[subject == s].mean() for s in range(4)])
    for metric, records, expected in [
        ("pairs/auroc", pairs, areas(label, score)[0][0]),
        ("pairs/embedding_auroc", pairs, areas(label, score)[0][0]),
        ("validation/token_accuracy", text, (right * tokens).sum() / tokens.sum()),
        ("validation/nll", text, 2.0),
        ("validation/bits_per_byte", text, 2.0 / math.log(2)),
        ("choices/accuracy", choices, correct.mean()),
        ("choices/probability", choices, right.mean()),
        ("choices/macro_accuracy", choices, macro),
        ("final/choices/probability", choices, right.mean()),
    ]:
        found = item_scores(metric, [*pairs, *text, *choices])
        assert np.mean(list(found.values())) == pytest.approx(expected, rel=1e-12), metric
        assert list(found) == [record["id"] for record in records]


def test_the_spread_of_the_scores_is_that_of_the_metric():
    """AUROC: the standard error of the scores' mean against a bootstrap of the area itself; a ratio likewise."""
    draw = np.random.default_rng(3)
    label = np.repeat([0, 1], [150, 50])
    score = draw.normal(size=200) + label
    counts = draw.multinomial(200, np.full(200, 1 / 200), 2000)
    for which, name in enumerate(("auroc", "auprc")):
        scores = np.array(list(item_scores(f"pairs/{name}", records_of("pairs", score=score, label=label)).values()))
        assert scores.std(ddof=1) / math.sqrt(200) == pytest.approx(areas(label, score, counts)[which].std(), rel=0.1)
    tokens = draw.integers(1, 100, 200)
    right = draw.binomial(tokens, draw.uniform(0.2, 0.8, 200))
    found = item_scores("validation/token_accuracy", records_of("validation", num_tokens=tokens, num_correct=right))
    spread = (counts @ right / (counts @ tokens)).std()
    assert np.std(list(found.values()), ddof=1) / math.sqrt(200) == pytest.approx(spread, rel=0.1)


@pytest.mark.parametrize(
    ("metric", "records", "message"),
    [
        ("choices/probability", records_of("pairs", score=[1.0]), "without records"),
        ("cells/ari", records_of("cells", label=[1], cluster=[1]), "no figure of single items"),
        ("pairs/auroc", records_of("pairs", score=[1.0, 2.0], label=[1, 1]), "of both kinds"),
        ("choices/probability", records_of("choices", probability=[0.1, math.nan]), "choices/probability of i1"),
        ("choices/probability", records_of("choices", probability=[0.1]) * 2, "must be given once"),
    ],
)
def test_records_that_give_no_scores(metric, records, message):
    with pytest.raises(BadInput, match=message):
        item_scores(metric, records)


def test_pairs_that_share_genes_are_fewer_items():
    """120 pairs of 12 genes; the gain of an item is the sum of its genes'. As if independent, it would win."""
    draw = np.random.default_rng(4)
    genes = draw.normal(size=12) * 0.1
    pairs = [tuple(draw.choice(12, 2, replace=False)) for _ in range(120)]
    rows = [{"set": "p", "id": f"i{i}", "groups": [f"g{a}", f"g{b}"]} for i, (a, b) in enumerate(pairs)]
    groups = item_groups("p/auroc", [*rows, {"set": "q", "id": "x", "group": "y"}, {"set": "p", "id": "z"}])
    assert groups["i0"] == [f"g{gene}" for gene in pairs[0]] and len(groups) == 120
    assert item_groups("q/nll", [{"id": "x", "group": "y"}, {"id": "z"}]) == {"x": ["y"]}
    effect = np.array([genes[a] + genes[b] for a, b in pairs])
    effect += 0.04 - effect.mean()
    shift = {f"i{i}": float(v) for i, v in enumerate(effect)}
    plan = Plan("p/auroc", ("a",), ("bft",), "bft", PLAN.seeds)
    records = [
        Record(name, seed, {i: 0.5 + (name == "a") * v + 0.01 * draw.normal() for i, v in shift.items()})
        for name in ("a", "bft")
        for seed in plan.seeds
    ]
    alone, shared = choose(records, plan), choose(records, Plan(**{**plan.__dict__, "groups": groups}))
    assert alone.champion == "a" and shared.champion == "bft"
    assert "120 items of the confirmation split that share 12 groups" in explain(shared)
    assert "Only 12 groups" in explain(shared) and "groups" not in explain(alone)


def test_verdicts_that_a_judge_did_not_give():
    rows = [{"set": "judged", "id": f"i{n}", "rubric_score": 0.5} for n in range(200)]
    lacking = [{"set": "judged", "id": "x"}, {"set": "judged", "id": "y"}]
    assert len(item_scores("judged/rubric_score", rows + lacking)) == 200
    with pytest.raises(BadInput, match="is '200 verdicts', but must be of at least 99% of the 203 items"):
        item_scores("judged/rubric_score", [*rows, *lacking, {"set": "judged", "id": "z"}])
