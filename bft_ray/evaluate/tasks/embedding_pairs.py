"""Gene interaction from embeddings: gene -> text -> embedding -> pair -> does it interact?

The text of a gene is its description, embedded by the model (`source: hidden`, see `bft_ray.evaluate.engine.embed`), or what
the model says when asked to describe it, embedded by a text encoder (`source: generated`). Classifiers on top (see
`bft_ray.evaluate.classify`) are fitted to the training pairs and measured on the test pairs.

*Split by genes.* A gene of a test pair is never trained on: training pairs that touch one are dropped and counted.
Otherwise a classifier may learn which genes have many partners, and needs to know nothing about the pair.

Pairs of a gene with itself are left out and counted too: their embeddings are equal, which would give them away.

Genes are those with a row in `descriptions`, for both sources, so that both are measured on the same pairs. Pairs of
other genes are dropped and counted; where most genes have no row, that is an error.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bft_ray.config.tasks import EmbeddingPairsTask
from bft_ray.data.rows import Row, read_table
from bft_ray.data.tables import naming
from bft_ray.data.values import Ids, kind_of
from bft_ray.errors import BadInput
from bft_ray.evaluate.classify import fit_classifiers, keyed_order, pair_features, ranking_metrics
from bft_ray.evaluate.engine.embed import TextPieces, cut_texts
from bft_ray.evaluate.engine.request import Context, Generate, Measured, Prepared
from bft_ray.evaluate.tasks.pairs import Pair, fill, read_pairs

_FEWEST_PAIRS = 50  # to fit on
_FEWEST_OF_A_LABEL = 5
_SHOWN_GENES = 5
_DIGITS = 6  # of a score: nearer ones are equal, so that rounding decides no order
_SUFFIX = {"logistic": "", "mlp": "_mlp"}  # of metrics and scores, by classifier


@dataclass(frozen=True)
class _Pairs:
    """What is left of the two files; counts are of pairs."""

    train: list[Pair]
    test: list[Pair]
    num_dropped: int = 0
    num_undescribed: int = 0
    num_self: int = 0

    def apart(self) -> _Pairs:
        """Without pairs of a gene with itself, whose features |a - b| = 0 would give their label away."""
        left, gone = self._where(lambda pair: pair.gene_a != pair.gene_b)
        return replace(left, num_self=gone)

    def keep(self, known: set[str]) -> _Pairs:
        """Those of known genes alone."""
        left, gone = self._where(lambda pair: _both(pair) <= known)
        return replace(left, num_undescribed=self.num_undescribed + gone)

    def _where(self, is_kept: Callable[[Pair], bool]) -> tuple[_Pairs, int]:
        """Those that are kept, and the number of the others."""
        train, test = list(filter(is_kept, self.train)), list(filter(is_kept, self.test))
        return replace(self, train=train, test=test), len(self.train) + len(self.test) - len(train) - len(test)

    def split(self) -> _Pairs:
        """Without the training pairs that touch a gene of a test pair."""
        seen = _genes(self.test)
        train = [pair for pair in self.train if not _both(pair) & seen]
        return replace(self, train=train, num_dropped=self.num_dropped + len(self.train) - len(train))


def prepare(task: EmbeddingPairsTask, context: Context) -> Prepared:
    """One request: the embeddings of all genes, or their generated descriptions.

    Raises:
        BadInput: a malformed row, more than half of a file's genes without a description, fewer than 50 training
            pairs (or 5 of a label) left, test pairs of one label alone, a template without {gene}, an encoder or
            engine that is not there.
    """
    field = f"evaluation.tasks.{task.name}"
    with naming(f"{field}.descriptions") as name:
        described = read_descriptions(task.descriptions, name)
    with naming(f"{field}.train") as name:
        train = read_pairs(task.train, None, name)
    test = read_pairs(task.path, task.limit, field)
    for path, pairs in ((task.train, train), (task.path, test)):
        _require_described(path, pairs, set(described), f"{field}.descriptions")
    left = _Pairs(train, test).apart().keep(set(described)).split()
    _require_enough(left, f"{field}.train")
    genes = sorted(_genes(left.train) | _genes(left.test))
    if task.source == "generated":
        return _prepare_generated(task, context, field, left, genes)
    places, texts = zip(*(described[gene] for gene in genes), strict=True)
    pieces = cut_texts(genes, places, texts, context)

    return Prepared([pieces.request], functools.partial(_finish, task, left, genes, pieces))


def _finish(
    task: EmbeddingPairsTask, pairs: _Pairs, genes: list[str], pieces: TextPieces, answers: Sequence[np.ndarray]
) -> Measured:
    return _measure(task, pairs, genes, pieces.join(answers[0]))


def read_descriptions(path: str, field: str) -> dict[str, tuple[str, str]]:
    """Gene -> (place, description), from rows of gene and description.

    Raises:
        BadInput: no such file, a malformed row, or a gene that is described twice.
    """
    genes, described = Ids("gene", "Describe each gene once."), dict[str, tuple[str, str]]()
    for where, record in read_table(path, field=field):
        gene = _text(where, record, "gene")
        genes.add(gene, where)
        described[gene] = (where, _text(where, record, "description"))
    return described


def _text(where: str, record: dict, column: str) -> str:
    value = record.get(column)
    if not isinstance(value, str) or not value.strip():
        raise BadInput(f"{where} {column}", "empty" if value == "" else kind_of(value), "text that is not empty")
    return value


def _both(pair: Pair) -> set[str]:
    return {pair.gene_a, pair.gene_b}


def _genes(pairs: Sequence[Pair]) -> set[str]:
    return {gene for pair in pairs for gene in _both(pair)}


def _require_described(path: str, pairs: Sequence[Pair], described: set[str], field: str) -> None:
    genes = _genes(pairs)
    missing = sorted(genes - described)
    if 2 * len(missing) > len(genes):
        raise BadInput(
            field,
            f"{len(missing)} of {len(genes)} genes of {path} missing",
            "a description of at least half of the genes",
            f"It lacks {', '.join(missing[:_SHOWN_GENES])}{' ...' if len(missing) > _SHOWN_GENES else ''}.",
        )


def _require_enough(pairs: _Pairs, field: str) -> None:
    ones = sum(pair.label for pair in pairs.train)
    counts = (len(pairs.train) - ones, ones)
    if len(pairs.train) < _FEWEST_PAIRS or min(counts) < _FEWEST_OF_A_LABEL:
        raise BadInput(
            field,
            f"{counts[0]} pairs of label 0 and {counts[1]} of label 1",
            f"at least {_FEWEST_PAIRS} pairs to fit on, {_FEWEST_OF_A_LABEL} of each label",
            f"{pairs.num_dropped} touch a gene that is tested on and {pairs.num_undescribed} of both files have a gene "
            "without a description: give more training pairs, of other genes than the test pairs.",
        )
    if len({pair.label for pair in pairs.test}) < 2:
        where = f"{field.rpartition('.')[0]}.path"
        raise BadInput(where, f"{len(pairs.test)} pairs of one label", "pairs of label 0 and of label 1")


# --- generated descriptions ---------------------------------------------------------------------------------


def _prepare_generated(
    task: EmbeddingPairsTask, context: Context, field: str, pairs: _Pairs, genes: list[str]
) -> Prepared:
    from bft_ray.evaluate.clients.encoder import check_encoder, encode_texts
    from bft_ray.evaluate.engine.generate import check_engine
    from bft_ray.evaluate.tasks.generation import encode_prompts

    if "{gene}" not in task.template:
        raise BadInput(f"{field}.template", task.template, "a template with {gene}")
    check_engine(task.decoding, f"{field}.decoding.engine")
    encoder = str(task.encoder)  # the config sees to it that there is one
    check_encoder(encoder, f"{field}.encoder")
    encode = functools.partial(encode_texts, encoder, field=f"{field}.encoder")
    rows = [Row(gene, gene, prompt=fill(task.template, gene=gene), completion="?") for gene in genes]
    request = Generate(genes, encode_prompts(rows, context), task.decoding, task.seed)

    finish = functools.partial(_finish_generated, task, pairs, genes, context.tokenizer, encode, f"{field}.template")
    return Prepared([request], finish)


def _finish_generated(
    task: EmbeddingPairsTask,
    pairs: _Pairs,
    genes: list[str],
    tokenizer: Any,
    encode: Callable[[list[str]], np.ndarray],
    field: str,
    answers: Sequence[list[list[np.ndarray]]],
) -> Measured:
    """From the descriptions of each gene: the mean of their embeddings is the gene's. Empty ones are counted and left out;
    so are the pairs of a gene that has no other.
    """
    from bft_ray.evaluate.tasks.generation import decode

    texts = [[decode(tokens, tokenizer).strip() for tokens in samples] for samples in answers[0]]
    num_empty = sum(not text for samples in texts for text in samples)
    owner = [index for index, samples in enumerate(texts) for text in samples if text]
    spoken = sorted(set(owner))
    pairs = pairs.keep({genes[index] for index in spoken})
    _require_enough(pairs, field)
    encoded = encode([text for samples in texts for text in samples if text]).astype(np.float64)
    sums = np.zeros((len(genes), encoded.shape[1]))
    np.add.at(sums, owner, encoded)
    means = sums[spoken] / np.bincount(owner, minlength=len(genes))[spoken, None]
    measured = _measure(task, pairs, [genes[index] for index in spoken], means)
    return Measured(measured.metrics | {f"{task.name}/num_empty": float(num_empty)}, measured.records)


# --- figures ------------------------------------------------------------------------------------------------


def _measure(task: EmbeddingPairsTask, pairs: _Pairs, genes: list[str], embeddings: np.ndarray) -> Measured:
    """Metrics and records from the embeddings [G, D] of the genes."""
    rows = {gene: row for row, gene in enumerate(genes)}

    def features(some: Sequence[Pair]) -> np.ndarray:
        a, b = [rows[pair.gene_a] for pair in some], [rows[pair.gene_b] for pair in some]
        return pair_features(embeddings[a], embeddings[b])

    # the MLP sees its rows by place: so the place must not depend on how the file was written
    order = keyed_order(["\0".join([*sorted(_both(pair)), str(pair.label)]) for pair in pairs.train], task.seed)
    train = [pairs.train[place] for place in order]
    fitted = np.array([pair.label for pair in train])
    labels = np.array([pair.label for pair in pairs.test])
    fit = fit_classifiers(features(train), fitted, features(pairs.test), task.seed)
    scores = {name: np.round(own, _DIGITS) for name, own in fit.items()}
    metrics: dict[str, float] = {}
    records: list[dict[str, Any]] = [pair.record() for pair in pairs.test]
    for name, own in scores.items():
        for key, value in ranking_metrics(labels, own, task.seed).items():
            area, _, kind = key.partition("_")
            metrics[f"{task.name}/embedding_{area}{_SUFFIX[name]}{'_' if kind else ''}{kind}"] = value
        for record, score in zip(records, own, strict=True):
            record[f"score{_SUFFIX[name]}"] = float(score)
    counts = {
        "num_items": len(pairs.test),
        "num_train_pairs": len(pairs.train),
        "num_dropped": pairs.num_dropped,
        "num_undescribed": pairs.num_undescribed,
        "num_self_pairs": pairs.num_self,
    }
    return Measured(metrics | {f"{task.name}/{name}": float(value) for name, value in counts.items()}, records)
