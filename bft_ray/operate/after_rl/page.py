"""The page of a study of GRPO after fine-tuning: the answer, reward before and after, each statement, each run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bft_ray.operate.after_rl.answer import Statement, Told, mixed_of, sentences
from bft_ray.page.model import Axis, Cell, Figure, Marks, Number, Page, Part, Section, Table, present
from bft_ray.study.report.arms import gain_cells
from bft_ray.study.report.verdicts import verdicts_figure


def after_rl_page(found: Told, when: str) -> Page:
    """The page.

    Args:
        when: the time that it tells.
    """
    study = found.study
    parts: list[Part] = present(_gains(found), _course(found), arms_table(found), statements_table(found.statements))
    num_statements = len(study.arms) + 2 * len(study.claims)
    parts.append(
        f"Reward: 1 where an answer, sampled at temperature {study.grpo.temperature:g}, is the right one, else 0. Paired by seed "
        f"and held-out item; the intervals of all {num_statements} statements hold together at {1 - study.alpha:.0%}. An arm "
        "that starts high has less room to improve: look at where arms end, too. Mixed: the share of prompts in GRPO whose "
        "sampled answers differ in reward; the others have no gradient."
    )
    return Page(
        title=f"bft-ray: {study.name}",
        above=f"Study `{study.name}` of GRPO after fine-tuning, as of {when}",
        question=study.question,
        answer=" ".join(sentences(found)),
        sections=[Section("answer", "Before and after", parts), Section("runs", "Runs", [_runs(found)])],
    )


def arms_table(found: Told) -> Table:
    """A row an arm: reward at the start and at the end, and the improvement."""
    rows: list[list[Cell]] = []
    for arm, runs in found.runs.items():
        one = found.improved[arm]
        ended = [run for run in runs if run.after]
        cells = [_mean([run.start for run in runs]), _mean([_of(run.before) for run in runs])]
        cells.append(_mean([_of(run.after) for run in ended]))
        mixed = mixed_of(runs)
        cells.append("" if mixed is None else Number(mixed, f"{mixed:.0%}"))
        rows.append([arm, *cells, *gain_cells(one.gain, one.why), one.verdict])
    head = [
        "arm",
        "start (training prompts)",
        "before",
        "after",
        "mixed",
        "improvement",
        "interval",
        "detectable",
        "improves",
    ]
    return Table(head, rows)


def statements_table(every: Sequence[Statement]) -> Table:
    """A row a statement: verdict, gain, interval, smallest detectable effect."""
    rows: list[list[Cell]] = [[one.what, one.verdict, *gain_cells(one.gain, one.why)] for one in every]
    return Table(["statement", "verdict", "gain", "interval", "detectable"], rows)


def _runs(found: Told) -> Table:
    rows: list[list[Cell]] = [
        [arm, str(run.seed), _mean([run.start]), _mean([_of(run.before)]), _mean([_of(run.after)] if run.after else []),
         Number(run.seconds, f"{run.seconds:.0f} s")]
        for arm, runs in found.runs.items()
        for run in runs
    ]  # fmt: skip
    return Table(["arm", "seed", "start (training prompts)", "before", "after", "took"], rows)


def _gains(found: Told) -> Figure | None:
    rows = [(one.what, one.verdict, one.gain) for one in [*found.improved.values(), *found.compared]]
    title = "Which arms improve, and which improve more"
    return verdicts_figure("gains", title, "Each statement with its gain and interval.", "reward", rows)


def _course(found: Told) -> Figure | None:
    marks = []
    strokes = ("line", "dash", "dots", "step")
    for place, (arm, runs) in enumerate(found.runs.items()):
        courses = [run.course for run in runs if run.course]
        if not courses:
            continue
        mean = np.mean([course[: min(map(len, courses))] for course in courses], axis=0)
        stroke, steps = strokes[place % len(strokes)], list(range(1, len(mean) + 1))
        marks.append(Marks(arm, steps, mean.tolist(), shape="none", stroke=stroke))  # type: ignore[arg-type]
    if not marks:
        return None
    ends = "; ".join(f"{one.label} from {one.y[0]:.3f} to {one.y[-1]:.3f}" for one in marks)
    return Figure(
        name="course",
        title="Reward of the sampled answers in training",
        alt=f"The mean over seeds at each step of GRPO: {ends}.",
        x=Axis("step"),
        y=Axis("reward"),
        marks=marks,
        text="The mean over seeds; each step asks other prompts, so single steps jump.",
    )


def _of(rewards: Mapping[str, float]) -> float:
    return float(np.mean(list(rewards.values())))


def _mean(values: Sequence[float]) -> Cell:
    return Number(float(np.mean(values)), f"{np.mean(values):.4f}") if values else ""
