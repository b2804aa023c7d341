"""Claims: each verdict on made-up records, the sentences, and that they change no choice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bft_ray.space.claims import Claim
from bft_ray.study.confirm.choice import Plan, Record
from bft_ray.study.confirm.choose import choose
from bft_ray.study.report.arms import gain_text
from bft_ray.study.report.claims import claims_sentence, claims_table
from bft_ray.study.report.explain import explain
from tests.support.executor import make_study

SEEDS = (1, 2, 3, 4, 5)
ARMS = ("sft", "dft", "bft")


def records(shifts: dict[str, float], noise: float = 0.02, num_items: int = 60, seed: int = 0) -> list[Record]:
    draw = np.random.default_rng(seed)
    common = draw.uniform(0.3, 0.7, num_items)
    return [
        Record(
            name,
            run,
            {
                str(i): float(v)
                for i, v in enumerate(common + shifts.get(name, 0.0) + noise * draw.normal(size=num_items))
            },
        )
        for name in ARMS
        for run in SEEDS
    ]


def plan(*claims: Claim) -> Plan:
    return Plan("choices/probability", (), ARMS, "bft", SEEDS, claims=claims)


BETTER, CLOSE = Claim(better="bft", than="sft"), Claim(better="bft", than="sft", by_at_most=0.05)


@pytest.mark.parametrize(
    ("claim", "gain", "noise", "verdict"),
    [
        (BETTER, 0.05, 0.02, "holds"),
        (BETTER, -0.05, 0.02, "does not hold"),
        (BETTER, 0.002, 0.2, "cannot be told"),
        (CLOSE, 0.0, 0.02, "holds"),
        (CLOSE, -0.3, 0.02, "holds"),  # no better at all
        (CLOSE, 0.1, 0.02, "does not hold"),
        (CLOSE, 0.05, 0.2, "cannot be told"),
    ],
)
def test_each_verdict(claim, gain, noise, verdict):
    [judged] = choose(records({"bft": gain}, noise), plan(claim), draws=200).claims
    assert judged.verdict == verdict
    assert judged.gain is not None and abs(judged.gain.gain - gain) < 0.03
    sentence = claims_sentence([judged])
    assert ("cannot be told" in sentence) == (verdict == "cannot be told")
    assert ("does not hold" in sentence) == (verdict == "does not hold")
    assert gain_text(judged.gain) in sentence


def test_no_difference_at_all():
    """That neither is better cannot be told from it; that they do not differ by much holds."""
    better, close = choose(records({}, noise=0.0), plan(BETTER, CLOSE), draws=200).claims
    assert (better.verdict, close.verdict) == ("cannot be told", "holds")
    assert "cannot be told: they are the same on every item and seed" in claims_sentence([better])
    assert "by 0.05 at most: they are the same on every item and seed" in claims_sentence([close])


def test_a_shift_of_everything_says_nothing():
    better, close = choose(records({"bft": 0.01}, noise=0.0), plan(BETTER, CLOSE), draws=200).claims
    assert (better.verdict, close.verdict) == ("cannot be told", "cannot be told")
    assert "they differ by +0.0100 on every item and seed" in claims_sentence([better])


def test_an_arm_that_failed_is_named():
    broken = [
        one if one.name != "sft" or one.seed != 3 else Record("sft", 3, failed="out of memory") for one in records({})
    ]
    choice = choose(broken, plan(BETTER, Claim(better="bft", than="dft")), draws=200)
    assert [one.gain is None for one in choice.claims] == [True, False]
    assert choice.claims[0].why == "sft: seed 3 failed: out of memory"
    assert "that `bft` is better than `sft` cannot be told (sft: seed 3 failed: out of memory)" in claims_sentence(
        choice.claims
    )
    assert claims_table(choice).rows[0][1] == "cannot be told"


def test_claims_share_the_error_and_change_no_choice():
    """The interval of one of three claims is wider than that of one alone; the choice is the same with and without."""
    three = (BETTER, Claim(better="dft", than="sft"), Claim(better="bft", than="dft"))
    without, one, all_three = (
        choose(records({"bft": 0.03}), plan(*claims), draws=200) for claims in ((), three[:1], three)
    )
    width = [choice.claims[0].gain.high - choice.claims[0].gain.low for choice in (one, all_three)]
    assert width[1] > 1.1 * width[0]
    assert without.champion == one.champion == all_three.champion == "bft"
    assert without.arms == all_three.arms
    assert "**Claims**: " in explain(all_three) and "Claims" not in explain(without)


TEXT = "general/bits_per_byte"  # lower is better


def with_text(shifts: dict[str, float]) -> list[Record]:
    """Runs that were measured on 40 texts as well, on which an arm needs so many bits more."""
    draw = np.random.default_rng(7)
    common = draw.uniform(0.8, 1.2, 40)
    made = []
    for one in records({"bft": 0.05}):
        values = common + shifts.get(one.name, 0.0) + 0.02 * draw.normal(size=40)
        made.append(replace(one, others={TEXT: {f"t{i}": float(v) for i, v in enumerate(values)}}))
    return made


@pytest.mark.parametrize(("bits", "verdict"), [(-0.05, "holds"), (0.05, "does not hold"), (0.0, "cannot be told")])
def test_a_claim_about_another_metric(bits, verdict):
    """It is judged on the items of that metric, in its direction, whatever the objective says."""
    about_text = Claim(better="bft", than="sft", metric=TEXT)
    first, second = choose(with_text({"bft": bits}), plan(about_text, BETTER), draws=200).claims
    assert (first.verdict, second.verdict) == (verdict, "holds")
    assert abs(first.gain.gain + bits) < 0.01 and abs(second.gain.gain - 0.05) < 0.02
    assert "`bft` is better than `sft` in general/bits_per_byte" in claims_sentence([first])


def test_a_claim_about_a_metric_that_was_not_kept():
    """Such as one that was added when the runs had ended."""
    [judged] = choose(records({}), plan(Claim(better="bft", than="sft", metric=TEXT)), draws=200).claims
    assert judged.verdict == "cannot be told"
    assert judged.why == f"bft: its scores in {TEXT} were not kept; sft: its scores in {TEXT} were not kept"


def test_what_does_not_hold_is_told_first():
    claims = plan(Claim(better="bft", than="dft"), BETTER)
    sentence = claims_sentence(choose(records({"sft": 0.1}), claims, draws=200).claims)
    assert sentence.startswith("**Claims**: it does not hold that `bft` is better than `sft`; the reverse does: -0.")
    assert claims_sentence(()) == ""


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"claims": [{"better": "bft", "than": "bft"}]}, "another baseline than"),
        ({"claims": [{"better": "bft", "than": "nothing"}]}, "the name of a baseline: sft, dft, bft"),
        ({"claims": [{"better": "bft", "than": "sft"}], "confirmation": None}, "left out without a confirmation"),
    ],
)
def test_a_claim_about_nothing_is_refused(tmp_path, more, message):
    with pytest.raises(ValueError, match=message):
        make_study(tmp_path, **more)
