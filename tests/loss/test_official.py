"""The loss against stored results of the official code (arXiv 2511.21075): loss, confidence, gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bft_ray.loss import LossConfig, bft_loss
from tests.support.paths import SHARED

REFERENCE = SHARED / "reference" / "bft_official.npz"
TOLERANCE = 1e-5

pytestmark = pytest.mark.skipif(not REFERENCE.exists(), reason=f"needs {REFERENCE.name} of the shared folder")


@pytest.fixture(scope="module")
def official() -> dict[str, np.ndarray]:
    with np.load(REFERENCE) as file:
        return {name: file[name] for name in file.files}


def difference(ours: torch.Tensor, theirs: np.ndarray) -> float:
    return float(np.abs(ours.detach().double().numpy() - theirs).max() / np.abs(theirs).max())


def run(official: dict[str, np.ndarray], case: str, config: LossConfig):
    logits = torch.tensor(official[f"{case}/logits"], requires_grad=True)
    result = bft_loss(logits, torch.tensor(official[f"{case}/labels"]), config)
    result.loss.backward()
    return result, logits.grad


@pytest.mark.parametrize("number", range(32))
@pytest.mark.parametrize("token_weight", ["exp_nll", "prob"])  # the same in fp32
def test_bft_equals_the_official_code(official, number, token_weight):
    case = f"case{number:02d}"
    config = LossConfig(
        method="bft",
        window=int(official[f"{case}/window"]),
        gamma=float(official[f"{case}/gamma"]),
        token_weight=token_weight,
    )
    result, gradient = run(official, case, config)
    assert difference(result.loss, official[f"{case}/loss"]) <= TOLERANCE
    assert difference(result.confidence, official[f"{case}/confidence"]) <= TOLERANCE
    assert difference(gradient, official[f"{case}/grad"]) <= TOLERANCE


@pytest.mark.parametrize("case", ["dft8", "dft16", "dft24", "dft32"])
def test_dft_equals_its_code(official, case):
    result, gradient = run(official, case, LossConfig(method="dft"))
    assert difference(result.loss, official[f"{case}/loss"]) <= TOLERANCE
    assert difference(gradient, official[f"{case}/grad"]) <= TOLERANCE


def test_the_file_holds_what_these_tests_name(official):
    assert {name.split("/")[0] for name in official} == {f"case{i:02d}" for i in range(32)} | {
        "dft8",
        "dft16",
        "dft24",
        "dft32",
    }
