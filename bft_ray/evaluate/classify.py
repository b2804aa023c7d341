"""What embeddings are good for: classifiers and clusters on top of them, and how sure the figures are.

Everything here works on arrays in fp64 and knows no model, so that embeddings from anywhere (a model, a text
encoder, counts of genes) are measured alike. Random draws are keyed by seed and item id, never by the order of
the rows.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

import numpy as np

from bft_ray.stats.errors import with_error

_DRAWS = 1000  # bootstrap resamples of a standard error
_DRAWS_AT_ONCE = 50
_FOLDS = 5
_CONSTANT = 1e-4  # of the median deviation: what varies less is rounding, which scaling would blow up


# --- pairs --------------------------------------------------------------------------------------------------


def pair_features(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Features [n, 2D] of pairs of embeddings a, b [n, D]: |a - b| and a * b, side by side.

    The order of a pair carries no meaning (gene_a interacts with gene_b as gene_b does with gene_a), so the
    features must not depend on it; a plain concatenation would, and would let a classifier learn how the file
    was written.
    """
    return np.concatenate([np.abs(a - b), a * b], axis=1).astype(np.float64)


def fit_classifiers(train: np.ndarray, labels: np.ndarray, test: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """P(label 1) [m] of the rows `test` [m, F] by classifiers fitted to `train` [n, F] and `labels` [n].

    Features are standardised by the training rows. `logistic`: L2 with C = 1/F, a normal prior under which the
    logit of a row has variance about 1, whatever the width of the model. `mlp`: one hidden layer of 64, Adam,
    stopped when a held-out tenth of the training rows stops improving, after 200 epochs at the latest.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier

    mean, deviation = train.mean(0), train.std(0)
    varies = deviation > _CONSTANT * max(np.median(deviation), np.abs(mean).max() * 1e-8)
    scale = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=varies)
    train, test = (train - mean) * scale, (test - mean) * scale
    models = {
        "logistic": LogisticRegression(C=1 / train.shape[1], max_iter=2000, tol=1e-6),
        "mlp": MLPClassifier(
            hidden_layer_sizes=(64,),
            alpha=1e-2,
            early_stopping=True,
            n_iter_no_change=10,
            max_iter=200,
            random_state=seed,
        ),
    }
    return {name: model.fit(train, labels).predict_proba(test)[:, 1] for name, model in models.items()}


def areas(labels: np.ndarray, scores: np.ndarray, counts: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Areas under the ROC and the precision-recall curve (average precision), [B] each.

        AUROC = P(score of a 1 > score of a 0) + 1/2 P(they are equal)
        AUPRC = sum over thresholds of (recall - recall before) * precision

    Args:
        labels: 0 or 1 [n].
        scores: [n], larger for the likelier.
        counts: [B, n] how often each row counts, for resamples; null: once each, B = 1. NaN comes back for
            a resample that lacks a label.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # last row of each tied score
    weights = np.ones((1, len(labels))) if counts is None else counts
    truth = labels[order].astype(bool)
    hits = np.cumsum(weights[:, order] * truth, axis=1)[:, ends]  # [B, U]: ones at or above each threshold
    alarms = np.cumsum(weights[:, order] * ~truth, axis=1)[:, ends]
    new_hits, new_alarms = np.diff(hits, prepend=0), np.diff(alarms, prepend=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        auroc = (new_alarms * (hits - new_hits / 2)).sum(1) / (hits[:, -1] * alarms[:, -1])
        precision = np.where(hits > 0, hits / (hits + alarms), 0.0)
        auprc = np.where(alarms[:, -1] > 0, (new_hits * precision).sum(1) / hits[:, -1], np.nan)
    return auroc, auprc


def ranking_metrics(labels: np.ndarray, scores: np.ndarray, seed: int) -> dict[str, float]:
    """`auroc` and `auprc` with `_se` (bootstrap over rows, seeded) and `_detectable` (see `with_error`).

    Rows are drawn as if they were independent; where pairs share genes the true errors are larger.
    """
    generator = np.random.default_rng(seed)
    share = np.full(len(labels), 1 / len(labels))
    drawn = [
        np.stack(areas(labels, scores, generator.multinomial(len(labels), share, _DRAWS_AT_ONCE)))
        for _ in range(_DRAWS // _DRAWS_AT_ONCE)
    ]
    errors = np.nanstd(np.concatenate(drawn, axis=1), axis=1, ddof=1)
    [auroc], [auprc] = areas(labels, scores)
    count = len(labels)
    return with_error("auroc", auroc, errors[0], count) | with_error("auprc", auprc, errors[1], count)


# --- one thing, one label -----------------------------------------------------------------------------------


def knn_predictions(x: np.ndarray, labels: np.ndarray, ids: Sequence[str], k: int, seed: int) -> np.ndarray:
    """The label [n] that the k nearest rows (by cosine) of the other folds give to each row; the smallest wins a tie.

    Five stratified folds: the rows, sorted by label and then in an order keyed by seed and id, go to folds 0, 1, 2, 3, 4,
    0, 1 ... in turn, so that all folds have the same size (+- 1).
    """
    from sklearn.neighbors import KNeighborsClassifier

    folds = np.zeros(len(labels), dtype=np.int64)
    by_label = sorted(keyed_order(ids, seed), key=lambda row: labels[row])  # sorting is stable
    folds[by_label] = np.arange(len(labels)) % _FOLDS
    predicted = np.zeros_like(labels)
    for fold in range(_FOLDS):
        held = folds == fold
        if held.any():
            model = KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(x[~held], labels[~held])
            predicted[held] = model.predict(x[held])
    return predicted


def smallest_reference(num_rows: int) -> int:
    """Rows that `knn_predictions` can choose neighbours from, in the worst fold."""
    return num_rows - -(-num_rows // _FOLDS)


def clusters(x: np.ndarray, num_clusters: int, ids: Sequence[str], seed: int) -> np.ndarray:
    """k-means clusters [n] of the rows scaled to length 1, the best of ten starts."""
    from sklearn.cluster import KMeans

    order = keyed_order(ids, seed)  # starts are drawn by place: so the place must not depend on the file
    found = np.zeros(len(x), dtype=np.int64)
    found[order] = KMeans(num_clusters, n_init=10, random_state=seed).fit_predict(unit(x)[order])
    return found


def batch_silhouette(x: np.ndarray, labels: np.ndarray, batches: np.ndarray) -> float:
    """How well batches are mixed within labels, 0 (apart) to 1 (mixed); Luecken et al. 2022, batch ASW.

        mean over labels of mean over the label's cells i of 1 - |s_i|

    s_i: silhouette of cell i with the batch as its cluster, Euclidean, rows scaled to length 1. Labels whose
    cells are all of one batch, or of as many batches as cells, say nothing and are left out.

    Returns:
        NaN where no label is left.
    """
    from sklearn.metrics import silhouette_samples

    means = []
    for label in np.unique(labels):
        own = labels == label
        if 1 < len(np.unique(batches[own])) < own.sum():
            means.append(1 - np.abs(silhouette_samples(unit(x[own]), batches[own])).mean())
    return float(np.mean(means)) if means else math.nan


# --- how sure -----------------------------------------------------------------------------------------------


def bootstrap_error(statistic: Callable[[np.ndarray], float], n: int, seed: int, draws: int = 200) -> float:
    """Standard deviation of `statistic(rows)` over resamples of n rows, drawn with replacement."""
    generator = np.random.default_rng(seed)
    return float(np.nanstd([statistic(generator.integers(0, n, n)) for _ in range(draws)], ddof=1))


def keyed_order(ids: Sequence[str], seed: int) -> list[int]:
    """The places of ids in an order that depends on the seed and the ids alone."""
    keys = [hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest() for name in ids]
    return sorted(range(len(ids)), key=lambda place: keys[place])


def unit(x: np.ndarray) -> np.ndarray:
    """Rows [n, D] scaled to length 1; a row of zeros stays one."""
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length > 0, length, 1.0)
