"""Make the bundled starter data from facts alone: three small biomedical sub-domains with multiple-choice sets.

    python jobs/make_starter_data.py --facts ../shared/data/facts --out bft_ray/data/starter

Every statement is a fact of the input (a gene stands in a GO gene set, a Gene2vec pair, a cell type's label), put
into sentences by the templates below. Nothing is drawn at random but by generators seeded from sha256, so the same
facts always give the same bytes.

**Shares.** Genes, GO terms and cell types are the keys. sha256 of the key puts each into one share: `pretrain`,
`train`, `validation`, `confirmation` or `test`. A row is written from the keys of one share only:

- `gene_interaction`: both genes of a row are of its share;
- `biological_process`: every GO term of a row is of its share;
- `medical_qa`: the gene, GO term or cell type that the row asks about is of its share.

A GO term or cell type of the `pretrain` share is named nowhere in the starter data, and a pretraining row names no
other, so no fact is in both. Keys that the pretraining text of the data folder tells about (`--data`) are put into
`pretrain`, those that its other splits ask about are barred from it: a starter model that was pretrained on both has
seen nothing that it is later tested on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

SHARES = ("pretrain", "train", "validation", "confirmation", "test")
STARTER_SHARES = SHARES[1:]
DOMAINS = ("gene_interaction", "biological_process", "medical_qa")
NUM_ROWS = {"pretrain": 1000, "train": 480, "validation": 110, "confirmation": 110, "test": 110}
NUM_CHOICE_ITEMS = 120
NUM_OPTIONS = 4
MAX_OPTION_CHARS = 70
# Cumulative percentages of keys. Terms need a large train share less than genes do: a term brings all its genes along.
TERM_SHARES = (40, 70, 80, 90, 100)
GENE_SHARES = (34, 64, 76, 88, 100)
CELL_SHARES = (40, 70, 80, 90, 100)
MIN_TOKENS, MAX_TOKENS = 18, 640
UNITS_PER_TOKEN = 3.0  # lengths are compared in thirds of a token
STOP_WORDS = frozenset(
    word
    for line in (
        "of in to by the a an and or via from into with on process regulation positive negative activity complex",
        "binding cell cellular involved response pathway signaling protein organization assembly",
    )
    for word in line.split(" ")
)
Row = dict[str, object]


@dataclass(frozen=True)
class Term:
    """A GO term with the human genes listed under it. `branch`: BP process, MF function, CC place."""

    id: str
    branch: str
    name: str
    genes: tuple[str, ...]


@dataclass(frozen=True)
class View:
    """The facts that the rows of one share may state."""

    share: str
    terms: dict[str, Term]
    terms_of: dict[str, tuple[str, ...]]  # gene -> ids of its terms in this view
    genes: frozenset[str]  # the genes that are keys of this share
    main_terms: tuple[str, ...]  # the GO terms that are keys of this share
    main_set: frozenset[str]  # the same
    gene_sets: dict[str, frozenset[str]]  # term id -> its genes
    cells: dict[str, str]  # Cell Ontology id -> label, keys of this share


def main() -> None:
    """Read the facts, write the starter data and, where asked for, the pretraining share."""
    parser = argparse.ArgumentParser(description="make the starter data from public facts")
    parser.add_argument("--facts", type=Path, default=Path("../shared/data/facts"), help="folder of the facts")
    parser.add_argument(
        "--data",
        type=Path,
        default=None,
        help="folder of the splits to keep clear of; default: the parent of --facts",
    )
    parser.add_argument("--out", type=Path, default=Path("bft_ray/data/starter"), help="folder to write")
    parser.add_argument("--pretrain-out", type=Path, default=None, help="folder for the pretraining share")
    args = parser.parse_args()

    make(args.facts, args.data or args.facts.parent, args.out, args.pretrain_out)


def make(facts: Path, data: Path, out: Path, pretrain_out: Path | None) -> None:
    """Write the starter data to `out` and the pretraining share to `pretrain_out`, where there is one."""
    views, gene_pairs = read_views(facts, data)
    taken: set[str] = set()
    for domain in DOMAINS:
        for share in STARTER_SHARES:
            rows = make_rows(domain, views[share], NUM_ROWS[share], gene_pairs, taken)
            write_jsonl(out / domain / f"{share}.jsonl", rows)
        for share in STARTER_SHARES[1:]:
            items = make_choice_items(domain, views[share], NUM_CHOICE_ITEMS)
            write_jsonl(out / domain / f"choices_{share}.jsonl", items)
    if pretrain_out is not None:
        for domain in DOMAINS:
            # No Gene2vec pair here: held-out pair sets are made from the same list.
            rows = make_rows(domain, views["pretrain"], NUM_ROWS["pretrain"], frozenset(), taken)
            write_jsonl(pretrain_out / f"{domain}.jsonl", rows)
        keys = {
            "terms": sorted(views["pretrain"].terms),
            "genes": sorted(views["pretrain"].genes),
            "cells": sorted(views["pretrain"].cells),
        }
        (pretrain_out / "keys.json").write_text(json.dumps(keys, indent=0) + "\n", encoding="utf-8")


# --- facts and shares ----------------------------------------------------------------------------


def read_jsonl(path: Path) -> list[dict]:
    """The rows of a JSON-lines file."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as JSON lines, keys in the order given, so that the same rows are the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8", newline="\n")


def number_of(*parts: object) -> int:
    """A stable 64-bit number of the parts: the first 8 bytes of sha256 of them, joined by '|'."""
    return int.from_bytes(hashlib.sha256("|".join(map(str, parts)).encode()).digest()[:8], "big")


def generator_of(*parts: object) -> random.Random:
    """A generator that is always the same for the same parts."""
    return random.Random(number_of(*parts))


def share_of(kind: str, key: str, bounds: tuple[int, ...]) -> str:
    """The share of a key: `number_of % 100` against cumulative percentages."""
    percent = number_of("share", kind, key) % 100
    return next(share for share, bound in zip(SHARES, bounds, strict=True) if percent < bound)


def read_told_keys(data: Path) -> dict[str, dict[str, bool]]:
    """Keys that the splits of the data folder tell about: kind -> key -> whether its `pretrain` split does."""
    if not (data / "biological_process" / "pretrain.jsonl").is_file():
        raise SystemExit(
            f"`--data` is {data}, but must hold biological_process/pretrain.jsonl: give the folder whose "
            "splits the starter data keeps clear of"
        )
    told: dict[str, dict[str, bool]] = {"term": {}, "gene": {}, "cell": {}}
    folders = {"term": "biological_process", "gene": "gene_interaction", "cell": "cell_type"}
    for kind, folder in folders.items():
        for share in SHARES:
            for row in read_jsonl(data / folder / f"{share}.jsonl"):
                key = row["id"].rsplit("-", 1)[0] if kind == "gene" else row["id"]
                told[kind][key] = told[kind].get(key, False) or share == "pretrain"
    return told


def read_views(facts: Path, data: Path) -> tuple[dict[str, View], frozenset[frozenset[str]]]:
    """Read the facts and deal the keys out to the shares; also the Gene2vec pairs."""
    told = read_told_keys(data)

    def share(kind: str, key: str, bounds: tuple[int, ...]) -> str | None:
        drawn = share_of(kind, key, bounds)
        if key in told[kind]:
            if told[kind][key]:
                return "pretrain"
            return None if drawn == "pretrain" else drawn
        return drawn

    terms = [
        Term(row["id"], row["branch"], row["name"], tuple(row["genes"]))
        for row in read_jsonl(facts / "go_gene_sets.jsonl")
        if not row["name"].startswith("obsolete")
    ]
    genes = sorted({gene for term in terms for gene in term.genes})
    cells = {row["id"]: row["label"] for row in read_jsonl(facts / "cell_types.jsonl")}
    term_share = {term.id: share("term", term.id, TERM_SHARES) for term in terms}
    gene_share = {gene: share("gene", gene, GENE_SHARES) for gene in genes}
    cell_share = {cell: share("cell", cell, CELL_SHARES) for cell in cells}
    seen_genes = {gene for gene, in_pretrain in told["gene"].items() if in_pretrain}
    unseen_genes = {gene for gene, in_pretrain in told["gene"].items() if not in_pretrain}

    views = {}
    for name in SHARES:
        # Terms: pretraining rows name `pretrain` terms only, starter rows any other. Genes: the pretraining text tells
        # about `seen_genes`, so no starter row may, and about `unseen_genes` only other splits may.
        ours = [
            t
            for t in terms
            if term_share[t.id] is not None and (term_share[t.id] == "pretrain") == (name == "pretrain")
        ]
        hidden = unseen_genes if name == "pretrain" else seen_genes
        shown = {t.id: Term(t.id, t.branch, t.name, tuple(g for g in t.genes if g not in hidden)) for t in ours}
        shown = {key: term for key, term in shown.items() if len(term.genes) >= 3}
        terms_of: dict[str, list[str]] = defaultdict(list)
        for term in shown.values():
            for gene in term.genes:
                terms_of[gene].append(term.id)
        main_terms = tuple(sorted(key for key in shown if term_share[key] == name))
        views[name] = View(
            name,
            shown,
            {gene: tuple(ids) for gene, ids in terms_of.items()},
            frozenset(gene for gene in terms_of if gene_share[gene] == name),
            main_terms,
            frozenset(main_terms),
            {key: frozenset(term.genes) for key, term in shown.items()},
            {cell: label for cell, label in cells.items() if cell_share[cell] == name},
        )
    pairs = frozenset(frozenset((row["gene_a"], row["gene_b"])) for row in read_jsonl(facts / "gene_pairs.jsonl"))
    return views, pairs


# --- words ----------------------------------------------------------------------------


def listing(names: Iterable[str]) -> str:
    """'a', 'a and b', 'a, b and c'. Names that hold a comma are parted by semicolons."""
    items = list(names)
    comma = "; " if any("," in item for item in items) else ", "
    return items[0] if len(items) == 1 else f"{comma.join(items[:-1])} and {items[-1]}"


BRANCH_NOUN = {"BP": "process", "MF": "function", "CC": "place"}
CLAUSES = {
    "BP": ("takes part in {}", "is involved in {}", "has a role in {}"),
    "MF": ("shows {}", "is listed for the function {}", "can provide {}"),
    "CC": ("is found in the place {}", "belongs to the {}", "is listed at the {}"),
}


def clauses_of(terms: list[Term], rng: random.Random) -> list[str]:
    """One verb phrase for each branch that the terms are of, processes first."""
    out = []
    for branch in ("BP", "MF", "CC"):
        names = [term.name for term in terms if term.branch == branch]
        if names:
            out.append(rng.choice(CLAUSES[branch]).format(listing(names)))
    return out


def describe(gene: str, terms: list[Term], style: int, rng: random.Random) -> str:
    """What GO says of a gene, in one of four styles."""
    if style == 0:
        lines = [f"- {term.name} ({BRANCH_NOUN[term.branch]})" for term in terms]
        return f"{gene}:\n" + "\n".join(lines) + "\n"
    if style == 1:
        return " ".join(f"{gene if i == 0 else 'It'} {clause}." for i, clause in enumerate(clauses_of(terms, rng)))
    if style == 2:
        return f"What GO says of {gene}: " + "; ".join(term.name for term in terms) + "."
    return f"{gene} {listing(clauses_of(terms, rng))}."


def share_clause(terms: list[Term]) -> str:
    """'take part in x and y and show z': what several genes have in common."""
    verbs = {"BP": "take part in {}", "MF": "show {}", "CC": "belong to the {}"}
    names = {branch: [term.name for term in terms if term.branch == branch] for branch in verbs}
    return listing(verbs[branch].format(listing(names[branch])) for branch in verbs if names[branch])


def content_words(text: str) -> set[str]:
    """The words that carry a term's topic."""
    return {word for word in re.findall(r"[a-z0-9]+", text.lower()) if word not in STOP_WORDS and len(word) > 2}


def related(term: Term, ids: Iterable[str], view: View) -> list[Term]:
    """The terms of `ids` by falling overlap of genes with `term` (Jaccard), ties by id."""
    mine = view.gene_sets[term.id]

    def distance(key: str) -> tuple[float, str]:
        theirs = view.gene_sets[key]
        common = len(mine & theirs)
        return -common / (len(mine) + len(theirs) - common), key

    return [view.terms[key] for key in sorted((key for key in ids if key != term.id), key=distance)]


def size_of(text: str, view: View) -> float:
    """About how long a text is, in thirds of a token of the starter model.

    Gene symbols fall into many tokens, English words into few: the coefficients are a least-squares fit on these rows.
    The pretraining share came before any tokenizer: there a character counts as a third of a token.
    """
    if view.share == "pretrain":
        return len(text)
    words = re.findall(r"[A-Za-z0-9]+", text)
    symbols = [word for word in words if len(word) > 1 and not word.islower()]
    long = sum(max(0, len(word) - 6) for word in words if word.islower())
    signs = len(re.findall(r"[^ A-Za-z0-9]", text))
    tokens = (
        0.08 * len(symbols) + 0.66 * sum(map(len, symbols)) + (len(words) - len(symbols)) + 0.13 * long + 0.71 * signs
    )
    return UNITS_PER_TOKEN * tokens


def grow(build: Callable[[int], str], most: int, target: int, view: View) -> str:
    """The shortest of build(0) .. build(most) that is as long as `target`; the last one where none is."""
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        if size_of(build(middle), view) >= target:
            high = middle
        else:
            low = middle + 1
    return build(low)


# --- rows ----------------------------------------------------------------------------

Maker = Callable[[str, View, int], "tuple[str, str] | None"]


def make_rows(domain: str, view: View, num: int, gene_pairs: frozenset, taken: set[str]) -> list[Row]:
    """`num` rows of a domain, their lengths spread evenly on a logarithmic scale, no completion twice.

    The longest are made first, since few keys have enough facts for them; the file is then put into hash order.
    """
    targets = [MIN_TOKENS * math.exp(math.log(MAX_TOKENS / MIN_TOKENS) * (num - 1 - i) / (num - 1)) for i in range(num)]
    keys = {
        "gene_interaction": lambda: interaction_keys(view, gene_pairs),
        "biological_process": lambda: process_keys(view),
        "medical_qa": lambda: question_keys(view),
    }[domain]()
    maker: Maker = {
        "gene_interaction": interaction_row,
        "biological_process": process_row,
        "medical_qa": question_row,
    }[domain]
    rows: list[Row] = []
    longest: dict[str, float] = {}  # what is known of how long a key's completion can become
    for tokens in targets:
        target = round(tokens * UNITS_PER_TOKEN)
        for position, key in enumerate(keys):
            if longest.get(key, target) < 0.85 * target:
                continue
            made = maker(key, view, target)
            size = size_of(made[1], view) if made else 0.0
            if size < 0.85 * target:
                # Too few facts for this length: the key is kept for a shorter one.
                longest[key] = size
                continue
            assert made is not None
            if size > 1.5 * target + 60 or made[1] in taken:
                continue
            taken.add(made[1])
            rows.append({"id": f"{domain}-{view.share}-{key}", "prompt": made[0], "completion": made[1]})
            del keys[position]
            break
        else:
            raise SystemExit(f"too few facts for {num} rows of {domain}/{view.share}")
    return sorted(rows, key=lambda row: number_of("order", row["id"]))


def interaction_keys(view: View, gene_pairs: frozenset) -> list[str]:
    """Keys 'A+B' of pairs of the share's genes, with a shared term or (one in six) with none. '*': in Gene2vec."""
    keys = set()
    for term in view.terms.values():
        ours = sorted((gene for gene in term.genes if gene in view.genes), key=lambda gene: number_of(term.id, gene))
        for a, b in zip(ours[::2], ours[1::2], strict=False):
            keys.add(f"{a}+{b}" + ("*" if frozenset((a, b)) in gene_pairs else ""))
    genes = sorted(view.genes, key=lambda gene: number_of("lone", gene))
    for a, b in zip(genes[::2], genes[1::2], strict=False):
        if (
            len(view.terms_of[a]) >= 3
            and len(view.terms_of[b]) >= 3
            and not set(view.terms_of[a]) & set(view.terms_of[b])
        ):
            keys.add(f"{a}+{b}")
    together = [k for k in keys if set(view.terms_of[pair_of(k)[0]]) & set(view.terms_of[pair_of(k)[1]])]
    apart = sorted(keys - set(together), key=lambda key: number_of("pair", key))
    # Pairs of Gene2vec first: there two sources agree.
    together.sort(key=lambda key: (not key.endswith("*"), number_of("pair", key)))
    apart_every = 6
    out: list[str] = []
    rest = iter(apart)
    for i, key in enumerate(together):
        if i % apart_every == apart_every - 1:
            out.extend(k for k in (next(rest, None),) if k)
        out.append(key)
    return out


def pair_of(key: str) -> tuple[str, str]:
    """'A+B' or 'A+B*' -> ('A', 'B')."""
    a, b = key.rstrip("*").split("+")
    return a, b


def split_terms(a: str, b: str, view: View, rng: random.Random) -> tuple[list[Term], list[Term], list[Term]]:
    """The terms of both genes, of the first alone and of the second alone, each shuffled."""
    common = set(view.terms_of[a]) & set(view.terms_of[b])
    both = [view.terms[i] for i in view.terms_of[a] if i in common]
    only_a = [view.terms[i] for i in view.terms_of[a] if i not in common]
    only_b = [view.terms[i] for i in view.terms_of[b] if i not in common]
    for terms in (both, only_a, only_b):
        rng.shuffle(terms)
    return both, only_a, only_b


def interaction_row(key: str, view: View, target: int) -> tuple[str, str] | None:
    """Do two genes act together? Their facts, what the lists have in common, and what follows."""
    a, b = pair_of(key)
    rng = generator_of("interaction", key)
    both, only_a, only_b = split_terms(a, b, view, rng)
    if not both and min(len(only_a), len(only_b)) < 2:
        return None
    if both and only_a and only_b and rng.random() < 0.3:
        return shared_row(a, b, view, both, only_a, only_b, target, rng)
    prompt = rng.choice(
        (
            f"Do the human genes {a} and {b} act together? Reason from what Gene Ontology says of each.",
            f"What do Gene Ontology terms tell about an interaction of {a} and {b}?",
            f"Compare the human genes {a} and {b}: what does each do, and are they likely to act together?",
            f"Is it likely that {a} and {b} work in the same process? Give the evidence first.",
        )
    )
    style, seed = rng.randrange(4), rng.random()
    opening = rng.choice(("", "", f"First {a}, then {b}. ", "Compare the two lists. "))
    verdict = verdict_of(a, b, both, rng)
    if key.endswith("*"):
        verdict += rng.choice((f" Gene2vec, too, pairs {a} with {b}.", " The two are also a pair of Gene2vec."))

    def build(num: int) -> str:
        if num == 0:
            return verdict
        words = random.Random(seed)
        # The shared terms stand hidden among the others: to find them is the reasoning.
        parts = []
        for gene, only in ((a, only_a), (b, only_b)):
            terms = both[:4] + only[: max(1, num - len(both[:4]))]
            random.Random(f"{seed}{gene}").shuffle(terms)
            parts.append(describe(gene, terms, style, words))
        gap = "\n" if style in (0, 2) else " "
        return opening + gap.join(parts) + gap + verdict

    return prompt, grow(build, max(len(only_a), len(only_b)) + len(both[:4]), target, view)


def verdict_of(a: str, b: str, both: list[Term], rng: random.Random) -> str:
    """The conclusion: what both lists have in common, or that they have nothing in common."""
    if not both:
        return rng.choice(
            (
                f"The two lists have no term in common; they give no reason to expect that {a} and {b} act together.",
                f"No term stands in both lists. On these facts {a} and {b} are not likely to act together.",
            )
        )
    common = share_clause(both[:4])
    names = listing(term.name for term in both[:4])
    return rng.choice(
        (
            f"Both {common}; so {a} and {b} are likely to act together.",
            f"{a} and {b} both {common}. They are therefore likely to act together.",
            f"In common: {names}. This makes it likely that {a} and {b} act together.",
            f"The lists meet at {names}: {a} and {b} probably work side by side.",
        )
    )


def shared_question(a: str, b: str, seen_a: list[Term], seen_b: list[Term], rng: random.Random) -> str:
    """The question that the choice items ask: what have two genes in common, given other terms of each?"""
    facts = f"{a}: {'; '.join(t.name for t in seen_a)}. {b}: {'; '.join(t.name for t in seen_b)}."
    return (
        facts
        + " "
        + rng.choice(
            (
                "Which further term do both genes share?",
                "What else are both genes likely to have in common?",
                f"Name a term under which {a} and {b} are both listed.",
            )
        )
    )


def shared_row(
    a: str,
    b: str,
    view: View,
    both: list[Term],
    only_a: list[Term],
    only_b: list[Term],
    target: int,
    rng: random.Random,
) -> tuple[str, str]:
    """The answer to `shared_question`, with reasons."""
    answer = both[0]
    near_a, near_b = (
        related(answer, [t.id for t in only_a], view),
        related(answer, [t.id for t in only_b], view),
    )
    prompt = shared_question(a, b, near_a[:3], near_b[:3], rng)
    others = [gene for gene in answer.genes if gene not in (a, b)]
    extra = [f"Its other genes include {listing(others[:6])}."] if others else []
    for gene, near in ((a, near_a), (b, near_b)):
        for term in near[:12]:
            meet = sorted(set(term.genes) & set(answer.genes) - {gene})
            if meet:
                extra.append(
                    f"{gene} also stands under {term.name}, as {'does' if len(meet) == 1 else 'do'} "
                    f"{listing(meet[:5])} of the same set."
                )
            else:
                extra.append(f"{gene} also stands under {term.name}.")
    head = f"{answer.name}. " + rng.choice(
        (f"Both {a} and {b} are listed under it.", f"GO lists {a} as well as {b} there.")
    )
    tail = f" So {a} and {b} both {share_clause([answer])}."
    return prompt, grow(
        lambda n: head + "".join(" " + e for e in extra[:n]) + (tail if n else ""), len(extra), target, view
    )


def process_keys(view: View) -> list[str]:
    """The share's GO terms in hash order."""
    return sorted(view.main_terms, key=lambda key: number_of("process", key))


def near_terms(term: Term, view: View) -> list[Term]:
    """The terms that are keys of this share and have a gene in common with `term`, nearest first."""
    ids = {i for gene in term.genes for i in view.terms_of[gene]}
    return related(term, ids & view.main_set, view)


def process_question(genes: list[str], hints: list[Term], rng: random.Random) -> str:
    """A gene set, maybe with other terms that some of its genes stand under, and the question for its name."""
    names = ", ".join(genes)
    if not hints:
        return rng.choice(
            (
                f"Name the process, function or place that these human genes share, then go through them: {names}.",
                f"What do the genes {names} have in common?",
                f"Gene set: {names}. Find the name that fits all of them and give your reasons.",
            )
        )
    clues = "; ".join(hint.name for hint in hints)
    return rng.choice(
        (
            f"Gene set: {names}. Some of these genes also stand under: {clues}. Name the set and explain.",
            f"These human genes form a set: {names}. Related terms are {clues}. What is the set called?",
        )
    )


def hints_of(genes: list[str], near: list[Term], view: View) -> list[Term]:
    """The first three of `near` that some of `genes` stand under."""
    return [term for term in near if not view.gene_sets[term.id].isdisjoint(genes)][:3]


def process_row(key: str, view: View, target: int) -> tuple[str, str] | None:
    """The name of a gene set, then its genes one by one."""
    term = view.terms[key]
    rng = generator_of("process-row", key)
    genes = list(term.genes)
    rng.shuffle(genes)
    genes = genes[: max(3, min(40, target // 45))]
    near = near_terms(term, view)
    rank = {other.id: position for position, other in enumerate(near)}
    hints = hints_of(genes, near, view) if rng.random() < 0.5 else []
    prompt = process_question(genes, hints, rng)
    noun = BRANCH_NOUN[term.branch]
    numbered = rng.random() < 0.5
    styles = [rng.randrange(4) for _ in genes]
    seen: dict[str, list[str]] = defaultdict(list)
    steps = []
    for gene, style in zip(genes, styles, strict=True):
        ids = sorted((i for i in view.terms_of[gene] if i in rank), key=rank.__getitem__)
        side = [view.terms[i] for i in ids[:4]]
        if not side:
            steps.append(
                (
                    f"{gene} is listed under {term.name}.",
                    f"{gene} belongs to the set.",
                    f"GO lists {gene} here.",
                    f"{gene} fits the {noun} {term.name}.",
                )[style]
            )
            continue
        names = listing(t.name for t in side)
        clause = listing(clauses_of(side, generator_of(gene, key)))
        steps.append(
            (
                f"{gene} {clause}.",
                f"{gene} is also listed under {names}.",
                f"{gene} {clause}; it fits {term.name}.",
                f"Of {gene}, GO further names {names}.",
            )[style]
        )
        for other in side:
            seen[other.name].append(gene)
    groups = [f"{listing(members)} meet again under {name}." for name, members in seen.items() if len(members) > 1]
    steps += groups[:8]
    short = rng.choice(
        (
            f"All {len(genes)} genes are listed under it.",
            f"GO lists {genes[0]} and {genes[1]} under this {noun}.",
            f"{genes[0]}, {genes[1]} and {genes[2]} share it.",
        )
    )
    tail = rng.choice(
        (
            f"What the genes have in common is {term.name}.",
            f"Taken together, the set stands for {term.name}.",
            f"So the {noun} that fits every gene is {term.name}.",
        )
    )

    def build(num: int) -> str:
        if num == 0:
            return f"Process: {term.name}\n\n{short}"
        shown = [f"{i}. {step}\n" if numbered else f"{step} " for i, step in enumerate(steps[:num], 1)]
        return f"Process: {term.name}\n\n{''.join(shown)}{tail}"

    return prompt, grow(build, len(steps), target, view)


def question_keys(view: View) -> list[str]:
    """Keys of questions, in turn: 'gene X' (where it acts), 'term X' (its genes), 'cell X' (what the name says)."""
    cc = {i for i, term in view.terms.items() if term.branch == "CC"}
    genes = [gene for gene in view.genes if cc & set(view.terms_of[gene])]
    kinds: list[list[str]] = [
        sorted((f"gene {gene}" for gene in genes), key=lambda key: number_of("question", key)),
        sorted(
            (f"term {i}" for i in view.main_terms if view.terms[i].branch == "BP"),
            key=lambda k: number_of("question", k),
        ),
        sorted((f"cell {cell}" for cell in view.cells), key=lambda key: number_of("question", key)),
    ]
    order = (0, 1, 0, 1, 2)
    positions = [0, 0, 0]
    out = []
    for i in range(2 * sum(map(len, kinds))):
        kind = order[i % len(order)]
        if positions[kind] < len(kinds[kind]):
            out.append(kinds[kind][positions[kind]])
            positions[kind] += 1
    return out


def question_row(key: str, view: View, target: int) -> tuple[str, str] | None:
    """A question and its answer, by the kind of key."""
    kind, name = key.split(" ", 1)
    make = {"gene": gene_answer, "term": term_answer, "cell": cell_answer}[kind]
    return make(name, view, target, generator_of("question-row", key))


def gene_answer(gene: str, view: View, target: int, rng: random.Random) -> tuple[str, str] | None:
    """Where does a gene's product act? Places first, then functions, which belong to the gene's share alone."""
    terms = [view.terms[i] for i in view.terms_of[gene]]
    places = [term for term in terms if term.branch == "CC"]
    functions = [term for term in terms if term.branch == "MF"]
    rng.shuffle(places)
    if functions and rng.random() < 0.5:
        prompt = place_question(functions[:3], rng)
        head = f"{places[0].name}. " + rng.choice((f"{gene} is such a case.", f"An example is {gene}."))
    else:
        prompt = rng.choice(
            (
                f"Where in the cell does the product of the human gene {gene} act?",
                f"In which part of the cell is {gene} found, and what does it do there?",
                f"What is known about the place and the function of {gene}?",
            )
        )
        head = rng.choice(
            (
                f"{gene} belongs to the {places[0].name}.",
                f"The product of {gene} is listed at the {places[0].name}.",
            )
        )
    steps = []
    for term in places[1:]:
        steps.append(rng.choice((f"It is also listed at the {term.name}.", f"A further place is the {term.name}.")))
    for term in functions:
        steps.append(rng.choice((f"It shows {term.name}.", f"Its functions include {term.name}.")))
    for term in places:
        fellows = [g for g in term.genes if g in view.genes and g != gene]
        rng.shuffle(fellows)
        if fellows:
            steps.append(
                f"{listing(fellows[:8])} {'is' if len(fellows) == 1 else 'are'} listed at the {term.name} as well."
            )
    for term in functions:
        fellows = [g for g in term.genes if g in view.genes and g != gene]
        rng.shuffle(fellows)
        if fellows:
            steps.append(f"The function {term.name} is shown by {listing(fellows[:8])} too.")
    tail = f" In short, {gene} acts at the {places[0].name}."
    return prompt, grow(
        lambda n: head + "".join(" " + s for s in steps[:n]) + (tail if n > 2 else ""),
        len(steps),
        target,
        view,
    )


def place_question(functions: list[Term], rng: random.Random) -> str:
    """The question that the choice items ask: where does a protein with these functions act?"""
    names = listing(term.name for term in functions)
    return rng.choice(
        (
            f"A human protein shows {names}. Where in the cell is it likely to be found?",
            f"Which part of the cell fits a protein with {names}?",
        )
    )


def term_answer(key: str, view: View, target: int, rng: random.Random) -> tuple[str, str] | None:
    """Which genes take part in a process?"""
    term = view.terms[key]
    genes = list(term.genes)
    rng.shuffle(genes)
    prompt = rng.choice(
        (
            f"Which human genes take part in {term.name}?",
            f"Name genes that are involved in {term.name}.",
            f"What is known about the genes of {term.name}?",
        )
    )
    steps = []
    for other in near_terms(term, view)[:12]:
        meet = sorted(set(other.genes) & set(genes))
        if other.branch == "BP":
            steps.append(
                rng.choice(
                    (
                        f"{listing(meet[:6])} {'is' if len(meet) == 1 else 'are'} involved in {other.name} as well.",
                        f"With {other.name} it shares {listing(meet[:6])}.",
                    )
                )
            )
    size = max(2, min(len(genes), target // 12))
    head = rng.choice(
        (
            f"Genes that take part in {term.name} are {listing(genes[:size])}.",
            f"{listing(genes[:size])} are listed under {term.name}.",
        )
    )
    kin = defaultdict(list)
    for gene in genes[:size]:
        root = re.match(r"[A-Z]{2,}", gene)
        if root:
            kin[root.group()].append(gene)
    steps += [f"By their symbols {listing(members)} look alike." for members in kin.values() if len(members) > 1]
    return prompt, grow(lambda n: head + "".join(" " + s for s in steps[:n]), len(steps), target, view)


def read_label(label: str) -> list[str]:
    """What the parts of a cell type's name say: markers, place, species, kind."""
    says = []
    for sign, words in (
        ("positive", "is positive for"),
        ("negative", "is negative for"),
        ("high", "has much"),
        ("low", "has little"),
    ):
        for marker in re.findall(rf"(?:^|[ ,])([A-Za-z0-9][\w./]*(?:-[\w./]+)*?)-{sign}\b", label):
            says.append(f"it {words} {marker}")
    core = re.sub(r", (mouse|human)$", "", label)
    for species in ("mouse", "human"):
        if label.endswith(f", {species}"):
            says.append(f"the name is meant for the {species}")
    if " of " in core:
        kind, place = core.split(" of ", 1)
        says.append(f"it is a kind of {kind.split()[-1]}")
        says.append(f"it belongs to {place if place.startswith('the ') else 'the ' + place}")
    else:
        says.append(f"it is a kind of {core.split()[-1]}")
        if len(core.split()) > 1:
            says.append(f"the words '{' '.join(core.split()[:-1])}' narrow it down")
    return says


def cell_answer(cell: str, view: View, target: int, rng: random.Random) -> tuple[str, str] | None:
    """What does the name of a cell type say?"""
    label = view.cells[cell]
    says = read_label(label)
    prompt = rng.choice(
        (
            f"What does the name of the cell type '{label}' tell?",
            f"Read the cell type name '{label}' part by part.",
            f"Going by its name, what is a {label}?",
        )
    )
    head = rng.choice(
        (f"The name '{label}' says that {says[0]}.", f"'{label}' is a name of the Cell Ontology; {says[0]}.")
    )
    steps = [f"Further, {say}." for say in says[1:]]
    words = content_words(label)
    kin = sorted(
        (other for i, other in view.cells.items() if i != cell and len(words & content_words(other)) >= 1),
        key=lambda other: (-len(words & content_words(other)) / len(words | content_words(other)), other),
    )
    for other in kin[:14]:
        common = sorted(words & content_words(other))
        steps.append(
            rng.choice(
                (
                    f"A name that shares the word{'s' if len(common) > 1 else ''} {listing(common)} is '{other}'.",
                    f"Compare '{other}', which also has {listing(common)}.",
                )
            )
        )
    return prompt, grow(lambda n: head + "".join(" " + s for s in steps[:n]), len(steps), target, view)


# --- choice items ----------------------------------------------------------------------------


def make_choice_items(domain: str, view: View, num: int) -> list[Row]:
    """`num` questions with four options of like length; the right one's index is evenly spread."""
    make = {
        "gene_interaction": interaction_choices,
        "biological_process": process_choices,
        "medical_qa": question_choices,
    }[domain]
    items: list[Row] = []
    asked: set[str] = set()
    for key, question, right, wrong in make(view):
        if len(items) == num:
            break
        if question in asked:
            continue
        asked.add(question)
        # A block of four items holds each index once, in an order drawn for the block.
        block = list(range(NUM_OPTIONS))
        generator_of("answer", domain, view.share, len(items) // NUM_OPTIONS).shuffle(block)
        answer = block[len(items) % NUM_OPTIONS]
        options = [*wrong[:answer], right, *wrong[answer:]]
        items.append(
            {
                "id": f"{domain}-{view.share}-choice-{key}",
                "question": question,
                "choices": options,
                "answer": answer,
            }
        )
    if len(items) < num:
        raise SystemExit(f"too few facts for {num} choice items of {domain}/{view.share}")
    return items


def distant(right: Term, near: list[Term], pool: list[Term], rng: random.Random) -> list[str] | None:
    """Three names from `pool` without a gene or a topic word in common with `right` and `near`, of like length."""
    genes = {gene for term in (right, *near) for gene in term.genes}
    words = {word for term in (right, *near) for word in content_words(term.name)}
    picked: list[str] = []
    for term in rng.sample(pool, len(pool)):
        length = len(term.name)
        if (
            term.branch == right.branch
            and abs(length - len(right.name)) <= max(4, 0.25 * len(right.name))
            and not genes & set(term.genes)
            and not words & content_words(term.name)
        ):
            picked.append(term.name)
            words |= content_words(term.name)
        if len(picked) == NUM_OPTIONS - 1:
            return picked
    return None


Item = tuple[str, str, str, list[str]]


def interaction_choices(view: View) -> Iterator[Item]:
    """What do two genes share, given other terms of each?"""
    pool = [term for term in view.terms.values() if len(term.name) < MAX_OPTION_CHARS]
    for key in interaction_keys(view, frozenset()):
        a, b = pair_of(key)
        rng = generator_of("interaction-choice", key)
        both, only_a, only_b = split_terms(a, b, view, rng)
        both = [term for term in both if len(term.name) < MAX_OPTION_CHARS]
        if not both or not only_a or not only_b:
            continue
        right = both[0]
        near_a = related(right, [t.id for t in only_a], view)[:3]
        near_b = related(right, [t.id for t in only_b], view)[:3]
        wrong = distant(right, near_a + near_b, pool, rng)
        if wrong:
            yield key, shared_question(a, b, near_a, near_b, rng), right.name, wrong


def process_choices(view: View) -> Iterator[Item]:
    """What is a gene set called, given terms that overlap with it?"""
    pool = [view.terms[i] for i in view.main_terms if len(view.terms[i].name) < MAX_OPTION_CHARS]
    for key in sorted(view.main_terms, key=lambda key: number_of("process-choice", key)):
        right = view.terms[key]
        rng = generator_of("process-choice", key)
        genes = list(right.genes)
        rng.shuffle(genes)
        genes = genes[:10]
        hints = hints_of(genes, near_terms(right, view), view)
        if len(right.name) >= MAX_OPTION_CHARS or not hints:
            continue
        wrong = distant(right, hints, pool, rng)
        if wrong:
            yield (
                key,
                process_question(genes, hints, rng),
                f"Process: {right.name}",
                [f"Process: {name}" for name in wrong],
            )


def question_choices(view: View) -> Iterator[Item]:
    """Where does a protein with these functions act?"""
    pool = [term for term in view.terms.values() if term.branch == "CC" and len(term.name) < MAX_OPTION_CHARS]
    for gene in sorted(view.genes, key=lambda gene: number_of("place-choice", gene)):
        terms = [view.terms[i] for i in view.terms_of[gene]]
        rng = generator_of("place-choice", gene)
        places = [term for term in terms if term.branch == "CC" and len(term.name) < MAX_OPTION_CHARS]
        functions = [term for term in terms if term.branch == "MF"]
        if not places or not functions:
            continue
        # The place that the functions tell most about.
        right = max(
            places,
            key=lambda p: (sum(len(set(p.genes) & set(f.genes)) for f in functions) / len(p.genes), p.id),
        )
        functions = related(right, [f.id for f in functions], view)[:3]
        wrong = distant(right, [*functions, *places], pool, rng)
        if wrong:
            yield gene, place_question(functions, rng), right.name, wrong


if __name__ == "__main__":
    main()
