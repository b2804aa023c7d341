"""The loss settings and the named methods: every method is a set of defaults over the same fields."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from bft_ray.config.base import Section, rule

Method = Literal["sft", "dft", "bft_no_sample", "bft_no_token", "bft", "bft_group", "bft_inverse"]

TokenWeight = Literal["none", "prob", "exp_nll", "group", "power", "prior", "entropy", "threshold"]

#: Token weights that `token_power` is the exponent of.
POWERED = ("power", "prior", "entropy")

#: The settings of each named method. "bft" equals the official code of arXiv 2511.21075 (weight 1 - c),
#: "bft_inverse" the paper's text (weights inverse to the confidence), "bft_group" its third version.
METHODS: dict[str, dict[str, Any]] = {
    "sft": dict(token_weight="none", sample_weight="none", aggregate="token"),
    "dft": dict(token_weight="exp_nll", sample_weight="none", aggregate="token"),
    "bft_no_sample": dict(token_weight="exp_nll", sample_weight="none", aggregate="sample"),
    "bft_no_token": dict(token_weight="none", sample_weight="complement", aggregate="sample"),
    "bft": dict(token_weight="exp_nll", sample_weight="complement", aggregate="sample"),
    "bft_group": dict(token_weight="group", sample_weight="complement", confidence="arithmetic", aggregate="sample"),
    "bft_inverse": dict(token_weight="exp_nll", sample_weight="inverse", aggregate="sample"),
}


class LossConfig(Section):
    """Which loss, and its settings. Fields that are not given take the defaults of `method`.

    Formulas: `bft_ray.loss` (arXiv 2511.21075; official code; DFT is arXiv 2508.05629).
    Raises BadConfig/ValidationError for values out of range and for settings that could never act.
    """

    method: Method = Field("bft", description="named set of defaults over the fields below")
    token_weight: TokenWeight = Field(
        "exp_nll",
        description="weight of each token's loss: 1, its probability p (two roundings), p relative to its group, a power of p, "
        "of p under the starting weights, or of the entropy, or 1 where p reaches a threshold, else 0",
    )
    token_power: float = Field(
        1.0,
        ge=0,
        le=4,
        description="exponent of the `power`, `prior` and `entropy` token weights; 0: all weights are 1",
    )
    entropy_top_k: int = Field(20, ge=2, description="likeliest tokens whose entropy the `entropy` token weight takes")
    token_threshold: float = Field(
        0.1, ge=0, lt=1, description="least probability of a token that counts in the `threshold` token weight"
    )
    token_epsilon: float = Field(1e-6, gt=0, description="added to the group mean in the `group` token weight")
    token_cap: float = Field(1.0, gt=0, description="largest `group` token weight")
    confidence: Literal["geometric", "arithmetic"] = Field(
        "geometric", description="mean of a window: of log-probabilities (official code) or of probabilities (paper)"
    )
    window: int = Field(
        256, ge=1, le=2**31 - 1, description="tokens in the sliding window of the confidence, and in a group"
    )
    window_alignment: Literal["trailing", "centered"] = Field(
        "trailing", description="position of the group of the `group` token weight: up to its token, or around it"
    )
    sample_weight: Literal["none", "complement", "inverse"] = Field(
        "complement", description="weight of each sample: 1, 1 - c^gamma, or 1 / (c^gamma + epsilon)"
    )
    gamma: float = Field(1.0, gt=0, description="exponent of the confidence")
    epsilon: float = Field(0.05, gt=0, description="added to the confidence in the `inverse` weight")
    weight_cap: float | None = Field(
        None, gt=0, description="largest sample weight before normalising; null: none (default: 8 for `inverse`)"
    )
    normalise: bool = Field(
        False, description="divide sample weights by their mean over the global batch (default: on for `inverse`)"
    )
    aggregate: Literal["sample", "token"] = Field(
        "sample", description="mean over samples of per-sample means, or mean over all supervised tokens"
    )
    anchor: float = Field(
        0.0,
        ge=0,
        description="times KL(p0 || p) is added to the loss of each token, p0 under the starting weights; 0: no anchor",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_from_method(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        method = given.get("method", "bft")
        filled = (METHODS.get(method, {}) if isinstance(method, str) else {}) | given
        inverse = filled.get("sample_weight") == "inverse"
        filled.setdefault("normalise", inverse)
        filled.setdefault("weight_cap", 8.0 if inverse else None)
        return filled

    @model_validator(mode="after")
    def _cap_can_bind(self) -> LossConfig:
        if self.sample_weight == "complement" and self.weight_cap is not None and self.weight_cap >= 1:
            raise rule(
                "weight_cap",
                self.weight_cap,
                "below 1 with `sample_weight: complement`, whose weights 1 - c^gamma never reach 1",
                "Leave it out, or use `sample_weight: inverse`.",
            )
        return self

    @property
    def reads_prior(self) -> bool:
        """Whether the loss reads the log-probabilities of the tokens under the starting weights."""
        return self.token_weight == "prior" and self.token_power > 0

    def own_fields(self) -> dict[str, Any]:
        """The fields that have an effect and are otherwise than the method has them."""
        usual, unused = LossConfig(method=self.method), {"method", *self.unused_fields()}
        values = {name: getattr(self, name) for name in LossConfig.model_fields if name not in unused}
        return {name: value for name, value in values.items() if value != getattr(usual, name)}

    def unused_fields(self) -> list[str]:
        """Names of the fields that have no effect under these settings (for a notice, and to find duplicates)."""
        unused = []
        if self.token_weight not in POWERED:
            unused += ["token_power"]
        if self.token_weight != "entropy" or self.token_power == 0:
            unused += ["entropy_top_k"]
        if self.token_weight != "threshold":
            unused += ["token_threshold"]
        if self.token_weight != "group":
            unused += ["token_epsilon", "token_cap", "window_alignment"]
        if self.sample_weight == "none":
            unused += ["confidence", "gamma"]
            if self.weight_cap is None or self.weight_cap >= 1 or self.normalise:  # else all weights are the cap
                unused += ["weight_cap", "normalise"]
        if self.sample_weight != "inverse":
            unused += ["epsilon"]
        if self.sample_weight == "none" and self.token_weight != "group":
            unused += ["window"]
        return unused
