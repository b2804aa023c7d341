"""Signs of trouble, each from records made for it, and none from records of a sound study."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bft_ray.page.model import Finding
from bft_ray.space.definition import SearchSpace
from bft_ray.study.confirm.choice import Choice, Plan, Record
from bft_ray.study.confirm.choose import choose
from bft_ray.study.records.record import TrialRecord
from bft_ray.study.records.store import BASELINES, CONFIRMATION, SEARCH
from bft_ray.study.report.diagnoses import diagnose
from bft_ray.study.report.signs import confirmation, failures
from tests.support.noted import METRIC, baseline, space, trial

RATE = "optimizer.learning_rate"
FORGOTTEN = "general/bits_per_byte"
SEEDS = (1, 2, 3, 4, 5)


def titles(
    search: list[TrialRecord], *, choice: Choice | None = None, the_space: SearchSpace | None = None, **parts: Any
) -> list[str]:
    return [finding.title for finding in diagnose({SEARCH: search, **parts}, the_space or space(), choice)]


def run(n: int, first: float, middle: float, end: float, **more: Any) -> TrialRecord:
    """Ran to its end: values at steps 9 and 27 and at the end."""
    return trial(n, end, rungs={9: {0: first}, 27: {0: middle}}, **more)


def sound() -> list[TrialRecord]:
    """Ten trials whose order holds, that rise steadily, in the middle of their ranges."""
    cap = {"loss.window": 128, RATE: 1e-3, "loss.weight_cap": 5.0}
    return [run(n, 0.2 + n / 100, 0.24 + n / 100, 0.27 + n / 100, assignment=cap) for n in range(10)]


def arms(values: dict[str, list[float]]) -> list[TrialRecord]:
    return [
        trial(n, value, part=CONFIRMATION, name=name, extra={"arm": name})
        for n, (name, value) in enumerate((name, value) for name, own in values.items() for value in own)
    ]


def chosen(shifts: dict[str, float], noise: float = 0.03) -> Choice:
    random = np.random.default_rng(0)
    plan, common = Plan(METRIC, ("a", "b"), ("sft", "bft"), "bft", SEEDS), random.uniform(0.3, 0.7, 40)
    return choose(
        [
            Record(
                name,
                seed,
                {
                    f"i{i}": float(v)
                    for i, v in enumerate(common + shifts.get(name, 0) + noise * random.normal(size=40))
                },
            )
            for name in (*plan.candidates, *plan.baselines)
            for seed in SEEDS
        ],
        plan,
        draws=200,
    )


def test_a_sound_study_has_no_sign():
    quiet = {name: [0.4, 0.41, 0.39, 0.4, 0.405] for name in ("a", "b", "sft", "bft")}
    assert titles(sound()) == []
    assert titles(sound(), choice=chosen({"a": 0.1}), confirmation=arms(quiet)) == []
    assert titles([]) == [] and diagnose({}, space(), None) == []


@pytest.mark.parametrize("reason", ["the loss is not finite at step 3", "choices/probability is nan (seed 0)", "NaN"])
def test_trials_without_a_number(reason):
    lost = [trial(n, state="failed", reason=reason, assignment={RATE: rate}) for n, rate in ((10, 3e-3), (11, 1e-2))]
    finding = failures.not_finite({SEARCH: [*sound(), *lost]}, space(), None)
    assert (
        finding is not None
        and "2 of 12 trials failed" in finding.text
        and "at learning rates from 0.003" in finding.text
    )
    assert "Leave out learning rates from 0.003 on" in finding.remedy
    assert titles([*sound(), *lost]) == ["Unstable: trials ended without a number"]


@pytest.mark.parametrize("reason", ["the node is down for maintenance", "the tenant has no quota", "see info.log"])
def test_a_word_that_holds_nan_or_inf_is_no_sign(reason):
    lost = [trial(n, state="failed", reason=reason) for n in (90, 91, 92)]
    assert failures.not_finite({SEARCH: [*sound(), *lost]}, space(), None) is None
    assert failures.failures({SEARCH: [*sound(), *lost]}, space(), None) is not None


def test_many_failures_name_the_most_frequent_reason():
    lost = [
        trial(10 + n, state="failed", reason=reason)
        for n, reason in enumerate(["out of memory", "no file", "out of memory"])
    ]
    (finding,) = diagnose({SEARCH: [*sound(), *lost]}, space(), None)
    assert finding.title == "Many trials failed" and "3 of 13 trials failed; 2 of them: out of memory" in finding.text
    assert titles([*sound(), lost[0]]) == []  # one of 11 is less than a tenth


def test_seeds_of_one_arm_that_lie_far_apart():
    values = {name: [0.4, 0.401, 0.399, 0.4, 0.4005] for name in ("b", "sft", "bft")}
    (finding,) = diagnose(
        {SEARCH: sound(), CONFIRMATION: arms({"a": [0.4, 0.1, 0.42, 0.39, 0.41], **values})}, space(), None
    )
    assert finding.title == "Unstable: seeds of one arm lie far apart"
    usual = np.std([0.4, 0.401, 0.399, 0.4, 0.4005], ddof=1)
    sd = np.std([0.4, 0.1, 0.42, 0.39, 0.41], ddof=1)
    assert (
        f"The runs of `a` have a standard deviation of {sd:.2g} over seeds, those of the other arms {usual:.2g}"
        in finding.text
    )


def test_equal_arms_are_called_unstable_in_at_most_two_of_a_hundred_studies():
    """The level is 0.01 over all arms, and its test is exact for normal runs."""
    random, found = np.random.default_rng(3), 0
    for _ in range(400):
        values = {name: list(0.4 + 0.01 * random.normal(size=5)) for name in ("a", "b", "c", "sft", "bft")}
        found += confirmation.unstable_seeds({CONFIRMATION: arms(values)}, space(), None) is not None
    assert found <= 8


def test_no_token_below_sft():
    """By hand: differences -0.02, -0.01, -0.03 of three seeds have t = -3.46, p = 0.037; -0.02, 0.01, -0.03 have p = 0.19."""
    own = space(baselines=[{"name": name, "overrides": {"loss.method": name}} for name in ("bft", "sft")])

    def found(no_token: list[float]) -> Finding | None:
        runs = [replace(one, seeds=(n % 3,)) for n, one in enumerate(arms({"sft": [0.33] * 3, "w64": no_token}))]
        runs = [replace(one, assignment={"loss.method": "bft_no_token"}) if one.name == "w64" else one for one in runs]
        return confirmation.no_token_below_sft({CONFIRMATION: runs}, own, None)

    finding = found([0.31, 0.32, 0.30])
    assert finding is not None and f"{METRIC} 0.310 against 0.330, beyond the noise of 3 seeds" in finding.text
    assert "Keep a token weight" in finding.remedy
    assert found([0.31, 0.34, 0.30]) is None  # within noise
    assert found([0.31] * 3) is None  # no spread: no noise to judge by
    assert found([0.34, 0.35, 0.33]) is None
    weak = [trial(n, 0.1, assignment={"loss.method": "bft_no_token"}) for n in range(2)]  # the search shows nothing
    assert (
        confirmation.no_token_below_sft({SEARCH: weak, BASELINES: [baseline(0, "sft", 0.33, 1e-3)]}, own, None) is None
    )


def test_sft_that_wins():
    assert titles(sound(), choice=chosen({"sft": 0.2})) == ["Ordinary fine-tuning wins"]


def test_a_study_that_was_too_small():
    (finding,) = diagnose({SEARCH: sound()}, space(), chosen({"a": 0.004}))
    gain = chosen({"a": 0.004}).best_candidate.gain
    assert finding.title == "Too small to show a gain of this size" and gain.gain > 0
    times = (gain.detectable / gain.gain) ** 2
    assert f"about {times:.0f} times as many" in finding.remedy and finding.remedy.startswith("More items") == (
        gain.half_items <= gain.half_seeds
    )


def test_a_search_that_flattered_its_pick():
    lucky = trial(10, 0.9, name="a")
    runs = [replace(one, extra={"arm": "a", "of": "search/10"}) for one in arms({"a": [0.5] * 5})]
    found = {SEARCH: [*sound(), lucky], BASELINES: [baseline(0, "bft", 0.35, 1e-3)], CONFIRMATION: runs}
    finding = confirmation.flattered(found, space(), chosen({"a": 0.1}))
    assert finding is not None and "`a` gained +0.5500 in the search" in finding.text
    fair = replace(lucky, value=0.44, metrics={METRIC: 0.44})
    assert confirmation.flattered({**found, SEARCH: [*sound(), fair]}, space(), chosen({"a": 0.1})) is None


def forgetting(rates: dict[str, float]) -> dict[str, list[TrialRecord]]:
    """Arms with these rates, and a tuning in which `bft` forgets more than `sft` at each rate."""
    lost = {("sft", 1e-3): 0.52, ("bft", 1e-3): 0.7, ("sft", 3e-3): 0.76, ("bft", 3e-3): 1.25}
    tuning = [
        replace(baseline(n, name, 0.4, rate), metrics={METRIC: 0.4, FORGOTTEN: value})
        for n, ((name, rate), value) in enumerate(lost.items())
    ]
    runs = [
        trial(n, 0.4, part=CONFIRMATION, name=name, extra={"arm": name}, assignment={"loss.method": name, RATE: rate})
        for n, (name, rate) in enumerate(rates.items())
    ]
    return {BASELINES: tuning, CONFIRMATION: runs}


def test_arms_of_a_claim_whose_rates_another_metric_chose():
    """Which forgets less is then a question of the rate: the tuning shows both at equal rates."""
    claims = [{"better": "bft", "than": "sft", "metric": FORGOTTEN}]
    apart = forgetting({"sft": 3e-3, "bft": 1e-3})
    (finding,) = diagnose(apart, space(claims=claims), None)
    assert finding.title == "Arms of a claim differ in settings that another metric chose"
    assert finding.text == (
        "choices/probability chose the settings of each arm. The claim that `bft` is better than `sft` in general/bits_per_byte "
        "compares learning_rate 0.001 with 0.003. In the tuning, with one seed, general/bits_per_byte is 0.7 and 0.52 at 0.001, "
        "1.25 and 0.76 at 0.003."
    )
    assert diagnose(forgetting({"sft": 1e-3, "bft": 1e-3}), space(claims=claims), None) == []
    of_objective = [{"better": "bft", "than": "sft"}, {"better": "bft", "than": "sft", "metric": METRIC}]
    assert diagnose(apart, space(claims=of_objective), None) == []
    assert diagnose({**apart, CONFIRMATION: []}, space(claims=claims), None) == []
    untold = {**apart, BASELINES: [baseline(0, "sft", 0.4, 1e-3)]}
    assert "In the tuning" not in diagnose(untold, space(claims=claims), None)[0].text


def test_rungs_that_mislead():
    """Five trials in the opposite order at the rung: tau -1."""
    turned = [trial(n, n / 10, rungs={9: {0: -n / 10}}) for n in range(5)]
    stopped = trial(5, state="pruned", rungs={9: {0: -0.6}})
    (finding,) = diagnose({SEARCH: [*turned, stopped]}, space(), None)
    assert (
        finding.title == "Early stopping may have lost a winner"
        and "At step 9" in finding.text
        and "tau -1.00" in finding.text
    )
    assert titles(turned) == []  # nothing was stopped there
    assert titles([*turned, stopped], the_space=space(scheduler={"kind": "none"})) == []


def test_rungs_that_are_blind():
    alike = [trial(n, 0.25 + n, window=2**n, rungs={9: {0: 0.25}}) for n in range(3)]
    assert titles(alike) == ["Early stopping had nothing to choose by"]


@pytest.mark.parametrize(
    ("values", "title"),
    [
        ((0.2, 0.30, 0.302), "An early plateau"),
        ((0.2, 0.30, 0.27), "Trials get worse towards their end"),
        ((0.2, 0.22, 0.30), "Trials still rise at their end"),
        ((0.2, 0.27, 0.30), None),
    ],
)  # fmt: skip
def test_curves(values, title):
    cap = {"loss.window": 128, RATE: 1e-3, "loss.weight_cap": 5.0}
    own = [run(n, *(value + n / 1000 for value in values), assignment=cap) for n in range(8)]
    assert titles(own) == ([title] if title else [])
    assert titles(own[:4]) == []  # too few


def test_one_trial_that_falls_is_no_sign():
    own = [*sound()[:7], run(7, 0.2, 0.30, 0.29, assignment=sound()[0].assignment)]
    assert titles(own) == []


def test_the_best_at_an_end_of_their_range():
    def at(n: int, cap: float) -> TrialRecord:
        return run(
            n,
            0.2 + n / 100,
            0.24 + n / 100,
            0.27 + n / 100,
            assignment={"loss.window": 128, RATE: 1e-3, "loss.weight_cap": cap},
        )

    own = [at(n, cap) for n, cap in enumerate([5, 6, 7, 8, 9, 19, 19.5, 20])]
    (finding,) = diagnose({SEARCH: own}, space(), None)
    assert (
        finding.title == "The best trials lie at the upper end of loss.weight_cap"
        and "the range ends at 20" in finding.text
    )
    assert titles([at(n, cap) for n, cap in enumerate([5, 6, 7, 8, 9, 12, 19.5, 20])]) == []
    assert titles(own[:6]) == []
    low = [
        replace(one, assignment={**one.assignment, "loss.window": 64 if n > 4 else 512, "loss.weight_cap": 5})
        for n, one in enumerate(own)
    ]
    assert titles(low) == ["The best trials lie at the lower end of loss.window"]


def test_a_space_of_duplicates():
    own = sound()
    same = [
        replace(own[0], number=10 + n, duplicate_of="search/0", duplicate_because="windows above 230 tokens")
        for n in range(8)
    ]
    (finding,) = diagnose({SEARCH: [*own, *same]}, space(), None)
    assert (
        finding.title == "Much of the space is the same run"
        and "8 of 18 trials" in finding.text
        and "windows above 230 tokens" in finding.text
    )
    assert titles([*own, *same[:6]]) == []


def test_a_metric_that_does_not_move():
    own = [trial(n, 0.25, rungs={9: {0: 0.2 + n / 100}}) for n in range(6)]
    assert "The metric does not move" in titles(own)
