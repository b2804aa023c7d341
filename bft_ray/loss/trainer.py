"""The loss in transformers' `Trainer` and TRL's `SFTTrainer`, right under accumulation and on several ranks.

    class BftTrainer(CountSamplesMixin, Trainer):
        pass

    BftTrainer(model, args, compute_loss_func=compute_loss_func(LossConfig(method="bft")), ...)

Trainer gives a loss function the number of *tokens* of the whole step. A mean over samples, or of their
weights, is not to be had from that: hence the mixin, which counts samples. Without it the loss function
computes what it can compute exactly and refuses the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bft_ray.config import LossConfig
from bft_ray.errors import BadInput
from bft_ray.loss.batch import check_batch, check_config, row_index
from bft_ray.loss.reference import IGNORE, LossSums, combine, loss_sums, normalisation

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object

#: beginnings of the types of outputs whose logits are of the token in their own place
_OF_THIS_TOKEN = ("Seq2Seq", "Masked", "TokenClassifier")
#: what collators give of packed batches, beside `position_ids`
_OF_PACKED = ("cu_seq_lens_q", "seq_idx")
_MIX_IN = "Mix `CountSamplesMixin` into the trainer: class BftTrainer(CountSamplesMixin, Trainer)."


def compute_loss_func(config: LossConfig) -> TrainerLoss:
    """The `compute_loss_func` argument of transformers' Trainer and TRL's SFTTrainer: see `TrainerLoss`.

    Raises:
        BadInput: settings that read the weights that training starts from: a Trainer does not give them to the loss.
    """
    check_config(config)
    if config.reads_prior or config.anchor:
        field, value = ("token_weight", "prior") if config.reads_prior else ("anchor", config.anchor)
        raise BadInput(
            f"loss.{field}",
            value,
            "left out in a Trainer, which hands over nothing of the weights that training starts from",
            "Use `bft-ray train`, or in a loop of your own bft_loss(..., start_logits=...).",
        )
    return TrainerLoss(config)


class TrainerLoss:
    """The loss that a Trainer calls with the model's outputs, the labels and its count of supervised tokens.

    With `CountSamplesMixin` every setting is exact. Without it:

    - `aggregate: token`, not normalised: exact under accumulation, and on several ranks with
      `average_tokens_across_devices=True` (the default);
    - everything else: exact where the batch of one process is the whole of the step, refused where it is not;
    - each row counts as one sample: packed rows, whose samples must be separated, need the mixin.

    Under mixed precision accelerate hands over fp32 logits, so there `token_weight: prob` equals `exp_nll`.
    """

    def __init__(self, config: LossConfig):
        self.config = config

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """The loss of one micro-batch: [] with gradient.

        Args:
            outputs: of the model, with `logits` [B, T, V].
            labels: [B, T], not shifted, -100 where not supervised.
            num_items_in_batch: supervised tokens of the whole step, or None when this is all of it.

        Raises:
            BadInput: what `bft_loss` refuses; settings that cannot be computed exactly without the mixin.
        """
        config = self.config
        sums = _sums(outputs, labels, row_index(labels), len(labels), config)
        if num_items_in_batch is None:
            return combine(sums.loss_sum, sums.weight_sum, sums.num_samples, sums.num_tokens, config)
        num_items = torch.as_tensor(num_items_in_batch, device=labels.device)
        if num_items.numel() > 1:
            raise _data_parallel(num_items.numel())
        if config.aggregate == "token" and not config.normalise:
            return combine(sums.loss_sum, None, sums.num_samples, num_items, config)
        if _world_size() > 1 or bool(num_items != sums.num_tokens):
            field, value = ("normalise", True) if config.normalise else ("aggregate", config.aggregate)
            raise BadInput(
                f"loss.{field}",
                value,
                "but this step has more micro-batches or ranks, and a Trainer counts only their tokens, not "
                "their samples",
                _MIX_IN,
            )
        return combine(sums.loss_sum, sums.weight_sum, sums.num_samples, sums.num_tokens, config)


@dataclass
class _Step:
    """One optimizer step: all its micro-batches on all ranks are one global batch."""

    num_samples: Tensor  # [] of the global batch
    num_tokens: Tensor  # [] of the global batch
    num_micro_batches: int  # of this rank
    num_done: int = 0
    weight_sum: Tensor | float = 0.0  # of this rank so far
    loss: Tensor | float = 0.0  # of this rank so far, not normalised


class CountSamplesMixin(_Trainer):
    """Makes a Trainer count the samples and tokens of a whole step, over its micro-batches and ranks.

    Then loss and gradient do not depend on how the step is cut up. Name it before the trainer class; the
    `compute_loss_func` of the trainer must come from `bft_ray.loss.compute_loss_func`:

        class BftTrainer(CountSamplesMixin, Trainer): ...
        class BftSFTTrainer(CountSamplesMixin, SFTTrainer): ...

    A row is one sample, unless the collator gives `position_ids` (packing, padding-free batches): then each
    restart of the positions begins a sample. A sample without a supervised token counts in nothing. Leave
    `TrainingArguments.use_cache` off: with a cache, packed samples attend to their neighbours.

    `normalise` needs the mean sample weight of the step, known only after the last micro-batch: gradients
    are accumulated without it and scaled then, before clipping. This needs the gradients in
    `parameter.grad`, so it is refused with DeepSpeed under accumulation. The logged loss is that of the
    step; during evaluation it is that of each batch by itself.

    Raises:
        BadInput: when made with another loss function, label smoothing, wrapped packing (TRL), an encoder-decoder model,
            `DataParallel`, context or sequence parallelism, or `normalise` with DeepSpeed and accumulation; in training, on
            batches without labels, and on packed ones without `position_ids`.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._bft_step: _Step | None = None
        _check_trainer(self)

    @property
    def _loss_config(self) -> LossConfig:
        assert isinstance(self.compute_loss_func, TrainerLoss)  # as checked when made
        return self.compute_loss_func.config

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list, Tensor | int | None]:
        """All micro-batches of the next step, as Trainer fetches them; counts their samples on the way."""
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        counts = torch.zeros(2, dtype=torch.int64, device=self.args.device)
        for batch in batches:
            counts += _count(batch).to(counts.device)
        num_samples, num_tokens = self.accelerator.reduce(counts, "sum")
        self._bft_step = _Step(num_samples, num_tokens, len(batches))
        return batches, num_items

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of one micro-batch: in training its part of the step's. Replaces the trainer's own."""
        config = self._loss_config
        labels, sample_index, num_samples = _samples(inputs)
        inputs = {name: value for name, value in inputs.items() if name != "labels"}
        outputs = model(**inputs)
        sums = _sums(outputs, labels, sample_index, num_samples, config)
        step = self._bft_step
        if step is None or not model.training:
            loss = combine(sums.loss_sum, sums.weight_sum, sums.num_samples, sums.num_tokens, config)
            return (loss, outputs) if return_outputs else loss

        step.weight_sum = step.weight_sum + sums.weight_sum
        whole = step.num_micro_batches == 1  # then the mean weight is known before the backward pass
        weight_sum = self.accelerator.reduce(sums.weight_sum, "sum") if whole and config.normalise else None
        loss = combine(sums.loss_sum, weight_sum, step.num_samples, step.num_tokens, config)
        loss = loss * self.accelerator.num_processes  # ranks average their gradients, the loss is their sum
        return (loss, outputs) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Forward and backward of one micro-batch; after the last one the gradients are normalised."""
        loss = super().training_step(*args, **kwargs)
        step = self._bft_step
        if step is None or step.num_micro_batches == 1 or not self._loss_config.normalise:
            return loss
        step.num_done += 1
        step.loss = step.loss + loss
        if step.num_done < step.num_micro_batches:
            return loss
        weight_sum = self.accelerator.reduce(step.weight_sum, "sum")
        scale = normalisation(weight_sum, step.num_samples, self._loss_config).item()
        for parameter in self.accelerator.unwrap_model(self.model).parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(scale)
        return loss + (scale - 1) * step.loss  # Trainer logs the sum over the micro-batches


def _sums(outputs: Any, labels: Tensor, sample_index: Tensor, num_samples: int, config: LossConfig) -> LossSums:
    if type(outputs).__name__.startswith(_OF_THIS_TOKEN):
        raise _not_causal(type(outputs).__name__)
    logits = outputs[0] if isinstance(outputs, tuple) else outputs["logits"]
    check_batch(logits, labels)
    return loss_sums(logits, labels, sample_index, num_samples, config)


def _samples(inputs: dict[str, Any]) -> tuple[Tensor, Tensor, int]:
    """Labels [B, T], sample of each position [B, T], and the number of samples (empty ones included)."""
    labels = inputs.get("labels")
    if labels is None:
        raise BadInput("labels", None, "part of every batch", "Use a data collator that gives `labels`.")
    position_ids = inputs.get("position_ids")
    if position_ids is None or position_ids.shape != labels.shape:
        if packed := [name for name in _OF_PACKED if inputs.get(name) is not None]:
            rule = f"given with {packed[0]}, for each token of a packed batch: samples are told apart by it"
            raise BadInput("position_ids", None, rule, "Use DataCollatorWithFlattening(return_position_ids=True).")
        return labels, row_index(labels), len(labels)
    begins = torch.ones_like(labels, dtype=torch.bool)
    begins[:, 1:] = position_ids.diff(dim=1) != 1  # padding too: samples without a supervised token
    sample_index = begins.flatten().cumsum(0).view_as(labels) - 1
    return labels.masked_fill(begins, IGNORE), sample_index, labels.numel()


def _count(inputs: dict[str, Any]) -> Tensor:
    """[2] int64: samples with a supervised token, and supervised tokens, of one micro-batch."""
    labels, sample_index, num_samples = _samples(inputs)
    supervised = (labels[:, 1:] != IGNORE).flatten().long()
    tokens = torch.zeros(num_samples, dtype=torch.int64, device=labels.device)
    tokens.scatter_add_(0, sample_index[:, 1:].flatten(), supervised)
    return torch.stack([(tokens > 0).sum(), tokens.sum()])


def _check_trainer(trainer: Any) -> None:
    if not isinstance(trainer.compute_loss_func, TrainerLoss):
        raise BadInput(
            "compute_loss_func",
            type(trainer.compute_loss_func).__name__,
            "that of bft-ray where `CountSamplesMixin` is used",
            "Pass compute_loss_func=bft_ray.loss.compute_loss_func(LossConfig(...)) to the trainer.",
        )
    if getattr(getattr(trainer.model, "config", None), "is_encoder_decoder", False):
        raise _not_causal(type(trainer.model).__name__)
    if smoothing := trainer.args.label_smoothing_factor:
        rule = "0: the loss of bft-ray has none, and a Trainer would leave it out without a word"
        raise BadInput("label_smoothing_factor", smoothing, rule, "Leave it out of the TrainingArguments.")
    config, strategy = trainer.compute_loss_func.config, getattr(trainer.args, "packing_strategy", None)
    by_sample = config.aggregate == "sample" or config.sample_weight != "none" or config.token_weight == "group"
    if by_sample and strategy == "wrapped" and trainer.args.packing:
        rule = "bfd or bfd_split: wrapped rows do not show where a sample begins, and cut samples"
        raise BadInput("packing_strategy", strategy, rule, "Use another strategy, or the loss `sft` or `dft`.")
    if trainer.args.n_gpu > 1:
        raise _data_parallel(trainer.args.n_gpu)
    if trainer.get_cp_size() * trainer.get_sp_size() > 1:
        raise BadInput(
            "parallelism_config",
            "context or sequence parallelism",
            "data or tensor parallelism: a window of a sample cannot be cut over ranks",
            "Leave cp_size and sp_size at 1.",
        )
    accumulates = trainer.args.gradient_accumulation_steps > 1
    if config.normalise and trainer.is_deepspeed_enabled and accumulates:
        raise BadInput(
            "loss.normalise",
            True,
            "false in a Trainer with DeepSpeed under accumulation, whose gradients it cannot scale",
            "Use gradient_accumulation_steps=1, FSDP or DDP, or `bft-ray train`, which can.",
        )


def _not_causal(name: str) -> BadInput:
    rule = "of a causal language model, whose logits are of the next token: labels are shifted here"
    return BadInput("model", name, rule, "Use a decoder (Llama, Qwen, Gemma ...).")


def _data_parallel(num_gpus: int) -> BadInput:
    return BadInput(
        "n_gpu",
        num_gpus,
        "1: torch's DataParallel splits batches where a loss function cannot see it",
        "Start one process per GPU: torchrun or accelerate launch.",
    )


def _world_size() -> int:
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
