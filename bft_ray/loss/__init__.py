"""The loss: window confidence, weights, their readable definition, and functions for other trainers.

from bft_ray.loss import LossConfig, bft_loss
result = bft_loss(logits, labels, LossConfig(method="bft", window=256))
"""

from bft_ray.config import LossConfig
from bft_ray.loss.batch import BftLoss, bft_loss
from bft_ray.loss.confidence import window_confidence
from bft_ray.loss.fused import fused_loss_sums, fused_row_sums, target_logp
from bft_ray.loss.reference import LossSums, Supervised, combine, loss_sums, normalisation
from bft_ray.loss.start import Start
from bft_ray.loss.trainer import CountSamplesMixin, compute_loss_func

__all__ = [
    "BftLoss",
    "CountSamplesMixin",
    "LossConfig",
    "LossSums",
    "Start",
    "Supervised",
    "bft_loss",
    "combine",
    "compute_loss_func",
    "fused_loss_sums",
    "fused_row_sums",
    "loss_sums",
    "normalisation",
    "target_logp",
    "window_confidence",
]
