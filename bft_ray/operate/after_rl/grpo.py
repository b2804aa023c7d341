"""GRPO (Shao et al., arXiv 2402.03300) by TRL's trainer, on our tokens and with the exact-match reward."""

from __future__ import annotations

import importlib.util
import math
import tempfile
from dataclasses import dataclass
from typing import Any

from bft_ray.errors import BadInput, BftError
from bft_ray.evaluate.engine.worker import Loaded
from bft_ray.operate.after_rl.definition import Grpo
from bft_ray.operate.after_rl.items import Items
from bft_ray.operate.after_rl.reward import reward_of


@dataclass(frozen=True)
class Course:
    """What was seen in training.

    Args:
        rewards: mean over the sampled answers of each step.
        mixed: share of the prompts, over all steps, whose sampled answers differ in reward.
    """

    rewards: list[float]
    mixed: float


def require_trl() -> None:
    """Raises BadInput where TRL is not installed."""
    if importlib.util.find_spec("trl") is None:
        remedy = "Install it on all nodes: pip install 'bft-ray[rl]'."
        raise BadInput("trl", None, "installed: its GRPO trainer is the policy-gradient stage", remedy)


def run_grpo(loaded: Loaded, items: Items, answer: str, grpo: Grpo, seed: int, autocast: bool = False) -> Course:
    """Train the model in place.

    Prompts are the tokens of fine-tuning, and not what TRL's own
    template would make of them.

    Args:
        loaded: with weights in fp32: in bf16 steps as small as these would be rounded away.
        autocast: compute in bf16.

    Raises:
        BadInput: no TRL.
        BftError: a loss that is not finite.
    """
    require_trl()
    from datasets import Dataset
    from transformers.trainer_callback import PrinterCallback
    from trl import GRPOTrainer

    prompts = dict(zip(items.ids, items.prompts, strict=True))
    golds = dict(zip(items.ids, items.golds, strict=True))

    class OnTokens(GRPOTrainer):
        """A prompt is named by the id of its row."""

        def _tokenize_prompts(self, names: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
            return [prompts[name].tolist() for name in names], None, {}

    def exact_match(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float | None]:
        tokenizer, ends = loaded.context.tokenizer, loaded.eos_ids
        return [
            reward_of(own, golds[name], answer, tokenizer, ends)
            for name, own in zip(prompts, completion_ids, strict=True)
        ]

    loaded.model.generation_config.eos_token_id = list(loaded.eos_ids)
    with tempfile.TemporaryDirectory() as folder:
        trainer = OnTokens(
            model=loaded.model,
            reward_funcs=exact_match,
            args=_arguments(folder, grpo, seed, loaded.device, autocast),
            train_dataset=Dataset.from_dict({"prompt": items.ids}),
            processing_class=loaded.context.tokenizer,
        )
        trainer.remove_callback(PrinterCallback)  # what counts is in the record
        trainer.train()
    steps = [entry for entry in trainer.state.log_history if "reward" in entry]
    if not all(math.isfinite(entry.get("loss", 0.0)) for entry in steps):
        raise BftError("a loss of GRPO is not finite: lower grpo.learning_rate")
    loaded.model.eval()
    mixed = [1 - float(entry["frac_reward_zero_std"]) for entry in steps]
    return Course([float(entry["reward"]) for entry in steps], sum(mixed) / len(mixed))


def _arguments(folder: str, grpo: Grpo, seed: int, device: Any, autocast: bool) -> Any:
    from trl import GRPOConfig

    return GRPOConfig(
        folder,
        per_device_train_batch_size=grpo.prompts * grpo.generations // grpo.accumulation,
        gradient_accumulation_steps=grpo.accumulation,
        num_generations=grpo.generations,
        max_completion_length=grpo.max_new_tokens,
        temperature=grpo.temperature,
        top_k=0,
        beta=grpo.beta,
        learning_rate=grpo.learning_rate,
        lr_scheduler_type="constant",
        max_steps=grpo.steps,
        seed=seed,
        bf16=autocast,
        gradient_checkpointing=False,
        use_cpu=str(device) == "cpu",
        dataloader_pin_memory=False,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        log_completions=False,  # no text of the data anywhere
        disable_tqdm=True,
    )
