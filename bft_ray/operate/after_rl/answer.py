"""What the runs say: which arms improve, which improve more and which end higher; a pure function of the records.

Paired by seed and item. With A runs before and B after GRPO, [S, n] each,

    improvement of an arm        mean of B - A
    improves more                mean of (B - A) of one arm minus that of the other
    ends higher                  mean of B of one arm minus that of the other

each with the interval of `bft_ray.stats.simultaneous.compare_pair` at alpha / m, m statements in all (Bonferroni).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bft_ray.operate.after_rl.definition import AfterRl
from bft_ray.operate.after_rl.record import Run
from bft_ray.page.model import listed
from bft_ray.space.claims import Claim
from bft_ray.stats.comparison import Comparison
from bft_ray.stats.errors import Groups, as_groups
from bft_ray.stats.simultaneous import compare_pair
from bft_ray.study.confirm.claims import Verdict, judge
from bft_ray.study.report.arms import gain_text, signed, size

_LITTLE = 0.2  # share of prompts with a gradient, below which the answer says so
_GUESSABLE = 0.1  # reward of a constant answer, from which on the answer says what guessing earns
_ORDER: tuple[Verdict, ...] = ("does not hold", "cannot be told", "holds")


@dataclass(frozen=True)
class Statement:
    """A statement with its verdict.

    Args:
        what: it, as a clause without `that`.
        reverse: what holds where it does not.
        gain: None where it cannot be judged; `why` says why.
    """

    what: str
    reverse: str
    verdict: Verdict
    gain: Comparison | None
    why: str = ""

    def __str__(self) -> str:
        if self.gain is None:
            return f"whether {self.what} cannot be told ({self.why})"
        if not self.gain.has_spread:
            return f"whether {self.what} cannot be told: all items and seeds differ by {signed(self.gain.gain)}"
        told = gain_text(self.gain)
        if self.verdict == "cannot be told":
            least = self.gain.detectable
            small = f"; {size(least)} would show in {self.gain.shows_in} such studies" if least == least else ""
            return f"whether {self.what} cannot be told: {told}{small}"
        return f"{self.what if self.verdict == 'holds' else self.reverse}: {told}"


@dataclass(frozen=True)
class Told:
    """What a study says so far.

    Args:
        runs: arm -> its runs that have ended.
        improved: arm -> whether it improves.
        compared: of the claims, two statements each.
        constant: reward of always giving the most common gold answer to the held-out items.
        guessing: arms that are not shown to start above it.
    """

    study: AfterRl
    runs: Mapping[str, Sequence[Run]]
    improved: Mapping[str, Statement]
    compared: Sequence[Statement]
    constant: float
    guessing: Sequence[str]

    @property
    def is_whole(self) -> bool:
        """Whether every run has ended."""
        return all(len(self.runs[arm]) == len(self.study.seeds) for arm in self.study.arms)

    @property
    def statements(self) -> list[Statement]:
        """All, those against the arms first."""
        every = [*self.improved.values(), *self.compared]
        return sorted(every, key=lambda one: _ORDER.index(one.verdict))


def told(
    study: AfterRl, runs: Sequence[Run], groups: Mapping[str, tuple[str, ...]] | None = None, constant: float = 0.0
) -> Told:
    """What the runs say together.

    Args:
        groups: held-out item -> what it shares with others.
        constant: reward of always giving the most common gold answer to the held-out items.
    """
    by_arm = {arm: sorted((r for r in runs if r.arm == arm), key=lambda r: r.seed) for arm in study.arms}
    flaws = {arm: why for arm, own in by_arm.items() if (why := _flaw(study, own))}
    good = [arm for arm in study.arms if arm not in flaws]
    items = sorted(by_arm[good[0]][0].before) if good else []
    shared = as_groups([groups.get(item, ()) for item in items]) if groups else None
    before = {arm: _array([run.before for run in by_arm[arm]], items) for arm in good}
    after = {arm: _array([run.after for run in by_arm[arm]], items) for arm in good}
    gains = {arm: after[arm] - before[arm] for arm in good}
    alpha = study.alpha / (len(study.arms) + 2 * len(study.claims))

    def state(what: str, reverse: str, arms: Sequence[str], scores: Mapping[str, np.ndarray], pair: tuple[str, str]):
        if gone := [arm for arm in arms if arm in flaws]:
            why = "; ".join(f"`{arm}` {flaws[arm]}" for arm in gone)
            return Statement(what, reverse, "cannot be told", None, why)
        gain = compare_pair(*pair, scores, alpha, shared)
        return Statement(what, reverse, judge(Claim(better=pair[0], than=pair[1]), gain), gain)

    improved = {}
    for arm in study.arms:
        both = {"after": after[arm], "before": before[arm]} if arm in good else {}
        texts = f"`{arm}` improves by GRPO", f"`{arm}` gets worse by GRPO"
        improved[arm] = state(*texts, [arm], both, ("after", "before"))
    compared = []
    for claim in study.claims:
        one, other, pair = f"`{claim.better}`", f"`{claim.than}`", (claim.better, claim.than)
        texts = f"{one} improves more than {other}", f"{one} improves less than {other}"
        compared.append(state(*texts, pair, gains, pair))
        texts = f"{one} ends higher than {other}", f"{one} ends lower than {other}"
        compared.append(state(*texts, pair, after, pair))
    guessing = [arm for arm in good if not _is_above(before[arm], constant, study.alpha, shared)]
    return Told(study, by_arm, improved, compared, constant, guessing)


def _is_above(rewards: np.ndarray, constant: float, alpha: float, groups: Groups | None) -> bool:
    """Whether rewards [S, n] are above a constant, beyond noise."""
    scores = {"arm": rewards, "constant": np.full_like(rewards, constant)}
    return (
        judge(Claim(better="arm", than="constant"), compare_pair("arm", "constant", scores, alpha, groups)) == "holds"
    )


def sentences(found: Told) -> list[str]:
    """The answer, Markdown, in sentences: which arms improve, then all statements, those against the arms first."""
    lines = []
    if not found.is_whole:
        ended = sum(map(len, found.runs.values()))
        lines.append(f"**Not finished**: {ended} of {len(found.study.arms) * len(found.study.seeds)} runs have ended.")
    holds = [f"`{arm}`" for arm, one in found.improved.items() if one.verdict == "holds"]
    total = f"{len(found.improved)} arm{'s' * (len(found.improved) > 1)}"
    lines.append(
        f"**Of {total}, {listed(holds) or 'none'} {'are' if len(holds) > 1 else 'is'} shown to improve by GRPO.**"
    )
    if found.guessing and found.constant >= _GUESSABLE:
        arms = listed([f"`{arm}`" for arm in found.guessing])
        lines.append(
            f"Always giving the most common answer would earn {found.constant:.3f} on the held-out items, and {arms} "
            f"{'are' if len(found.guessing) > 1 else 'is'} not shown to start above that: what GRPO does to a model that "
            "guesses says little of one that knows."
        )
    lines += [_capital(f"{statement}.") for statement in found.statements]
    return lines + [
        f"`{arm}` had little to learn from: only {mixed:.0%} of its prompts had answers that differ in reward."
        for arm, runs in found.runs.items()
        if (mixed := mixed_of(runs)) is not None and mixed < _LITTLE
    ]


def mixed_of(runs: Sequence[Run]) -> float | None:
    """Share of the prompts in GRPO whose sampled answers differ in reward, over runs; None where none was trained."""
    trained = [run.mixed for run in runs if run.course]
    return sum(trained) / len(trained) if trained else None


def _flaw(study: AfterRl, own: Sequence[Run]) -> str:
    """Why an arm is not judged; "" where it is. One seed out of range takes the arm out: the others would be a choice."""
    low, high = study.grpo.low, study.grpo.high
    out = [run for run in own if not low <= run.start <= high]
    if out:
        starts = ", ".join(f"{run.start:.3f} (seed {run.seed})" for run in out)
        return f"starts with a reward of {starts}, not from {low:g} to {high:g}: GRPO has too little signal there"
    missing = len(study.seeds) - len(own)
    return f"has {missing} of {len(study.seeds)} runs to go" if missing else ""


def _array(runs: Sequence[Mapping[str, float]], items: Sequence[str]) -> np.ndarray:
    return np.array([[run[item] for item in items] for run in runs])


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
