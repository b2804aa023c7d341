"""Naming the biological process of a gene set, the task of GeneAgent (Wang et al., Nature Methods 2025).

*Name choice.* The gold name is one among `num_choices - 1` names drawn from the candidates. With the tokens o_1 .. o_n of
name k after the prompt and `prefix`,

    score_k = 1/n * sum_i log p(o_i | prompt, prefix, o_<i)      probability_k = exp(score_k) / sum_j exp(score_j)

`probability` is that of the gold name, `accuracy` the share of items where its score is the largest. The draw is keyed by
(seed, item id), whatever the order of the items or candidates.

*Generated name.* The first line that the model writes after the prompt and `prefix`, against the gold name: ROUGE-L,
ROUGE-1, and under a text encoder the cosine similarity and its percentile: the share of the other candidates that are
less similar to the generated name than the gold name is (0.9: nine in ten are further off).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from bft_ray.config.tasks import NamesTask
from bft_ray.data.rows import Row, read_table, row_key, source_of, text_key
from bft_ray.data.tables import naming
from bft_ray.data.tokenise import encode_batch
from bft_ray.errors import BadInput
from bft_ray.evaluate.clients.encoder import check_encoder, encode_texts
from bft_ray.evaluate.engine.generate import check_engine
from bft_ray.evaluate.engine.request import Context, Generate, Measured, Prepared, Score, Scores
from bft_ray.evaluate.means import column_records, of_item, summarise
from bft_ray.evaluate.options import closing_tokens, split
from bft_ray.evaluate.rouge import rouge_1, rouge_l
from bft_ray.evaluate.tasks.generation import check_room, decode, read_prompts

_TIE = 1e-5  # nats a token: scores this near are equal, and a tie with the gold name is no hit
_SAME = 1e-6  # cosine similarities this near are equal


@dataclass(frozen=True)
class _Item:
    """A prompt, its gold name, and the names to choose from: the gold one first."""

    row: Row
    names: tuple[str, ...]


def prepare(task: NamesTask, context: Context) -> Prepared:
    """A request to score and, with `generate`, one to generate.

    Raises:
        BadInput: a bad file, fewer candidates than needed, a prompt that leaves no room for its names within
            `data.max_length` (named by file and line), an encoder that cannot be read, or vLLM asked for and not
            installed.
    """
    field = f"evaluation.tasks.{task.name}"
    rows = read_prompts(source_of(task), field)
    candidates = _candidates(task, rows, field)
    items = [_Item(row, draw_names(task, row.id, _gold(row), candidates, field)) for row in rows]
    prompts, continuations = _encode(task, items, context)
    ids = [row.id for row in rows]
    requests: list[Score | Generate] = [Score(ids, prompts, continuations)]
    if task.generate:
        check_engine(task.decoding, f"{field}.decoding.engine")
        if task.encoder is not None:
            check_encoder(task.encoder, f"{field}.encoder")
        requests.append(Generate(ids, prompts, task.decoding, context.seed))
    return Prepared(requests, partial(_finish, task, items, candidates, context.tokenizer))


def draw_names(task: NamesTask, item: str, gold: str, candidates: Sequence[str], field: str = "") -> tuple[str, ...]:
    """The gold name, then `num_choices - 1` others (upper and lower case are the same name)."""
    others = [name for name in candidates if name.casefold() != gold.casefold()]
    if len(others) < task.num_choices - 1:
        raise BadInput(
            f"{field}.num_choices",
            task.num_choices,
            f"at most {len(others) + 1}: there are {len(others)} other names to draw from",
            "Lower it, or give a larger file of candidates.",
        )
    return gold, *random.Random(f"{task.seed}:{item}").sample(others, task.num_choices - 1)


def _gold(row: Row) -> str:
    return str(row.completion).strip()


def _candidates(task: NamesTask, rows: Sequence[Row], field: str) -> list[str]:
    """All candidate names, each once, in an order of their own."""
    if task.candidates is None:
        names = [_gold(row) for row in rows]
    else:
        names = []
        with naming(f"{field}.candidates") as own:
            for where, record in read_table(task.candidates, field=own):
                name = record.get("name")
                if not isinstance(name, str) or not name.strip():
                    raise BadInput(f"{where} name", "missing or empty", "the text of a name")
                names.append(name.strip())
    return sorted({name.casefold(): name for name in sorted(names)}.values())


def _encode(
    task: NamesTask, items: Sequence[_Item], context: Context
) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
    """Prompts with the prefix [T], and the names' own tokens.

    A name is tokenised together with the prefix, as in training, where a space before the name belongs to its first
    token. The part of the prefix that is the same before all names of an item belongs to the prompt.
    """
    tokenizer = context.tokenizer
    rows = [
        Row(item.row.id, item.row.where, item.row.prompt, task.prefix + name, tools=item.row.tools)
        for item in items
        for name in item.names
    ]
    encoded = iter(encode_batch(rows, tokenizer, context.data))
    alone = tokenizer(task.prefix.rstrip(), add_special_tokens=False)["input_ids"] if task.prefix.strip() else []
    closing = closing_tokens(tokenizer)
    prompts, continuations = [], []
    for item in items:
        options: list[list[int]] = []
        prompt_of_first: list[int] = []
        for sample in (next(encoded) for _ in item.names):
            prompt, option = split(sample, closing)
            if not option:
                raise BadInput(f"{item.row.where} gold_name", "a name without tokens", "made of text")
            if prompt_of_first and prompt != prompt_of_first:
                rule = "but the chat template changes it with the answer, so names cannot be compared"
                raise BadInput(f"{item.row.where} prompt", "a prompt", rule, "Set data.template=plain.")
            prompt_of_first = prompt
            options.append(option)
        shared = min(_num_common(option[:-1], alone) for option in options)
        check_room(item.row.where, len(prompt) + max(map(len, options)), context)
        prompts.append(np.array(prompt + options[0][:shared], dtype=np.int32))
        continuations.append([np.array(option[shared:], dtype=np.int32) for option in options])
    return prompts, continuations


def _num_common(a: Sequence[int], b: Sequence[int]) -> int:
    """Tokens at the beginning that are the same."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


# --- metrics ------------------------------------------------------------------------------------------------


def _finish(task: NamesTask, items: list[_Item], candidates: list[str], tokenizer, answers: Sequence) -> Measured:
    columns = _choice_columns(items, answers[0])
    counts = {f"{task.name}/num_items": float(len(items))}
    if task.generate:
        names = [[first_line(decode(one, tokenizer), task.prefix) for one in item] for item in answers[1]]
        golds = [item.names[0] for item in items]
        columns |= {
            "rouge_l": _mean_over_samples(rouge_l, names, golds),
            "rouge_1": _mean_over_samples(rouge_1, names, golds),
        }
        if task.encoder is not None:
            columns |= _similarity_columns(task.encoder, names, golds, candidates)
        counts[f"{task.name}/num_empty"] = float(sum(not name for own in names for name in own))
    keys = [text_key([row_key(item.row), item.names[0]]) for item in items]
    own = [of_item(item.row.id, key, item.row.group) for item, key in zip(items, keys, strict=True)]
    return Measured(summarise(task.name, columns) | counts, column_records(own, columns))


def _choice_columns(items: Sequence[_Item], scores: Scores) -> dict[str, list[float]]:
    means = -scores.nll / scores.num_tokens
    columns: dict[str, list[float]] = {"accuracy": [], "probability": []}
    for own in np.split(means, np.cumsum([len(item.names) for item in items])[:-1]):
        odds = np.exp(own - own.max())
        columns["accuracy"].append(float(own[0] > own[1:].max() + _TIE))
        columns["probability"].append(float(odds[0] / odds.sum()))
    return columns


def first_line(text: str, prefix: str) -> str:
    """The first line with anything on it, without the prefix if it repeats that."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    start = prefix.strip()
    return line[len(start) :].strip() if start and line.casefold().startswith(start.casefold()) else line


def _mean_over_samples(metric, names: list[list[str]], golds: list[str]) -> list[float]:
    return [float(np.mean([metric(name, gold) for name in own])) for own, gold in zip(names, golds, strict=True)]


def _similarity_columns(
    encoder: str, names: list[list[str]], golds: list[str], candidates: list[str]
) -> dict[str, list[float]]:
    """Cosine similarity with the gold name, and its percentile; an empty name has similarity 0 and percentile 0."""
    texts = sorted({*candidates, *golds, *(name for own in names for name in own if name)})
    place = {text: index for index, text in enumerate(texts)}
    vectors = encode_texts(encoder, texts)
    pool = vectors[[place[name] for name in candidates]]
    columns: dict[str, list[float]] = {"name_similarity": [], "name_percentile": []}
    for own, gold in zip(names, golds, strict=True):
        is_other = np.array([name.casefold() != gold.casefold() for name in candidates])
        similarities, percentiles = [], []
        for name in own:
            if not name:
                similarities.append(0.0)
                percentiles.append(0.0)
                continue
            vector = vectors[place[name]]
            similarity = float(vector @ vectors[place[gold]])
            similarities.append(similarity)
            percentiles.append(float(((pool @ vector)[is_other] < similarity - _SAME).mean()))
        columns["name_similarity"].append(float(np.mean(similarities)))
        columns["name_percentile"].append(float(np.mean(percentiles)))
    return columns
