"""What a confirmation compares (`Record`, `Plan`), and what was chosen from it (`Choice`): data alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from bft_ray.errors import BadInput
from bft_ray.space.claims import Claim
from bft_ray.stats.comparison import Comparison
from bft_ray.study.confirm.claims import Judged


@dataclass(frozen=True)
class Record:
    """One run of the confirmation.

    Args:
        name: of its arm: a candidate or a baseline.
        seed: of the run.
        items: item id -> score on the confirmation split, in the metric's own direction; their mean is the metric
            (`bft_ray.study.confirm.items`). Empty where the run failed.
        second: value of the second metric, where there is one.
        failed: why there is no score; "" where there is one.
        others: metric of a claim -> item id -> score, in the metric's own direction.
    """

    name: str
    seed: int
    items: Mapping[str, float] = field(default_factory=dict)
    second: float | None = None
    failed: str = ""
    others: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Limit:
    """The limit that the second objective sets.

    Args:
        metric: its name.
        before: value of the base model, on the same data.
        largest_loss: how much worse than that the mean of an arm may be, in the metric's unit.
    """

    metric: str
    before: float
    largest_loss: float


Kind = Literal["candidate", "baseline", "default"]


@dataclass(frozen=True)
class Plan:
    """What the confirmation compares.

    Args:
        metric: name of the objective.
        candidates: arms that the search found.
        baselines: published arms, the default among them.
        default: the baseline that wins ties.
        seeds: of the runs of every arm.
        alpha: error of all comparisons together.
        second: the second objective; None: there is none.
        groups: item id -> groups that it shares with others (genes, patients, documents); empty: items are independent.
        claims: statements about baselines, which are judged and change nothing.
    """

    metric: str
    candidates: tuple[str, ...]
    baselines: tuple[str, ...]
    default: str
    seeds: tuple[int, ...]
    alpha: float = 0.05
    second: Limit | None = None
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    claims: tuple[Claim, ...] = ()

    def __post_init__(self) -> None:
        names = [*self.candidates, *self.baselines]
        if len(set(names)) < len(names):
            raise BadInput("arms", names, "arms with different names")
        if self.default not in self.baselines:
            raise BadInput("default", self.default, f"one of the baselines: {', '.join(self.baselines)}")
        if len(set(self.seeds)) < max(2, len(self.seeds)):
            raise BadInput("seeds", list(self.seeds), "at least 2 different seeds: one has no spread")

    def kind_of(self, name: str) -> Kind:
        """What an arm is."""
        if name == self.default:
            return "default"
        return "candidate" if name in self.candidates else "baseline"


@dataclass(frozen=True)
class Arm:
    """What the confirmation says about one arm; of an arm that does not count, only why.

    Args:
        name, kind: which, and what it is.
        mean: of the metric, over seeds and items; None where the arm does not count.
        second: mean of the second metric over seeds.
        gain: over the default; None for the default itself.
        excluded: why it does not count, or cannot be chosen; "" where it can.
        on_front: no other arm that counts is better in one objective and at least as good in the other.
    """

    name: str
    kind: Kind
    mean: float | None = None
    second: float | None = None
    gain: Comparison | None = None
    excluded: str = ""
    on_front: bool = False


Verdict = Literal["candidate", "default", "baseline", "none"]


@dataclass(frozen=True)
class Choice:
    """What was chosen, and the evidence for the choice.

    Args:
        champion: name of the arm; None where nothing could be chosen.
        verdict: what kind of arm it is.
        reason: a clause that says why.
        arms: best mean first, those that do not count last.
        against: for a baseline as champion: its gain over the default and each contender.
        num_items: of the confirmation split, measured in all runs.
        num_missing: items left out, because they lack a verdict.
        best: arm -> probability that it is the best, given the noise.
        not_told: arms that the data do not separate from the best.
        claims: those of the plan, judged.
    """

    plan: Plan
    champion: str | None
    verdict: Verdict
    reason: str
    arms: tuple[Arm, ...]
    against: tuple[Comparison, ...]
    num_items: int
    num_missing: int = 0
    best: Mapping[str, float] = field(default_factory=dict)
    not_told: tuple[str, ...] = ()
    claims: tuple[Judged, ...] = ()

    def arm(self, name: str) -> Arm:
        """The arm of this name; StopIteration where there is none."""
        return next(arm for arm in self.arms if arm.name == name)

    @property
    def best_candidate(self) -> Arm | None:
        """The candidate with the best mean that could be chosen; None where there is none."""
        return next((arm for arm in self.arms if arm.kind == "candidate" and arm.gain and not arm.excluded), None)
