"""Answers judged by a rubric."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from bft_ray.config.base import Section, file_field, folder_field
from bft_ray.config.tasks.base import FILE, Decoding, ItemKey, TaskBase
from bft_ray.config.tasks.shared import NUM_EMPTY, NUM_ITEMS
from bft_ray.metrics import Mean, Metric


class JudgeConfig(Section):
    """An OpenAI-compatible endpoint that judges answers."""

    url: str = Field(description="base URL of the API, e.g. http://127.0.0.1:8000/v1")
    model: str = Field(description="model name that the endpoint knows")
    api_key_env: str | None = Field(
        None, description="environment variable that holds the API key; never the key itself"
    )
    concurrency: int = Field(8, ge=1, description="requests at once")
    retries: int = Field(4, ge=0, description="further tries of a request that failed")
    timeout_s: float = Field(60.0, gt=0, description="longest wait for one answer")


class RubricTask(TaskBase):
    """Answers judged by a rubric (HealthBench form): rows of prompt and rubric [{criterion, points, tags}]."""

    METRICS: ClassVar = (
        Metric(
            "rubric_score",
            "share",
            "higher",
            "points of the criteria met, of the positive points; mean over items, clipped to [0, 1]",
            items=Mean(may_lack=True),
        ),
        Metric(
            "rubric_score_deviation",
            "share",
            "none",
            "standard deviation of rubric_score over 1,000 bootstrap draws of the items, as HealthBench tells it",
        ),
        Metric(
            "length_adjusted_score",
            "share",
            "higher",
            "rubric score less 0.0147 for each 500 characters over 2,000 (HealthBench Professional); mean, clipped to [0, 1]",
            items=Mean(may_lack=True),
        ),
        Metric("tag_<tag>", "share", "none", "rubric score of the items, or of the criteria, with this tag"),
        Metric("criteria_met", "share", "none", "share of the judged criteria that are met, wanted or not"),
        Metric("judge_agreement", "share", "none", "share of the criteria on which two judges agree"),
        Metric("judge_kappa", "", "none", "agreement of two judges beyond chance: Cohen's kappa"),
        Metric("num_unjudged", "items", "none", "criteria without a verdict; their items are left out of the score"),
        NUM_ITEMS,
        NUM_EMPTY,
    )
    KEY: ClassVar = ItemKey("columns", ("prompt",))

    kind: Literal["rubric"] = Field("rubric", description="what this task is")
    path: str = file_field(description=FILE)
    judges: list[JudgeConfig] = Field(
        min_length=1, max_length=2, description="one judge, or two whose agreement is reported"
    )
    consent: bool = Field(
        False, description="answers may be sent to an endpoint that is not on this machine; they may concern patients"
    )
    max_requests: int = Field(1000, ge=1, description="budget: the evaluation stops before it asks more often")
    cache: str | None = folder_field(None, description="folder of earlier verdicts; null: none kept")
    template: str | None = file_field(
        None,
        description="text file of what a judge is asked, with <<conversation>> and <<rubric_item>> in it, such as "
        "HealthBench's published one; null: this project's own",
    )
    decoding: Decoding = Field(Decoding(max_new_tokens=512), description="how its answers are generated")
