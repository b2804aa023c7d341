"""Yes or no about pairs of genes: does the model find `yes` likelier where the label is 1?

    score = log p(yes | question) - log p(no | question)

AUROC: probability that a pair of label 1 has a larger score than one of label 0, ties half. AUPRC: average precision,
sum over thresholds of precision times the step of recall. Both as scikit-learn computes them. Their standard errors
are bootstrapped over the pairs, with a fixed seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import Any

import numpy as np

from bft_ray.config.tasks import PairsTask
from bft_ray.data.rows import read_table, text_key
from bft_ray.data.values import Ids, kind_of, row_id
from bft_ray.errors import BadInput
from bft_ray.evaluate.classify import ranking_metrics
from bft_ray.evaluate.engine.request import Context, Measured, Prepared, Scores
from bft_ray.evaluate.means import of_item
from bft_ray.evaluate.options import Question, encode_options

#: a label as text, as cells of a CSV file are; tables with an empty cell write 1 as 1.0
_LABELS = ("0", "1", "0.0", "1.0")
_DIGITS = 4  # of a score: nearer ones are equal, so that rounding decides no order


@dataclass(frozen=True)
class Pair:
    """Two genes and whether they belong together; `where` is the file and line."""

    id: str
    where: str
    gene_a: str
    gene_b: str
    label: int

    @property
    def groups(self) -> list[str]:
        """Its genes, as keys that name none: what pairs share, for statistics over groups."""
        return [
            blake2b(gene.strip().upper().encode(), digest_size=6).hexdigest() for gene in (self.gene_a, self.gene_b)
        ]

    def record(self) -> dict[str, Any]:
        """What its record says whatever the model; the order of the genes plays no part."""
        return of_item(self.id, text_key(sorted(map(text_key, (self.gene_a, self.gene_b))))) | {
            "label": self.label,
            "groups": self.groups,
        }


def prepare(task: PairsTask, context: Context) -> Prepared:
    """AUROC and AUPRC of the yes/no likelihood.

    Raises:
        BadInput: see `read_pairs` and `encode_options`.
    """
    pairs = read_pairs(task.path, task.limit, f"evaluation.tasks.{task.name}")
    questions = [
        Question(p.id, p.where, fill(task.question, gene_a=p.gene_a, gene_b=p.gene_b), (task.yes, task.no))
        for p in pairs
    ]
    request, num_truncated = encode_options(questions, context.tokenizer, context.data)

    return Prepared([request], partial(_finish, task, pairs, num_truncated))


def _finish(task: PairsTask, pairs: Sequence[Pair], num_truncated: int, answers: Sequence[Scores]) -> Measured:
    nll = answers[0].nll.reshape(-1, 2)  # yes, no
    score = np.round(nll[:, 1] - nll[:, 0], _DIGITS)
    label = np.array([pair.label for pair in pairs])
    records = [pair.record() | {"score": float(own)} for pair, own in zip(pairs, score, strict=True)]
    metrics = {f"{task.name}/{name}": value for name, value in ranking_metrics(label, score, seed=0).items()}
    metrics |= {f"{task.name}/num_items": float(len(pairs)), f"{task.name}/num_truncated": float(num_truncated)}
    return Measured(metrics, records)


def read_pairs(path: str, limit: int | None, field: str) -> list[Pair]:
    """Pairs of a table: rows of gene_a, gene_b, label (0 or 1), and, where given, id (else the place).

    Raises:
        BadInput: no such file, a malformed row, named by file and line, or not both labels among them.
    """
    pairs = []
    ids = Ids()
    for where, record in read_table(path, limit=limit, field=field):
        pair = _pair(where, record)
        ids.add(pair.id, where)
        pairs.append(pair)
    if len({pair.label for pair in pairs}) < 2:
        raise BadInput(f"{field}.path", path, "pairs of both labels, 0 and 1; a ranking cannot be judged without")
    return pairs


def fill(template: str, **values: str) -> str:
    """A template with its `{name}`s replaced; other braces stay as they are."""
    for name, value in values.items():
        template = template.replace(f"{{{name}}}", value)
    return template


def _pair(where: str, record: dict[str, Any]) -> Pair:
    genes = [record.get(name) for name in ("gene_a", "gene_b")]
    for name, gene in zip(("gene_a", "gene_b"), genes, strict=True):
        if not isinstance(gene, str) or not gene.strip():
            value = "empty" if isinstance(gene, str) else kind_of(gene)
            raise BadInput(f"{where} {name}", value, "the name of a gene")
    label = record.get("label")
    if isinstance(label, bool) or label not in (0, 1, *_LABELS):
        received = label if isinstance(label, int) else kind_of(label)
        raise BadInput(f"{where} label", received, "0 or 1", "1: the genes interact.")
    return Pair(row_id(record.get("id"), where), where, str(genes[0]), str(genes[1]), int(float(label)))
