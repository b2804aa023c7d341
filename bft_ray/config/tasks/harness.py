"""Tasks of lm-evaluation-harness."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from bft_ray.config.base import file_field
from bft_ray.config.tasks.base import NAME, TaskBase
from bft_ray.config.tasks.shared import NUM_ITEMS, NUM_TRUNCATED
from bft_ray.metrics import Metric


class HarnessTask(TaskBase):
    """Tasks of lm-evaluation-harness by name, when that library is installed."""

    METRICS: ClassVar = (
        Metric("<set>/acc", "share", "higher", "lm-evaluation-harness: share of items whose likeliest option is right"),
        Metric(
            "<set>/acc_norm",
            "share",
            "higher",
            "lm-evaluation-harness: the same, log-likelihoods divided by characters",
        ),
        Metric("<set>/acc_bytes", "share", "higher", "lm-evaluation-harness: the same, divided by bytes"),
        Metric("<set>/exact_match", "share", "higher", "lm-evaluation-harness: share of answers that are the gold one"),
        Metric("<set>/exact_match_<set>", "share", "higher", "lm-evaluation-harness: the same, after its filter"),
        Metric("<set>/f1", "share", "higher", "lm-evaluation-harness: F1"),
        Metric("<set>/mcc", "", "higher", "lm-evaluation-harness: Matthews correlation", items=None),
        Metric("<set>/bleu", "", "higher", "lm-evaluation-harness: BLEU, 0 to 100", items=None),
        Metric("<set>/brier_score", "", "lower", "lm-evaluation-harness: Brier score"),
        Metric("<set>/bits_per_byte", "bits/byte", "lower", "lm-evaluation-harness: bits per byte of text"),
        Metric("<set>/byte_perplexity", "", "lower", "lm-evaluation-harness: perplexity a byte", items=None),
        Metric("<set>/word_perplexity", "", "lower", "lm-evaluation-harness: perplexity a word", items=None),
        Metric("<set>/perplexity", "", "lower", "lm-evaluation-harness: perplexity", items=None),
        Metric("<set>/<set>", "", "none", "lm-evaluation-harness: another metric; ask its task which way is better"),
        NUM_ITEMS,
        NUM_TRUNCATED,
    )

    kind: Literal["harness"] = Field("harness", description="what this task is")
    name: str = Field("harness", pattern=NAME, description="prefix of its metrics")
    tasks: list[str] = Field(min_length=1, description="task names, e.g. mmlu, cmmlu")
    include_path: str | None = file_field(None, description="folder of further task files")
    num_fewshot: int | None = Field(None, ge=0, description="examples in the prompt; null: the task's own number")

    def judged(self) -> list[str]:
        """`<name>/`: whatever its tasks measure."""
        return [f"{self.name}/"]

    def measured_on(self) -> list[Any]:
        """The names of its tasks say what is measured."""
        return list(self.tasks)
