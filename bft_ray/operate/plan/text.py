"""The plan as text: what the config needs, by ZeRO stage and offload, and which set-ups fit which GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bft_ray.config import Config
from bft_ray.errors import BadInput
from bft_ray.operate.plan.fit import Fit, available_bytes, size
from bft_ray.operate.plan.setups import GIB, Need, Planner, Setup
from bft_ray.operate.plan.states import Sizes

CARDS_GIB = (16, 24, 40, 48, 80, 140)
_MOST_GIB = 10_000
_STAGES = (
    ("zero0", "none"), ("zero1", "none"), ("zero2", "none"), ("zero3", "none"), ("zero2", "optimizer"), ("zero3", "all"),
)  # fmt: skip
_NAMES = {True: "LoRA", False: "full"}


def cards(given: str | None) -> Sequence[float]:
    """GiB of GPUs: as given, e.g. `24,80`, else of those here, else the usual ones.

    Raises:
        BadInput: no numbers above 0.
    """
    import torch

    if given:
        try:
            found = [float(word) for word in given.split(",")]
        except ValueError:
            found = []
        if not found or not all(0 < gib <= _MOST_GIB for gib in found):
            rule = f"numbers above 0 and at most {_MOST_GIB:,}, with commas between them"
            raise BadInput("--gpu-gib", given, rule, "Example: --gpu-gib 24,80.")
        return found
    here = {torch.cuda.get_device_properties(one).total_memory / GIB for one in range(torch.cuda.device_count())}
    return sorted(here) or CARDS_GIB


def plan_text(config: Config, is_gpu: bool, cards_gib: Sequence[float], most_workers: int) -> str:
    """The whole plan; errors as `Planner.need`.

    Args:
        cards_gib: memory of the GPUs to look at, in GiB.
        most_workers: GPUs of the largest set-up.
    """
    planner = Planner(config, is_gpu)
    own = planner.need(Setup.of(config))
    lines = [
        *_model(planner, config),
        *(f"note    {each}" for each in planner.notes),
        *_own(own, Fit(own, is_gpu, available_bytes(config, is_gpu))),
    ]
    lines += ["", *_table(planner, config, own.setup)]
    if is_gpu:
        for gib in cards_gib:
            lines += ["", f"GPUs of {gib:g} GiB, at most {most_workers}"]
            for lora in (True, False):
                lines += _chosen(planner, lora, gib * GIB, most_workers)
        lines += ["", "computed for GPUs, and not checked there; `bft-ray train CONFIG OVERRIDES` trains in a set-up"]
    return "\n".join(lines)


def _model(planner: Planner, config: Config) -> list[str]:
    full, lora = planner.sizes(False), planner.sizes(True)
    name = (planner.described.architectures or [planner.described.model_type])[0]
    return [
        f"model   {name}, {full.parameters:,} parameters, {config.model.dtype}",
        *_packed(lora, config),
        f"LoRA    trains {lora.trained:,} parameters ({lora.trained / lora.parameters:.2%} of {lora.parameters:,})",
    ]


def _packed(sizes: Sizes, config: Config) -> list[str]:
    if not sizes.packed:
        return []
    return [
        f"{config.model.quantization:<8}with LoRA {sizes.packed:,} of them are in 4 bits, {size(sizes.packed_bytes)}; "
        "refused under zero3, and without LoRA"
    ]


def _own(need: Need, fit: Fit) -> list[str]:
    terms = {**need.states.held, **need.states.beside_activations, "activations": need.activations_bytes}
    each = ", ".join(f"{name} {size(count)}" for name, count in terms.items() if count)
    lines = [f"config  {_words(need.setup)}", f"needs   {fit}", f"        {each}"]
    if need.states.update_bytes > sum(need.states.beside_activations.values()) + need.activations_bytes:
        lines.append(f"        the peak is in the update, which holds {size(need.states.update_bytes)} beside them")
    return lines


def _table(planner: Planner, config: Config, own: Setup) -> list[str]:
    """Bytes at the peak by stage and offload, with activations kept and with checkpointing, LoRA and full."""
    columns = [(lora, checkpointing) for lora in (True, False) for checkpointing in (False, True)]
    rows = {}
    for preset, offload in _STAGES:
        if preset == "zero0" and config.model.dtype == "bf16":
            continue
        needs = [
            planner.need(replace(own, lora=lora, preset=preset, offload=offload, checkpointing=checkpointing))
            if planner.may_be(lora, preset)
            else None
            for lora, checkpointing in columns
        ]
        name = preset + ("" if offload == "none" else f", offload {offload}")
        rows[name] = [need.gpu_bytes if need else 0 for need in needs]
        rows[name] += [need.states.host_bytes if need else 0 for need in needs[::2]]
    unit, word = (GIB, "GiB") if max(map(max, rows.values())) >= GIB else (1 << 20, "MiB")
    workers = f"{own.num_workers} worker{'s' if own.num_workers > 1 else ''}"
    heads = [f"{_NAMES[lora]}{', ckpt' if checkpointing else ''}" for lora, checkpointing in columns]
    lines = [
        f"{f'{word} each, {workers}':<25}" + "".join(f"{head:>12}" for head in [*heads, "LoRA, host", "full, host"])
    ]
    for name, counts in rows.items():
        lines.append(f"{name:<25}" + "".join(f"{f'{count / unit:,.1f}' if count else '-':>12}" for count in counts))
    return lines


def _chosen(planner: Planner, lora: bool, memory_bytes: float, most_workers: int) -> list[str]:
    name = _NAMES[lora]
    smallest = planner.smallest(lora, memory_bytes, most_workers)
    if smallest is None:
        return [f"  {name:<5}fits in no set-up of these"]
    recommended = planner.recommended(lora, memory_bytes, most_workers)
    lines = [f"  {name:<5}smallest     {_fitting(smallest)}"]
    if recommended is None:
        return [*lines, f"  {'':<5}recommended  the same: without offload none fits"]
    if recommended.setup == smallest.setup:
        lines = [f"  {name:<5}smallest and recommended: {_fitting(recommended)}"]
    else:
        lines.append(f"  {'':<5}recommended  {_fitting(recommended)}")
    return [*lines, f"  {'':<5}             {' '.join(recommended.setup.overrides())}"]


def _fitting(need: Need) -> str:
    return f"{_words(need.setup)}: {size(need.gpu_bytes)}"


def _words(setup: Setup) -> str:
    parts = [
        f"{setup.num_workers} worker{'s' if setup.num_workers > 1 else ''}",
        _NAMES[setup.lora],
        setup.preset,
        *([f"offload {setup.offload}"] if setup.offload != "none" else []),
        "checkpointing" if setup.checkpointing else "activations kept",
        f"micro-batches of {setup.micro_batch_tokens:,} tokens",
    ]
    return ", ".join(parts)
