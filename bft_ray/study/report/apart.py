"""Arms of a claim about one metric whose settings another metric chose: a difference may then be that of the settings."""

from __future__ import annotations

from collections.abc import Sequence

from bft_ray.config.metrics import format_value
from bft_ray.page.model import Finding
from bft_ray.space.claims import Claim
from bft_ray.space.definition import SearchSpace
from bft_ray.study.confirm.choice import Choice
from bft_ray.study.records.record import Records
from bft_ray.study.records.store import BASELINES, CONFIRMATION


def tuned_apart(claim: Claim, parts: Records, space: SearchSpace) -> dict[str, tuple[object, object]]:
    """Tuned fields in which the two arms of a claim differ: name -> value of the first and of the second. {} for a claim about the
    objective, for which each arm has its best.
    """
    if claim.metric is None or claim.metric == space.objective.metric:
        return {}
    arms = {record.extra.get("arm", record.name): record.assignment for record in parts.get(CONFIRMATION, ())}
    if not {claim.better, claim.than} <= arms.keys():
        return {}
    own, other = arms[claim.better], arms[claim.than]
    return {name: (own.get(name), other.get(name)) for name in _tuned(space) if own.get(name) != other.get(name)}


def _tuned(space: SearchSpace) -> list[str]:
    """The fields that each baseline is tuned over."""
    return [name for name in space.parameters if not name.startswith("loss.")]


def fields_text(names: Sequence[str]) -> str:
    """Names of fields without their sections."""
    return " and ".join(dict.fromkeys(name.rpartition(".")[2] for name in names))


def differ(parts: Records, space: SearchSpace, choice: Choice | None) -> Finding | None:
    """A claim about another metric than the objective, whose arms differ in what was tuned."""
    texts = []
    for claim in space.claims:
        if found := tuned_apart(claim, parts, space):
            told = ", ".join(f"{fields_text([name])} {a} with {b}" for name, (a, b) in found.items())
            texts.append(f"The claim that {claim} compares {told}. {_beside(claim, parts, space)}".strip())
    if not texts:
        return None
    return Finding(
        "Arms of a claim differ in settings that another metric chose",
        f"{space.objective.metric} chose the settings of each arm. {' '.join(texts)}",
        "Read such a claim beside the values at equal settings. To compare at one setting, give it in `fixed` instead of "
        "`parameters`; to choose settings that keep the other metric, add a constraint on it.",
    )


def _beside(claim: Claim, parts: Records, space: SearchSpace) -> str:
    """The metric of the claim at equal settings of both arms, from the tuning."""
    assert claim.metric is not None
    fields = _tuned(space)
    values: dict[tuple[object, ...], dict[str, float]] = {}
    for record in parts.get(BASELINES, ()):
        arm = record.extra.get("baseline")
        if arm in (claim.better, claim.than) and claim.metric in record.metrics:
            at = tuple(record.assignment.get(name) for name in fields)
            values.setdefault(at, {})[arm] = record.metrics[claim.metric]
    shown = [
        f"{format_value(claim.metric, own[claim.better])} and {format_value(claim.metric, own[claim.than])} "
        f"at {' and '.join(map(str, at))}"
        for at, own in sorted(values.items(), key=str)
        if len(own) == 2
    ]
    return f"In the tuning, with one seed, {claim.metric} is {', '.join(shown)}." if shown else ""
