"""Confirmation and choice: by hand on small cases, errors as often as promised, and a choice that order cannot move."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bft_ray.errors import BadInput
from bft_ray.evaluate.classify import areas
from bft_ray.search.choose import Limit, Plan, Record, choose
from bft_ray.search.confirm import compare_pair, compare_with, error_parts, resampled_means, simultaneous_level
from bft_ray.search.explain import explain
from bft_ray.search.items import item_scores

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


def test_a_baseline_that_ties_with_a_candidate_does_not_win():
    choice = chosen({"a": 0.1, "sft": 0.102})
    assert (choice.champion, choice.verdict) == ("a", "candidate")
    assert choice.arms[0].name == "sft"
    assert "But `sft` had a better mean still" in explain(choice).splitlines()[0]


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
    assert choice.champion == "b" and choice.arm("a").excluded == "breaks the limit"
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


def test_a_second_value_that_is_missing_makes_an_arm_ineligible():
    choice = with_second({"a": math.nan}, {"a": 0.3})
    assert choice.arm("a").excluded == "seed 1 has no finite general/bits_per_byte"


# ---- order ---------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
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
    assert (found.champion, found.arms, found.against, found.level, found.reason) == (
        expected.champion,
        expected.arms,
        expected.against,
        expected.level,
        expected.reason,
    )
    assert explain(found) == explain(expected)


# ---- the intervals -------------------------------------------------------------------------------------


def test_the_parts_of_the_error_by_hand():
    difference = np.array([[1.0, 2.0, 3.0], [3.0, 4.0, 8.0]])
    # means of seeds 2, 5; of items 2, 3, 5.5; of all 3.5; rest +-[.5, .5, -1]
    v_rest = 2 * (0.25 + 0.25 + 1.0) / 2 / 6
    v_item = np.var([2, 3, 5.5], ddof=1) / 3 - v_rest
    np.testing.assert_allclose(error_parts(difference), [4.5 / 2, v_item], rtol=1e-12)
    found = compare_pair("a", "b", difference, 0.1)
    share = 2.25 / (2.25 + v_item)
    se = math.sqrt(2.25 + v_item)
    half = (share * stats.t.ppf(0.95, 1) + (1 - share) * stats.t.ppf(0.95, 2)) * se
    power = (share * stats.t.ppf(0.8, 1) + (1 - share) * stats.t.ppf(0.8, 2)) * se
    np.testing.assert_allclose(
        [found.gain, found.low, found.high, found.se, found.seed_share, found.detectable],
        [3.5, 3.5 - half, 3.5 + half, se, share, half + power],
        rtol=1e-12,
    )


def test_only_seeds_is_a_t_test_over_seeds_and_only_items_one_over_items():
    seeds = np.array([0.1, 0.4, 0.2, 0.6])
    found = compare_pair("a", "b", np.repeat(seeds[:, None], 9, 1), 0.05)
    low, high = stats.ttest_1samp(seeds, 0).confidence_interval(0.95)
    np.testing.assert_allclose([found.low, found.high], [low, high], rtol=1e-9)
    items = np.array([0.1, 0.4, 0.2, 0.6, -0.3])
    found = compare_pair("a", "b", np.repeat(items[None], 4, 0), 0.05)
    low, high = stats.ttest_1samp(items, 0).confidence_interval(0.95)
    np.testing.assert_allclose([found.low, found.high, found.seed_share], [low, high, 0], rtol=1e-9, atol=1e-12)


def test_resampled_means_by_enumeration():
    """The distribution of the bootstrap mean of 2 seeds x 2 items is known: 16 draws, all alike."""
    difference = np.array([[[1.0, 2.0], [4.0, 8.0]]])
    every = [
        np.mean([difference[0, s, i] for s in seeds for i in items])
        for seeds in itertools.product(range(2), repeat=2)
        for items in itertools.product(range(2), repeat=2)
    ]
    means = resampled_means(difference, 40_000, 0)[:, 0]
    values, counts = np.unique(means, return_counts=True)
    expected, weights = np.unique(every, return_counts=True)
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_allclose(counts / 40_000, weights / 16, atol=0.01)


def test_the_level_knows_how_arms_move_together():
    draw = np.random.default_rng(0)
    item = draw.normal(size=(1, 1, 300))
    noise = 1e-3 * draw.normal(size=(5, 5, 300))
    alike = simultaneous_level(item + noise, 0.05)
    assert 0.04 < alike <= 0.05  # five arms that move as one need no correction
    apart = simultaneous_level(draw.normal(size=(5, 1, 300)) + noise, 0.05)
    assert 0.0100 <= apart < 0.0125  # independent ones need nearly Bonferroni's
    seeds = simultaneous_level(draw.normal(size=(1, 5, 1)) + 1e-3 * noise, 0.05)
    assert seeds == pytest.approx(0.01, rel=1e-3)  # a few seeds cannot tell


@pytest.mark.parametrize(
    ("num_seeds", "item", "run", "noise"),
    [(5, 1.0, 0.0, 1.0), (5, 0.0, 1.0, 0.3), (5, 1.0, 0.2, 1.0), (3, 1.0, 0.5, 1.0), (5, 0.0, 0.0, 1.0)],
)
def test_family_wise_error(num_seeds, item, run, noise):
    """400 studies without any difference: one is told in at most alpha of them, + 2 standard errors."""
    draw = np.random.default_rng(1)
    wrong = 0
    for _ in range(400):
        scores = (
            item * draw.normal(size=(5, 1, 40))
            + run * draw.normal(size=(5, num_seeds, 1))
            + noise * draw.normal(size=(5, num_seeds, 40))
        )
        found, _level = compare_with({str(arm): scores[arm] for arm in range(5)}, "0", 0.05, draws=300)
        wrong += any(gain.is_better or gain.is_worse for gain in found.values())
    assert wrong / 400 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 400)


def test_what_is_called_detectable_is_detected():
    """A true gain of the detectable size shows in about 8 of 10 studies."""
    draw = np.random.default_rng(2)
    shown, sizes = 0, []
    for _ in range(300):
        difference = draw.normal(size=(1, 60)) * 0.5 + draw.normal(size=(5, 60))
        sizes.append(compare_pair("a", "b", difference, 0.05).detectable)
    size = float(np.median(sizes))
    for _ in range(600):
        difference = size + draw.normal(size=(1, 60)) * 0.5 + draw.normal(size=(5, 60))
        shown += compare_pair("a", "b", difference, 0.05).is_better
    assert 0.74 < shown / 600 < 0.92


def test_scores_must_fit():
    with pytest.raises(BadInput, match="of one shape"):
        compare_with({"a": np.zeros((2, 3)), "b": np.zeros((2, 4))}, "a", 0.05)
    with pytest.raises(BadInput, match="at least 2 seeds and 2 items"):
        compare_with({"a": np.zeros((1, 3)), "b": np.zeros((1, 3))}, "a", 0.05)
    assert compare_with({"a": np.zeros((2, 3))}, "a", 0.05) == ({}, 0.05)


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
    scores = np.array(list(item_scores("pairs/auroc", records_of("pairs", score=score, label=label)).values()))
    assert scores.std(ddof=1) / math.sqrt(200) == pytest.approx(areas(label, score, counts)[0].std(), rel=0.1)
    tokens = draw.integers(1, 100, 200)
    right = draw.binomial(tokens, draw.uniform(0.2, 0.8, 200))
    found = item_scores("validation/token_accuracy", records_of("validation", num_tokens=tokens, num_correct=right))
    spread = (counts @ right / (counts @ tokens)).std()
    assert np.std(list(found.values()), ddof=1) / math.sqrt(200) == pytest.approx(spread, rel=0.1)


@pytest.mark.parametrize(
    ("metric", "records", "message"),
    [
        ("choices/probability", records_of("pairs", score=[1.0]), "without records"),
        ("pairs/auprc", records_of("pairs", score=[1.0], label=[1]), "no figure of single items"),
        ("pairs/auroc", records_of("pairs", score=[1.0, 2.0], label=[1, 1]), "of both kinds"),
        ("choices/probability", records_of("choices", probability=[0.1, math.nan]), "choices/probability of i1"),
        ("choices/probability", records_of("choices", probability=[0.1]) * 2, "must be given once"),
    ],
)
def test_records_that_give_no_scores(metric, records, message):
    with pytest.raises(BadInput, match=message):
        item_scores(metric, records)
