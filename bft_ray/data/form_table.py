"""The declarations of the forms in which rows come, as one table; `bft_ray.data.forms` recognises them.

A form says which columns make it, which it may have besides, which are known and carry nothing to learn, and what
canonical record a row becomes (see `bft_ray.data.canonical`). Names of columns match without regard to case, white
space, `-` and `_`. The first form of the table that fits decides.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from bft_ray.data import canonical, choices

Spellings = Mapping[str, tuple[str, ...]]
#: fields of a canonical record, by kind
KINDS = {
    "completion": ("prompt", "completion", "tools"),
    "messages": ("messages", "tools"),
    "text": ("text",),
    "choice": ("question", "choices", "answer", "context", "subject"),
}
#: what `columns` may name
FIELDS = ("id", *dict.fromkeys(name for names in KINDS.values() for name in names), "group")
#: what a table library writes for a value that is missing, and nobody as an answer; as a whole cell it is never taught
MISSING_WORDS = frozenset({"nan", "-nan", "NaN", "NAN", "NaT", "<NA>", "NULL", "null", "#N/A", "\\N"})
#: what both write: taught, because a class of rows may be called so, and told by `init`
DOUBTFUL_WORDS = frozenset({"NA", "N/A", "n/a", "None"})


@dataclass(frozen=True)
class Form:
    """The declaration of one form.

    Args:
        kind: a key of KINDS.
        needs: part -> spellings of its column, the first one that is there counts; all parts must be there.
        may: the same of parts that may be missing, in the table or in a row.
        one_of: at least one of these parts of `may` must be there.
        known: columns without content to learn from; they are listed as not used.
        shows: canonical field -> what it is made of, a template over the parts.
        make: values by part -> canonical record; raises Fault.
        fits: whether the values of the first rows are such as this form has.
    """

    name: str
    kind: str
    needs: Spellings
    shows: Mapping[str, str]
    make: Callable[[dict[str, Any]], dict[str, Any]]
    may: Spellings = field(default_factory=dict)
    one_of: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    fits: Callable[[Sequence[dict[str, Any]]], bool] = lambda rows: True

    @property
    def spellings(self) -> Spellings:
        """Part -> the names that its column may have."""
        return {**self.needs, **self.may, "id": ("id",), "group": ("group",)}


_QUESTION, _CONTEXT = ("question", "query", "problem"), ("context", "contexts", "passage", "article")
_SYSTEM, _TOOLS = ("system", "system_prompt", "systemprompt"), ("tools", "functions")
_REASONING = ("complex_cot", "cot", "chain_of_thought", "reasoning", "reasoning_content", "thinking", "thought")
_OPTIONS = ("options", "choices")
_CHOICE = {"question": "{question}", "choices": "{choices}", "answer": "{answer}"}
_SUBJECT = ("subject", "subject_name", "category", "body_system")
_RATIONALE = ("rationale", "explanation", "exp", "solution", "cot")
_RIGHT = ("answer", "correct_answer", "correct_option", "correct", "right_answer", "answerKey", "answer_idx", "gold")
_BY_KEY = partial(choices.choice, is_key=True)
_MAY_CHOICE = {"context": _CONTEXT, "subject": _SUBJECT}
#: names of a question and its answer, likeliest first
PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("question", "response"),
    ("question", "long_answer"),
    ("problem", "solution"),
    ("question", "solution"),
    ("instruction", "response"),
    ("instruction", "output"),
    ("query", "response"),
    ("query", "answer"),
    ("input", "output"),
    ("source", "target"),
)


def _medmcqa(name: str, base: int) -> Form:
    letters = {f"option_{letter}": (f"op{letter}", f"option_{letter}") for letter in "abcd"}
    return Form(
        name,
        "choice",
        {"question": ("question",), **letters, "answer": ("cop",)},
        {"question": "{question}", "choices": " ".join(f"{{{part}}}" for part in letters), "answer": "{answer}"},
        functools.partial(choices.choice_by_columns, base=base),
        may={"subject": ("subject_name", "subject")},
        known=("exp", "choice_type", "topic_name"),
        fits=lambda rows: all(choices.index_base(values.get("answer")) in (None, base) for values in rows),
    )


def _lettered(name: str, spelled: tuple[str, ...], labels: str, **more: Any) -> Form:
    columns = {f"option_{label}": tuple(each + label for each in spelled) for label in labels}
    needs, further = dict(list(columns.items())[:2]), dict(list(columns.items())[2:])
    return Form(
        name,
        "choice",
        {"question": (*_QUESTION, "prompt"), **needs, "answer": _RIGHT},
        {"question": "{question}", "choices": " ".join(f"{{{part}}}" for part in columns), "answer": "{answer}"},
        choices.lettered,
        may={**further, **_MAY_CHOICE},
        known=_RATIONALE,
        **more,
    )


def _pair(prompt: str, completion: str) -> Form:
    return Form(
        f"{prompt}/{completion}",
        "completion",
        {"prompt": (prompt,), "completion": (completion,)},
        {"prompt": "{prompt}", "completion": "{completion}"},
        canonical.pair,
        may={"tools": _TOOLS} if completion == "completion" else {},
        known=("gold_name", "cell_type"),
    )


def _with_system(prompt: str, completion: str) -> Form:
    return Form(
        f"system/{prompt}/{completion}",
        "messages",
        {"instruction": (prompt,), "output": (completion,), "system": _SYSTEM},
        {"messages": "{system} {instruction} {output}"},
        canonical.conversation,
        may={"history": ("history",)},
    )


#: The one table of forms; the first that fits a table's columns and its first row decides.
FORMS: tuple[Form, ...] = (
    # the hub's copy counts the right option from 0 (a class label a, b, c, d; -1: not given), the authors' files from 1
    _medmcqa("medmcqa", 0),
    _medmcqa("medmcqa_from_1", 1),
    # as spreadsheets have it; a column that is named by a letter alone may be something else
    _lettered("options_by_letter", ("option_", "choice_", "op"), "abcdefgh"),
    _lettered("options_by_number_from_0", ("option_", "choice_"), "01234567"),
    _lettered("options_by_number", ("option_", "choice_"), "12345678"),
    _lettered("columns_by_letter", ("",), "abcdefgh", fits=choices.are_options),
    Form(
        "arc",
        "choice",
        {"question": ("question",), "answer": ("answerKey",)},
        _CHOICE,
        choices.arc,
        may={**_MAY_CHOICE, "choices": ("choices",)},
    ),
    Form(
        "medqa",
        "choice",
        {"question": ("question",), "choices": _OPTIONS, "answer": ("answer_idx", "answer_index")},
        _CHOICE,
        _BY_KEY,
        may={**_MAY_CHOICE, "stated": ("answer",)},
        known=("meta_info", "metamap_phrases", *_RATIONALE),
    ),
    Form(
        "medxpertqa",
        "choice",
        {"question": ("question",), "choices": _OPTIONS, "answer": ("label", "gold")},
        _CHOICE,
        _BY_KEY,
        may=_MAY_CHOICE,
        known=("medical_task", "question_type", *_RATIONALE),
    ),
    Form(
        "mmlu",
        "choice",
        {"question": ("question", "query"), "choices": _OPTIONS, "answer": ("answer", "gold")},
        _CHOICE,
        choices.choice,
        may=_MAY_CHOICE,
        known=_RATIONALE,
    ),
    Form(
        "messages",
        "messages",
        {"messages": ("messages",)},
        {"messages": "{system} {messages}", "tools": "{tools}"},
        canonical.messages,
        may={"tools": _TOOLS, "system": _SYSTEM},
        known=("prompt", "prompt_id"),
    ),
    Form(
        "sharegpt",
        "messages",
        {"messages": ("conversations", "conversation", "dialogue")},
        {"messages": "{system} {messages}", "tools": "{tools}"},
        canonical.messages,
        may={"tools": _TOOLS, "system": _SYSTEM},
        fits=lambda rows: all(isinstance(values["messages"], list) for values in rows),
    ),
    Form(
        "llamafactory",
        "messages",
        {"instruction": ("instruction", "prompt", "query"), "output": ("output", "response")},
        {"messages": "{system} {history} {instruction} {input} {output}"},
        canonical.conversation,
        may={"system": _SYSTEM, "history": ("history",), "input": ("input",)},
        one_of=("system", "history"),
    ),
    Form(
        "reasoning",
        "completion",
        {"prompt": (*_QUESTION, "instruction", "prompt"), "reasoning": _REASONING,
         "completion": ("response", "final_answer", "answer", "output", "completion", "solution")},
        {"prompt": "{prompt}", "completion": "{reasoning} {completion}"},
        canonical.reasoned,
    ),
    Form(
        "pubmedqa",
        "completion",
        {"question": _QUESTION, "context": _CONTEXT, "answer": ("long_answer", "answer", "response", "output")},
        {"prompt": "{context}\n\n{question}", "completion": "{answer}"},
        canonical.with_context,
        known=("final_decision",),
    ),
    Form(
        "dolly",
        "completion",
        {"instruction": ("instruction",), "context": ("context",), "output": ("response", "output")},
        {"prompt": "{instruction}\n\n{context}", "completion": "{output}"},
        canonical.instructed,
        known=("category",),
    ),
    Form(
        "alpaca",
        "completion",
        {"instruction": ("instruction",), "output": ("output", "response")},
        {"prompt": "{instruction}\n\n{input}", "completion": "{output}"},
        canonical.instructed,
        may={"input": ("input",)},
        known=("text",),
    ),
    *(_with_system(*names) for names in PAIRS[1:]),
    *(_pair(*names) for names in PAIRS),
    *(
        Form(name, "text", {"text": (name,)}, {"text": "{text}"}, canonical.text,
             fits=lambda rows: all(isinstance(values["text"], str) for values in rows))
        for name in ("text", "content", "document", "abstract", "body")
    ),
)  # fmt: skip

#: columns that beside a text hold what is to be answered
LABELS = frozenset([
    "label", "labels", "class", "classlabel", "target", "diagnosis", "diagnoses", "outcome", "sentiment", "gold",
    "goldlabel", "finaldecision", "celltype", "celllabel", "disease", "phenotype", "icd", "icd9", "icd10", "icdcode",
    "icd10code", "condition", "subtype", "annotation", "significance", "clinicalsignificance", "pathogenicity",
])  # fmt: skip
#: columns that say something about a row and are not its content
METADATA = frozenset([
    "id", "idx", "index", "uid", "uuid", "guid", "qid", "rowid", "pubid", "pmid", "pmcid", "doi", "key", "hash",
    "source", "dataset", "origin", "url", "link", "date", "year", "split", "fold", "category", "type", "lang",
    "language", "license", "score", "rating", "difficulty", "level", "topic", "tags", "keywords", "label",
    "labels", "meta", "metadata", "metainfo", "created", "updated", "version", "model", "modelname", "author",
    "annotator", "name", "title", "file", "filename", "path", "subset", "domain", "subject", "specialty",
])  # fmt: skip
#: columns that are content by their name, however short
CONTENT = frozenset([
    "prompt", "completion", "question", "answer", "instruction", "input", "output", "response", "context",
    "contexts", "passage", "history", "system", "systemprompt", "reasoning", "rationale", "cot", "complexcot",
    "chainofthought", "thinking", "reasoningcontent", "messages", "conversations", "conversation", "tools",
    "options", "choices", "evidence", "document", "article", "text",
])  # fmt: skip
