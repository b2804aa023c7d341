"""Cells as ranked genes: neighbours, clusters and batches, against values worked by hand and scikit-learn directly."""

from __future__ import annotations

import importlib.util
import json
import math

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, f1_score, normalized_mutual_info_score, silhouette_samples

from bft_ray.config import DataConfig, ModelConfig, SourceConfig
from bft_ray.config.metrics import describe
from bft_ray.config.tasks import CellsTask
from bft_ray.errors import BadInput
from bft_ray.evaluate.classify import batch_silhouette, clusters, knn_predictions, smallest_reference
from bft_ray.evaluate.engine.embed import run_embed
from bft_ray.evaluate.engine.request import Context
from bft_ray.evaluate.tasks.cells import integration, measure, prepare, read_cells
from bft_ray.model.causal_lm import load_model, load_tokenizer
from tests.support.paths import SHARED

PBMC = SHARED / "data" / "cell_type" / "pbmc68k_cells.jsonl"


def context_of(tokenizer, max_length=64) -> Context:
    data = DataConfig(train=[SourceConfig(path="none.jsonl")], max_length=max_length)
    return Context(tokenizer, data, batch_tokens=256, seed=0)


def blobs(n=60, spread=0.3, seed=0):
    """Three well separated directions in the plane, and their labels."""
    draw = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    angle = labels * 2 * np.pi / 3
    return np.stack([np.cos(angle), np.sin(angle)], 1) + draw.normal(size=(n, 2)) * spread, labels


# --- figures ------------------------------------------------------------------------------------------------


def test_neighbours_by_hand():
    """Directions 0, 1, .. 9 degrees of label 0 and 90 .. 99 of label 1, and one stray of label 1 at 4.5 degrees."""
    degrees = np.radians([*range(10), *range(90, 100), 4.5])
    x = np.stack([np.cos(degrees), np.sin(degrees)], 1) * np.linspace(1, 50, 21)[:, None]  # the length plays no part
    labels = np.array([0] * 10 + [1] * 11)
    predicted = knn_predictions(x, labels, [f"c{i}" for i in range(21)], k=3, seed=0)
    assert predicted.tolist() == [0] * 10 + [1] * 10 + [0]
    assert smallest_reference(21) == 16 and smallest_reference(20) == 16 and smallest_reference(10) == 8


def test_neighbours_are_never_of_the_same_fold():
    """Each row has a twin: with k = 1 it is found unless it is in the same fold, and then a stranger decides."""
    x = np.repeat(np.eye(25), 2, axis=0) + 1e-3 * np.random.default_rng(0).normal(size=(50, 25))
    labels = np.repeat(np.arange(25), 2)
    ids = [f"c{i}" for i in range(50)]
    predicted = knn_predictions(x, labels, ids, k=1, seed=0)
    assert (predicted == labels).all()  # stratified: the two of a label are dealt into two folds
    assert not (knn_predictions(x, np.arange(50), ids, 1, 0) == np.arange(50)).any()  # no row is its own neighbour


def test_neighbours_and_clusters_do_not_depend_on_the_order_of_rows():
    x, labels = blobs(spread=0.8)
    ids = [f"cell-{i}" for i in range(len(x))]
    order = np.random.default_rng(1).permutation(len(x))
    turned = [ids[i] for i in order]
    predicted = knn_predictions(x, labels, ids, 5, 3)
    assert (predicted[order] == knn_predictions(x[order], labels[order], turned, 5, 3)).all()
    found = clusters(x, 3, ids, 3)
    assert (found[order] == clusters(x[order], 3, turned, 3)).all()
    assert 0.5 < (predicted == labels).mean() < 1


def test_clusters_find_what_is_apart():
    x, labels = blobs(spread=0.1)
    assert adjusted_rand_score(labels, clusters(x, 3, [str(i) for i in range(60)], 0)) == 1.0


def test_batch_silhouette_by_hand():
    """Label 0: directions 0 and 180 degrees, a batch each, two cells apiece: silhouette 1, so 0. Label 1: the same two
    directions, a cell of each batch in both: within a batch 2, to the other 1 on average: silhouette -1/2, so 1/2.
    Label 2 has one batch and label 3 as many as cells: neither says anything.
    """
    x = np.array([[1, 0], [1, 0], [-1, 0], [-1, 0], [1, 0], [-1, 0], [1, 0], [-1, 0], [0, 1], [0, 1], [0, 1], [0, 2.0]])
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3])
    batches = np.array([0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 0, 1])
    assert batch_silhouette(x, labels, batches) == pytest.approx((0 + 0.5) / 2)
    assert math.isnan(batch_silhouette(x[8:], labels[8:], batches[8:]))
    assert "batch_silhouette" not in integration_alone(x[8:], labels[8:], batches[8:])


def integration_alone(*arrays):
    """`integration` where scib-metrics is not installed; with it, of enough cells only."""
    return {} if importlib.util.find_spec("scib_metrics") else integration(*arrays)


def test_batch_silhouette_agrees_with_scikit_learn():
    x, labels = blobs(90, 0.5)
    batches = np.arange(90) // 3 % 2
    rows = x / np.linalg.norm(x, axis=1, keepdims=True)
    means = [
        (1 - np.abs(silhouette_samples(rows[labels == label], batches[labels == label]))).mean() for label in range(3)
    ]
    assert batch_silhouette(x, labels, batches) == pytest.approx(np.mean(means), abs=1e-12)


def test_integration_sees_batches_that_lie_apart():
    draw = np.random.default_rng(0)
    mixed, labels, batches = draw.normal(size=(400, 8)) + 3, np.arange(400) % 2, np.arange(400) // 2 % 2
    apart = mixed + 6 * np.outer(batches, np.eye(8)[0])
    good, bad = integration(mixed, labels, batches), integration(apart, labels, batches)
    assert set(good) == {"batch_silhouette"} | (
        {"ilisi", "kbet"} if importlib.util.find_spec("scib_metrics") else set()
    )
    assert all(good[name] > 0.85 and bad[name] < 0.6 for name in good)


# --- the task -----------------------------------------------------------------------------------------------


@pytest.fixture
def cells(tmp_path):
    """60 invented cells of three types, each with its own genes among common ones, from two batches."""
    draw = np.random.default_rng(0)
    own = {kind: [f"w{10 * k + i}" for i in range(10)] for k, kind in enumerate(("A", "B", "C"))}
    rows = []
    for i in range(60):
        kind = "ABC"[i % 3]
        mixed = own[kind if draw.random() < 0.8 else draw.choice(["A", "B", "C"])]  # some look like another type
        genes = [str(gene) for gene in draw.permutation(mixed + [f"w{i}" for i in range(40, 45)])]
        rows.append({"cell": f"cell-{i}", "label": kind, "top_expressed": genes, "donor": f"d{i // 3 % 2}"})
    return rows


@pytest.fixture
def write(tmp_path):
    def write(rows, name="cells.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    return write


@pytest.mark.slow
def test_cells_are_measured_on_their_embeddings(cells, write):
    config = ModelConfig(path="starter", dtype="fp32")
    model, tokenizer = load_model(config).eval(), load_tokenizer(config)
    task = CellsTask(path=write(cells), num_genes=12, num_neighbours=5, template="w1 {genes}", batch="donor")
    made = []
    for batch_tokens in (1, 10**6):
        prepared = prepare(task, context_of(tokenizer, max_length=128))
        [request] = prepared.requests
        text = ", ".join(cells[0]["top_expressed"][:12])
        expected = [tokenizer.bos_token_id, *tokenizer(f"w1 {text}", add_special_tokens=False)["input_ids"]]
        assert request.sequences[0].tolist() == expected
        made.append(prepared.finish([run_embed(model, request, batch_tokens, "cpu", 0)]))
    one, other = made
    assert one.metrics == pytest.approx(other.metrics, abs=1e-5)
    assert one.records == other.records
    metrics, records = one.metrics, one.records
    labels = ["ABC".index(cell["label"]) for cell in cells]
    predicted, found = ([record[key] for record in records] for key in ("predicted", "cluster"))
    assert [record["label"] for record in records] == labels and records[4]["id"] == "cell-4"
    right = np.equal(labels, predicted)
    assert metrics["cells/knn_accuracy"] == right.mean() > 0.5
    assert metrics["cells/knn_accuracy_se"] == pytest.approx(right.std(ddof=1) / math.sqrt(60))
    assert metrics["cells/knn_macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert metrics["cells/ari"] == pytest.approx(adjusted_rand_score(labels, found))
    assert metrics["cells/nmi"] == pytest.approx(normalized_mutual_info_score(labels, found))
    assert metrics["cells/ari_detectable"] > metrics["cells/ari_se"] > 0
    assert metrics["cells/num_items"] == 60 and 0 < metrics["cells/batch_silhouette"] <= 1
    assert all(describe(name) for name in metrics)
    assert not any(
        isinstance(value, str) for record in records for key, value in record.items() if key not in ("id", "content")
    )


@pytest.mark.slow
def test_cells_of_a_donor_share_a_group(cells, write):
    """So that `evaluate --against` and a study judge donors, not cells."""
    task = CellsTask(path=write([cell | {"group": cell["donor"]} for cell in cells]), num_neighbours=5)
    read = read_cells(task, "evaluation.tasks.cells")
    records = measure(task, read, np.random.default_rng(0).normal(size=(len(cells), 4))).records
    assert [record["group"] for record in records] == [str(cell["donor"]) for cell in cells]
    alone = read_cells(CellsTask(path=write(cells), num_neighbours=5), "evaluation.tasks.cells")
    assert all("group" not in record for record in measure(task, alone, np.eye(len(cells))).records)


def test_genes_may_be_text_in_a_table(cells, tmp_path):
    lines = ["cell,label,top_expressed", *(f'{c["cell"]},{c["label"]},"{" ".join(c["top_expressed"])}"' for c in cells)]
    (tmp_path / "cells.csv").write_text("\n".join(lines))
    read = read_cells(CellsTask(path=str(tmp_path / "cells.csv")), "evaluation.tasks.cells")
    assert [cell.genes for cell in read] == [tuple(cell["top_expressed"]) for cell in cells]


def test_bad_input_is_named_before_any_model_is_asked(cells, write, tiny_model):
    context = context_of(load_tokenizer(ModelConfig(path=str(tiny_model))))

    def refused(match, rows=None, **changed):
        with pytest.raises(BadInput, match=match):
            prepare(CellsTask(path=write(rows or cells), **changed), context)

    def but(index, **values):
        return [cell | values if i == index else cell for i, cell in enumerate(cells)]

    refused(r"evaluation.tasks.cells.template` is 'A cell.', but must be a template with {genes}", template="A cell.")
    refused(r"cells.jsonl:1 top_expresed` is 'missing'.*Did you mean the column `top_expressed`", genes="top_expresed")
    refused(r"The row has cell, label, top_expressed, donor", genes="ranking")
    refused(r"cells.jsonl:3 top_expressed` is 'empty', but must be a list", but(2, top_expressed=[]))
    refused(r"cells.jsonl:3 top_expressed` is 'a number'", but(2, top_expressed=7))
    refused(r"cells.jsonl:3 top_expressed.1` is 'a number', but must be the name", but(2, top_expressed=["w1", 7]))
    refused(r"cells.jsonl:4 cell` is 'cell-0', but is at", but(3, cell="cell-0"))
    refused(r"cells.jsonl:2 label` is 'missing'", but(1, label=None))
    refused(r"path` is '60 cells of 1 labels', but must be cells of at least two", [c | {"label": "A"} for c in cells])
    refused(r"num_neighbours` is 49, but must be at most 48", num_neighbours=49)
    refused(r"cells.jsonl:1 lab` is 'missing'", batch="lab")
    refused(
        r"batch` is 'donor', but must be a column with at least two batches",
        cells[:3] + cells[6:9] + cells[12:15],
        batch="donor",
        num_neighbours=2,
    )


# --- real cells ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not PBMC.is_file(), reason="needs ../shared")
def test_a_bag_of_genes_tells_real_cells_apart():
    """What needs no model: presence of each gene. The mark that a model's embeddings are to be compared with."""
    task = CellsTask(path=str(PBMC))
    cells = read_cells(task, "evaluation.tasks.cells")
    known = sorted({gene for cell in cells for gene in cell.genes[: task.num_genes]})
    bag = np.array([[gene in cell.genes[: task.num_genes] for gene in known] for cell in cells], dtype=float)
    metrics = measure(task, cells, bag).metrics
    assert metrics["cells/num_items"] == 700
    assert 0.7 < metrics["cells/knn_accuracy"] < 0.85  # the largest type is 0.34 of them
    assert 0.5 < metrics["cells/knn_macro_f1"] < 0.75 and 0.3 < metrics["cells/ari"] < 0.6
    assert metrics["cells/knn_accuracy_detectable"] == pytest.approx(0.061, abs=0.007)
    shuffled = np.random.default_rng(0).permutation(bag)
    assert measure(task, cells, shuffled).metrics["cells/knn_accuracy"] < 0.4


@pytest.mark.release
@pytest.mark.skipif(not PBMC.is_file(), reason="needs ../shared")
def test_real_cells_with_the_starter_model():
    config = ModelConfig(path="starter", dtype="fp32")
    model, tokenizer = load_model(config).eval(), load_tokenizer(config)
    prepared = prepare(CellsTask(path=str(PBMC)), context_of(tokenizer, max_length=192))
    metrics = prepared.finish([run_embed(model, prepared.requests[0], 8192, "cpu", 0)]).metrics
    assert 0.6 < metrics["cells/knn_accuracy"] < 0.85  # it reads gene names in pieces of a few letters
    assert metrics["cells/ari"] > 5 * metrics["cells/ari_se"]
