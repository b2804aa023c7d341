"""The text of a search space for the splits of a user's rows."""

from __future__ import annotations

import json
from collections.abc import Sequence

from bft_ray.config import Config
from bft_ray.config.load import scalar
from bft_ray.config.steps import num_steps
from bft_ray.operate.init.plan import StudyPlan
from bft_ray.operate.init.split import CONFIRMATION, SHARES, TEST, TRAIN
from bft_ray.space.draft import CONFIRMATION_SEEDS, MARK, REDUCTION, grace_steps

SPACE = "search_space.yaml"
_FEW = 100  # training rows
_FORMS = "form, window, epsilon and cap of BFT suit"
_FAMILY = "token weight between plain fine-tuning and BFT, which anchor, window, epsilon and cap suit"
_TRIALS = {False: {True: 12, False: 18}, True: {True: 24, False: 36}}  # by family and few rows
_FIXED = "fixed: {loss.method: bft}  # what the parameters leave open\n"
_ONE_WINDOW = "# loss.window is not varied: the answers are so short that all windows are the same run"
_NO_CONFIRMATION = """\
# confirmation: there are too few rows for one. The study compares and chooses no champion: what looks best on so few
# items may be noise. With {least} different questions (or groups) and more `bft-ray init` adds it.
"""
_NO_TEST = (
    "  # test: too few rows for one. With {least} different questions (or groups) and more `bft-ray init` adds it.\n"
)


def space_text(plan: StudyPlan, config: Config) -> str:
    """YAML, every section with a comment; each parameter is on one line, because `bft-ray profile` rewrites these lines.

    Args:
        config: that it varies, in the file `plan.request.out` beside it.
    """
    num_train, is_family = len(plan.parts[TRAIN]), plan.request.space == "families"
    trials, steps = _TRIALS[is_family][num_train < _FEW], num_steps(config, [num_train])
    grace = grace_steps(steps, plan.metric)
    scheduler = (
        f"{{kind: asha, grace_steps: {grace}, reduction: {REDUCTION}}}  # of {steps} steps: the worse trials stop early"
        if grace
        else "{kind: none}  # a trial is too short to stop early"
    )
    return f"""\
{MARK}: which {_FAMILY if is_family else _FORMS} these rows?
# Run `bft-ray profile {plan.request.out.name}` first: it replaces the estimated windows and caps by the measured ones.
# What it would run and cost: bft-ray search {SPACE} --dry-run.
name: {scalar(plan.domain)}
config: {plan.request.out.name}  # beside this file
parameters:
{_family(plan) if is_family else _forms(plan)}
  optimizer.learning_rate: {_among(plan.settings.rates)}  # of the baselines sft, dft and bft too
{_FIXED if is_family else ""}objective: {{metric: {plan.metric}}}  # on the validation rows
budget: {{trials: {trials}}}  # the baselines run beside them, once a learning rate; the length is the config's
sampler: {{kind: tpe, seed: 0, startup_trials: 6}}
scheduler: {scheduler}
{_confirmation(plan)}"""


def _forms(plan: StudyPlan) -> str:
    """The published forms of BFT."""
    return f"""\
  loss.method: {{kind: categorical, values: [bft, bft_inverse, bft_group]}}
{_window(plan)}
  loss.epsilon: {{kind: float, low: 0.01, high: 0.2, log: true, when: {{loss.method: [bft_inverse]}}}}
  loss.weight_cap: {{kind: categorical, values: [2.0, 4.0, 8.0, null], when: {{loss.method: [bft_inverse]}}}}"""


def _family(plan: StudyPlan) -> str:
    """Token weights from plain fine-tuning to BFT, as in `search_spaces/families.yaml`."""
    powered = "{loss.token_weight: [power, prior, entropy]}"
    return f"""\
  loss.token_weight: {{kind: categorical, values: [none, power, prior, entropy, threshold, group]}}
  loss.token_power: {{kind: float, low: 0.1, high: 4.0, log: true, when: {powered}}}  # 0: plain, 1: the probability
  loss.token_threshold: {{kind: float, low: 0.01, high: 0.5, log: true, when: {{loss.token_weight: [threshold]}}}}
  loss.anchor: {{kind: categorical, values: [0.0, 0.03, 0.3]}}  # above 0: one more forward pass a step
  loss.sample_weight: {{kind: categorical, values: [none, complement, inverse]}}
{_window(plan, ", when: {loss.sample_weight: [complement, inverse]}")}
  loss.epsilon: {{kind: float, low: 0.01, high: 0.2, log: true, when: {{loss.sample_weight: [inverse]}}}}
  loss.weight_cap: {{kind: categorical, values: [2.0, 4.0, null], when: {{loss.sample_weight: [inverse]}}}}"""


def _window(plan: StudyPlan, when: str = "") -> str:
    if not plan.windows:
        return f"  {_ONE_WINDOW}"
    return f"  loss.window: {_among(plan.windows)[:-1]}{when}}}  # tokens; estimated"


def _confirmation(plan: StudyPlan) -> str:
    if CONFIRMATION not in plan.paths:
        return _NO_CONFIRMATION.format(least=SHARES[1][0])
    test = (
        f"  test:  # measured once, for the champion and the default\n{_where(plan, TEST)}"
        if TEST in plan.paths
        else ""
    )
    return f"""\
confirmation:  # fresh runs of the best trials and of the baselines, on rows that the search has not seen
  top_k: 2
  seeds: [{", ".join(map(str, CONFIRMATION_SEEDS))}]
  overrides:
{_where(plan, CONFIRMATION)}{test or _NO_TEST.format(least=SHARES[0][0])}"""


def _where(plan: StudyPlan, split: str) -> str:
    field = "evaluation.tasks.0.path" if plan.is_choice else "data.validation.0.path"
    return f"    {field}: {json.dumps(str(plan.paths[split].resolve()), ensure_ascii=False)}\n"


def _among(values: Sequence[float]) -> str:
    return f"{{kind: categorical, values: [{', '.join(map(str, values))}]}}"
