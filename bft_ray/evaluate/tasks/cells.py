"""Single cells: cell -> text of its ranked genes -> embedding -> do its neighbours show its type?

Figures on the embeddings (see `bft_ray.evaluate.classify`): k-nearest-neighbour accuracy and macro F1 over five
stratified folds; k-means with as many clusters as labels, compared with the labels by the adjusted Rand index and
normalised mutual information; with a batch column, how well batches are mixed within a label.
"""

from __future__ import annotations

import difflib
import importlib.util
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from bft_ray.config.tasks import CellsTask
from bft_ray.data.rows import read_table, text_key
from bft_ray.data.values import Ids, is_missing, kind_of
from bft_ray.errors import BadInput, enumerate_names
from bft_ray.evaluate.classify import (
    batch_silhouette,
    bootstrap_error,
    clusters,
    knn_predictions,
    smallest_reference,
    unit,
)
from bft_ray.evaluate.engine.embed import TextPieces, cut_texts
from bft_ray.evaluate.engine.request import Context, Measured, Prepared
from bft_ray.evaluate.means import of_item, summarise
from bft_ray.evaluate.tasks.pairs import fill
from bft_ray.stats.errors import with_error

log = logging.getLogger(__name__)

_SEPARATORS = re.compile(r"[\s,;]+")  # between genes, where a cell of a table holds a list


@dataclass(frozen=True)
class Cell:
    """One cell; `genes` ranked, the first the most telling; `group` what it shares with others, such as a donor."""

    id: str
    where: str
    label: str
    genes: tuple[str, ...]
    batch: str | None = None
    group: str | None = None


def prepare(task: CellsTask, context: Context) -> Prepared:
    """One request: the embeddings of all cells.

    Raises:
        BadInput: a malformed row, fewer than two labels (or batches, where asked), fewer cells than neighbours, or a
            template without {genes}.
    """
    field = f"evaluation.tasks.{task.name}"
    if "{genes}" not in task.template:
        raise BadInput(f"{field}.template", task.template, "a template with {genes}")
    cells = read_cells(task, field)
    texts = [fill(task.template, genes=", ".join(cell.genes[: task.num_genes])) for cell in cells]
    pieces = cut_texts([cell.id for cell in cells], [cell.where for cell in cells], texts, context)

    return Prepared([pieces.request], partial(_finish, task, cells, pieces))


def _finish(task: CellsTask, cells: Sequence[Cell], pieces: TextPieces, answers: Sequence[np.ndarray]) -> Measured:
    return measure(task, cells, pieces.join(answers[0]))


def read_cells(task: CellsTask, field: str) -> list[Cell]:
    """The cells of a file, in order; genes as a list, or as text with spaces or commas between them.

    Raises:
        BadInput: see `prepare`.
    """
    cells: list[Cell] = []
    ids = Ids("cell")
    for where, record in read_table(task.path, limit=task.limit, field=field):
        cell = _cell(where, record, task)
        ids.add(cell.id, where)
        cells.append(cell)
    labels, batches = ({getattr(cell, name) for cell in cells} for name in ("label", "batch"))
    if len(labels) < 2:
        raise BadInput(f"{field}.path", f"{len(cells)} cells of {len(labels)} labels", "cells of at least two labels")
    if smallest_reference(len(cells)) < task.num_neighbours:
        rule = f"at most {smallest_reference(len(cells))}, the cells of four of five folds of {len(cells)}"
        raise BadInput(f"{field}.num_neighbours", task.num_neighbours, rule)
    if task.batch is not None and len(batches) < 2:
        raise BadInput(
            f"{field}.batch", task.batch, "a column with at least two batches", "Leave it out for one batch."
        )
    return cells


def measure(task: CellsTask, cells: Sequence[Cell], embeddings: np.ndarray) -> Measured:
    """Metrics and records from embeddings [n, D] of the cells; in records, labels are indices into their sorted
    list.
    """
    from sklearn.metrics import adjusted_rand_score, f1_score, normalized_mutual_info_score

    ids, name = [cell.id for cell in cells], task.name
    known, labels = np.unique([cell.label for cell in cells], return_inverse=True)
    predicted = knn_predictions(embeddings, labels, ids, task.num_neighbours, task.seed)
    found = clusters(embeddings, len(known), ids, task.seed)
    statistics = {
        "knn_macro_f1": lambda i: f1_score(labels[i], predicted[i], average="macro", zero_division=0),
        "ari": lambda i: adjusted_rand_score(labels[i], found[i]),
        "nmi": lambda i: normalized_mutual_info_score(labels[i], found[i]),
    }
    metrics = summarise(name, {"knn_accuracy": (predicted == labels).astype(float).tolist()})
    everything = np.arange(len(cells))
    for key, statistic in statistics.items():
        error = bootstrap_error(statistic, len(cells), task.seed)
        metrics |= with_error(f"{name}/{key}", statistic(everything), error, len(cells))
    if task.batch is not None:
        batches = np.unique([str(cell.batch) for cell in cells], return_inverse=True)[1]
        metrics |= {f"{name}/{key}": value for key, value in integration(embeddings, labels, batches).items()}
    records: list[dict[str, Any]] = [
        of_item(ids[i], text_key(cells[i].genes), cells[i].group)
        | {"label": int(labels[i]), "predicted": int(predicted[i]), "cluster": int(found[i])}
        | {"knn_accuracy": float(predicted[i] == labels[i])}
        for i in range(len(cells))
    ]
    return Measured(metrics | {f"{name}/num_items": float(len(cells))}, records)


def integration(embeddings: np.ndarray, labels: np.ndarray, batches: np.ndarray) -> dict[str, float]:
    """How well batches are mixed: `batch_silhouette`, and where scib-metrics is installed `ilisi` and `kbet` (graph
    iLISI and kBET of Luecken et al. 2022, over at most 90 neighbours). Metrics without a value (NaN) are left out.
    """
    figures = {"batch_silhouette": batch_silhouette(embeddings, labels, batches)}
    if importlib.util.find_spec("scib_metrics") is None:
        log.info("iLISI and kBET are left out: scib-metrics is not installed (pip install 'bft-ray[scib]')")
    else:
        figures |= _scib(unit(embeddings), labels, batches)
    return {name: value for name, value in figures.items() if not math.isnan(value)}


def _scib(x: np.ndarray, labels: np.ndarray, batches: np.ndarray) -> dict[str, float]:
    import scib_metrics
    from scib_metrics.nearest_neighbors import NeighborsResults
    from sklearn.neighbors import NearestNeighbors

    near = NearestNeighbors(n_neighbors=min(90, len(x) - 1)).fit(x)
    distances, indices = near.kneighbors(x)  # each cell is its own first neighbour, as scib-metrics has it
    neighbours = NeighborsResults(indices=indices, distances=distances)
    ilisi = scib_metrics.ilisi_knn(neighbours, batches)
    kbet = scib_metrics.kbet_per_label(neighbours, batches, labels)
    return {"ilisi": float(ilisi), "kbet": float(kbet[0] if isinstance(kbet, tuple) else kbet)}


# --- rows ---------------------------------------------------------------------------------------------------


def _cell(where: str, record: dict, task: CellsTask) -> Cell:
    batch = None if task.batch is None else _text(where, record, task.batch)
    given = _value(where, record, task.genes)
    genes = [gene for gene in _SEPARATORS.split(given) if gene] if isinstance(given, str) else given
    if not isinstance(genes, list) or not genes:
        raise BadInput(f"{where} {task.genes}", "empty" if not genes else kind_of(given), "a list of genes")
    for index, gene in enumerate(genes):
        if not isinstance(gene, str) or not gene.strip():
            raise BadInput(f"{where} {task.genes}.{index}", kind_of(gene), "the name of a gene")
    group = None if is_missing(record.get("group")) else _text(where, record, "group")
    return Cell(_text(where, record, "cell"), where, _text(where, record, "label"), tuple(genes), batch, group)


def _text(where: str, record: dict, column: str) -> str:
    value = _value(where, record, column)
    if isinstance(value, (list, dict)) or not str(value).strip():
        raise BadInput(f"{where} {column}", kind_of(value), "a name that is not empty")
    return str(value)


def _value(where: str, record: dict, column: str) -> Any:
    if column not in record or is_missing(record[column]):
        near = difflib.get_close_matches(column, map(str, record), 1)
        hint = f"Did you mean the column `{near[0]}`?" if near else f"The row has {enumerate_names(map(str, record))}."
        raise BadInput(f"{where} {column}", "missing", "given in every row", "" if column in record else hint)
    return record[column]
