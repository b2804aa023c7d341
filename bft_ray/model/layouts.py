"""How far layouts of samples in a batch differ for a model: several in one packed row, in rows with padding, and alone.

Packing relies on `position_ids` that restart with every sample. Many architectures of transformers do not obey them:
they take positions from elsewhere, or carry a state through the row. Only a comparison shows it, so a few samples
are laid out in each way and compared with each sample alone:

    value      max |h - h_alone| / max |h_alone|          h: last hidden states
    gradient   the same of dL/de                          e: input embeddings, L: a fixed projection of h
    flow       max |dL_s/de| outside sample s / max |dL_s/de|     what a sample sees of its neighbours: 0, in any dtype

Padding is at the end of a row, which a causal model does not read: a flow from there shows that it is not causal.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from bft_ray.model.halves import causal_of, halves

#: Largest value and gradient that are rounding. The flow has none.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9, torch.bfloat16: 5e-2, torch.float16: 1e-2}
_FLOW = 1e-6
#: Times the tolerance that padding may have: nothing flows from it, and kernels of other shapes round differently.
_PADDED = 10
#: Tokens of the samples: of different lengths, so that positions show.
_LENGTHS = (9, 6, 14)
_JUDGED = 1  # of them the one whose gradient is taken: it has neighbours on both sides, and padding behind it
_OF_MACHINE = (torch.OutOfMemoryError, torch.AcceleratorError, torch.distributed.DistError)
#: texts of those that have no class of their own: RuntimeError of the device's libraries, and of allocators
_MACHINE = re.compile(
    r"(CUDA|HIP|XPU|NCCL|cuDNN) error|(CUBLAS|CUDNN|CUSPARSE)_STATUS_|out of memory|can't allocate memory", re.I
)
_KNOWN = "_bft_ray_layouts"  # attribute of a model that was measured: with gradients or not -> Layouts


@dataclass(frozen=True)
class Layouts:
    """What was measured: the largest of value and gradient, and the flow, of each layout; `inf`: it does not run.

    Args:
        tolerance: what `packed` and `padded` may have in the model's dtype.
        flow_tolerance: what the flows may have.
    """

    packed: float
    packed_flow: float
    padded: float
    padded_flow: float
    tolerance: float
    flow_tolerance: float = _FLOW

    @property
    def packing_is_exact(self) -> bool:
        """Whether samples end to end in one row are computed as each alone."""
        return self.packed <= self.tolerance and self.packed_flow <= self.flow_tolerance

    @property
    def padding_is_exact(self) -> bool:
        """Whether samples in rows with padding are computed as each alone."""
        return self.padded <= _PADDED * self.tolerance and self.padded_flow <= self.flow_tolerance


def measure_layouts(model: Any, device: torch.device | str, gradients: bool = True) -> Layouts:
    """Compare packed and padded samples with each alone, on a few tokens and in evaluation mode.

    Measured once for a model, which keeps it: trials attach other adapters to the same one.

    Args:
        model: causal LM of transformers, with or without peft's adapters, on `device`.
        gradients: False compares values only, and takes for the flow what changes with other neighbours (ZeRO-3, whose
            weights are there in its own passes only).
    """
    known: dict[bool, Layouts] = vars(causal_of(model)).setdefault(_KNOWN, {})
    if gradients in known:
        return known[gradients]
    was_training = model.training
    model.eval()
    try:
        trial = _Trial(model, device, gradients)
        alone = trial.alone()
        packed, padded = _compared(alone, trial.packed), _compared(alone, trial.padded)
    finally:
        model.train(was_training)
    tolerance = TOLERANCE[alone.hidden[0].dtype]
    known[gradients] = Layouts(*packed, *padded, tolerance, tolerance if alone.gradient is None else _FLOW)
    return known[gradients]


def share_layouts(model: Any, copied: Any) -> None:
    """Let a model and its copy know what is measured of either."""
    vars(causal_of(copied))[_KNOWN] = vars(causal_of(model)).setdefault(_KNOWN, {})


#: (row, first, stop) of each sample in [B, T]
_Spans = list[tuple[int, int, int]]


@dataclass(frozen=True)
class _Found:
    """Of each sample hidden states [T, D]; of the judged one the gradient at its embeddings [T, E], and the flow."""

    hidden: list[Tensor]
    gradient: Tensor | None
    flow: float


class _Trial:
    """A few samples of random tokens, and the passes over them."""

    def __init__(self, model: Any, device: torch.device | str, gradients: bool):
        causal = causal_of(model)
        self.parts, self.embeddings = halves(model), causal.get_input_embeddings()
        self.device, self.gradients = device, gradients
        text = causal.config.get_text_config()
        words = _words(causal.config, text)
        self.draw = torch.Generator().manual_seed(0)  # of its own: a run draws the same with and without a trial
        self.samples = [self._some(words, length) for length in _LENGTHS]
        self.others = self._some(words, sum(_LENGTHS))
        known = (getattr(text, name, None) for name in ("pad_token_id", "eos_token_id"))
        self.pad = next((token for token in known if isinstance(token, int) and token >= 0), 0)

    def _some(self, words: Tensor, length: int) -> Tensor:
        return words[torch.randint(len(words), (length,), generator=self.draw)]

    def alone(self) -> _Found:
        each = [self._pass(sample[None], None, [(0, 0, len(sample))]) for sample in self.samples]
        return _Found([own.hidden[0] for own in each], each[_JUDGED].gradient, 0.0)

    def packed(self) -> _Found:
        starts = [sum(_LENGTHS[:number]) for number in range(len(_LENGTHS))]
        spans = [(0, start, start + length) for start, length in zip(starts, _LENGTHS, strict=True)]
        positions = torch.cat([torch.arange(length) for length in _LENGTHS])[None].to(self.device)
        return self._pass(torch.cat(self.samples)[None], positions, spans)

    def padded(self) -> _Found:
        ids = torch.nn.utils.rnn.pad_sequence(self.samples, batch_first=True, padding_value=self.pad)
        return self._pass(ids, None, [(row, 0, length) for row, length in enumerate(_LENGTHS)])

    def _pass(self, ids: Tensor, positions: Tensor | None, spans: _Spans) -> _Found:
        ids, judged = ids.to(self.device), _JUDGED if len(spans) > 1 else 0
        if self.gradients and (found := self._with_gradient(ids, positions, spans, judged)):
            return found
        with torch.no_grad():
            hidden = self.parts.hidden(ids, positions, None)
            own = [hidden[row, first:stop] for row, first, stop in spans]
            return _Found(own, None, self._change(ids, positions, spans[judged], own[judged]))

    def _with_gradient(self, ids: Tensor, positions: Tensor | None, spans: _Spans, judged: int) -> _Found | None:
        """None where the decoder does not ask its embeddings."""
        caught: list[Tensor] = []

        def catch(module: Any, arguments: Any, output: Tensor) -> Tensor:
            caught.append(output.detach().requires_grad_())
            return caught[-1].clone()  # some decoders scale it in place, which no leaf of a graph allows

        hook = self.embeddings.register_forward_hook(catch)
        try:
            with torch.enable_grad():
                hidden = self.parts.hidden(ids, positions, None)
                if len(caught) != 1:
                    return None
                row, first, stop = spans[judged]
                part = hidden[row, first:stop]
                (whole,) = torch.autograd.grad((part.float() * _direction(part)).sum(), caught[0])
        finally:
            hook.remove()
        own = whole[row, first:stop].clone()
        whole[row, first:stop] = 0
        flow = float(whole.abs().max() / own.abs().max())
        return _Found([hidden[row, first:stop].detach() for row, first, stop in spans], own, flow)

    def _change(self, ids: Tensor, positions: Tensor | None, span: tuple[int, int, int], part: Tensor) -> float:
        """Largest change of a sample's hidden states when everything else is of other tokens, relative."""
        row, first, stop = span
        changed = self.others.to(ids.device).repeat(1 + ids.numel() // len(self.others))[: ids.numel()].view_as(ids)
        changed = changed.clone()
        changed[row, first:stop] = ids[row, first:stop]
        return _difference(self.parts.hidden(changed, positions, None)[row, first:stop], part)


def is_of_machine(error: BaseException) -> bool:
    """Whether an error of a model comes from the machine that it runs on, its device, memory or network: it says nothing of
    what the model can do.
    """
    return isinstance(error, _OF_MACHINE) or _MACHINE.search(str(error)) is not None


def _compared(alone: _Found, run: Callable[[], _Found]) -> tuple[float, float]:
    """The largest difference from `alone`, and the largest flow; infinite where the model cannot run so."""
    try:
        found = run()
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, NotImplementedError) as error:
        if is_of_machine(error):
            raise
        return math.inf, math.inf
    pairs = [*zip(found.hidden, alone.hidden, strict=True)]
    if found.gradient is not None and alone.gradient is not None:
        pairs.append((found.gradient, alone.gradient))
    return max(_difference(*pair) for pair in pairs), found.flow


def _difference(a: Tensor, b: Tensor) -> float:
    """max |a - b| / max |b|; infinite where it is not a number."""
    difference = float((a.float() - b.float()).abs().max() / b.float().abs().max())
    return difference if math.isfinite(difference) else math.inf


def _direction(part: Tensor) -> Tensor:
    """Fixed random numbers in the shape of hidden states [T, D]."""
    draw = torch.Generator().manual_seed(part.shape[0])
    return torch.randn(part.shape, generator=draw).to(part.device)


def _words(*configs: Any) -> Tensor:
    """Token ids without those of a meaning of their own (ends, padding, images)."""
    special = {value for config in configs for name, value in vars(config).items() if name.endswith("_token_id")}
    return torch.tensor([token for token in range(min(configs[-1].vocab_size, 4096)) if token not in special] or [0])
