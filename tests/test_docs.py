"""The pages stay true: what is generated is new, and links, commands, fields, files and examples are there. All that is
public in the code has a docstring.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import io
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from bft_ray.cli import make_parser
from bft_ray.config import Config, make_config
from bft_ray.config.load import parse_yaml, read_yaml, recipes, validate
from bft_ray.space.definition import SearchSpace
from bft_ray.space.load import spaces
from bft_ray.space.series import Series
from jobs import docs, docs_fields
from tests.support.paths import ROOT

PAGES = docs.pages()
FENCE = re.compile(r"^( *)(`{3,}|~{3,})(\w*)\n(.*?)^\1\2\s*$", re.M | re.S)
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
FILE = re.compile(r"(?:bft_ray|jobs|tests|docs|cluster|search_spaces)/[\w./-]+\.\w+")
MOST_LINES, MOST_BYTES = 170, 100_000


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def prose(path: Path) -> str:
    """A page without its blocks of code."""
    return FENCE.sub("", path.read_text())


def blocks(path: Path, *languages: str) -> list[str]:
    return [found[4] for found in FENCE.finditer(path.read_text()) if found[3] in languages]


def slugs(path: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    made: dict[str, int] = {}
    found = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", prose(path), re.M):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        found.add(f"{slug}-{made[slug]}" if slug in made else slug)
        made[slug] = made.get(slug, 0) + 1
    return found


def commands(path: Path, start: str) -> list[str]:
    """Commands that begin with `start`: of blocks of code, and of the text."""
    whole = [block.replace("\\\n", " ") for block in blocks(path, "", "console", "bash", "sh")]
    lines = [line.strip() for block in whole for line in block.splitlines()]
    spans = [span.strip() for span in SPAN.findall(prose(path))]
    return [text for text in (*lines, *spans) if text.split()[:1] == start.split()[:1] and text.startswith(start)]


# ---- what is generated ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES, ids=ids)
def test_generated_parts_are_those_of_the_code(path):
    assert path.read_text() == docs.renewed(path.read_text()), "run `python -m jobs.docs`"


def test_every_generated_part_stands_on_one_page():
    found = [name for path in PAGES for name in re.findall(r"^<!-- generated: (\w+) -->$", path.read_text(), re.M)]
    assert sorted(found) == sorted(docs.BLOCKS)


def test_a_page_that_is_old_is_renewed_and_the_rest_of_it_kept():
    old = "# A\n\n<!-- generated: methods -->\nold\n<!-- end -->\nmine"
    new = docs.renewed(old)
    assert new.startswith("# A\n\n<!-- generated: methods -->\n\n| method |") and new.endswith("\n\n<!-- end -->\nmine")
    assert "old" not in new and docs.renewed(new) == new


def test_every_section_of_the_config_has_its_table():
    """Also those that somebody adds: whatever is reached from a config or a space is linked and described."""

    def reached(section: type[BaseModel], seen: set[type[BaseModel]]) -> set[type[BaseModel]]:
        for field in section.model_fields.values():
            for inner in docs_fields._sections_in(field.annotation):
                if inner not in seen:
                    reached(inner, seen | {inner} if seen.add(inner) else seen)
        return seen

    described = {*docs.CONFIG.values(), *docs.TASKS.values(), *docs.SPACE.values(), *docs._SHARED.values()}
    described |= set(docs.SERIES.values())
    assert reached(Config, set()) | reached(SearchSpace, set()) | reached(Series, set()) == described
    text = (ROOT / "docs" / "configuration.md").read_text()
    for section in (Config, SearchSpace, Series, *described):
        for name in section.model_fields:
            assert f"\n| `{name}` | " in text, f"{section.__name__}.{name}"


def test_rules_are_those_that_refuse():
    rules = dict(docs_fields.rules_of(docs.CONFIG["data"]))
    assert rules["micro_batch_tokens"].startswith("at least data.max_length, so that the longest sample fits")
    raised = dict(docs_fields.rules_of(docs.CONFIG["deepspeed"]))
    assert raised["overlay.optimizer"] == "left out: bft-ray sets it. Use the optimizer section instead."
    asha = [name for name, _ in docs_fields.rules_of(SearchSpace)]
    assert {"parameters.seed", "fixed.name", "scheduler.grace_steps", "parameters.NAME.when.NAME"} <= set(asha)
    assert dict(docs_fields.rules_of(docs.SPACE["parameter float"]))["high"].startswith("above low.")


# ---- links ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES, ids=ids)
def test_links_resolve(path):
    for target in LINK.findall(prose(path)):
        if re.match(r"[a-z]+:", target):
            assert target.startswith("https://"), target
            continue
        name, _, anchor = target.partition("#")
        page = (path.parent / name).resolve() if name else path
        assert page.exists() and page.is_relative_to(ROOT), target
        if anchor:
            assert anchor in slugs(page), target


def test_slugs_are_those_of_github(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# `bft-ray` & [you](x.md)!\n## Task embedding_pairs\n## A\n## A\n```\n# not one\n```\n")
    assert slugs(page) == {"bft-ray--you", "task-embedding_pairs", "a", "a-1"}


@pytest.mark.parametrize("path", PAGES, ids=ids)
def test_files_that_are_named_are_there(path):
    missing = [name for name in FILE.findall(" ".join(SPAN.findall(prose(path)))) if not (ROOT / name).exists()]
    assert not [name for name in missing if "NAME" not in name and "ROOM" not in name]


def test_functions_stand_where_the_architecture_says():
    told = re.findall(
        r"`(?:\w+\.)?(\w+)`(?:, `(\w+)`)? in `(bft_ray/[\w/]+\.py)`", (ROOT / "docs" / "architecture.md").read_text()
    )
    assert len(told) > 10
    for *names, file in told:
        for name in filter(None, names if "NAME" not in file else []):
            assert re.search(rf"^\s*(def|class) {name}\b", (ROOT / file).read_text(), re.M), (name, file)


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "img").iterdir()), ids=ids)
def test_pictures_are_small_and_shown(path):
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size < MOST_BYTES
    assert any(f"img/{path.name})" in page.read_text() for page in PAGES)


# ---- commands ------------------------------------------------------------------------------------------


def refused(words: list[str]) -> str:
    """Why `bft-ray` does not take these words; "" where it does. Nothing is run."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            options, rest = make_parser().parse_known_args(words)
    except SystemExit as end:
        return "" if end.code == 0 else said.getvalue()
    unknown = [word for word in rest if word.startswith("-") or "=" not in word or not hasattr(options, "overrides")]
    return f"unknown: {unknown}" if unknown else ""


@pytest.mark.parametrize("path", PAGES, ids=ids)
def test_commands_parse(path):
    for text in commands(path, "bft-ray "):
        words = [word for word in shlex.split(text, comments=True) if word != "..."][1:]
        if len(words) == 1 and words[0] in known_commands():  # its name alone
            continue
        assert not refused(words), text


def known_commands() -> set[str]:
    [group] = [action for action in make_parser()._actions if isinstance(action.choices, dict)]
    return set(group.choices)


@pytest.mark.parametrize("words", [["serch", "x"], ["train", "x", "--windw"], ["best"], ["ui", "loss.window=3"]])
def test_what_does_not_parse_is_found(words):
    assert refused(words)


@pytest.mark.parametrize("path", PAGES, ids=ids)
def test_other_commands_are_there(path):
    makefile = (ROOT / "Makefile").read_text()
    for text in commands(path, "make "):
        assert f"\n{text.split()[1]}:" in makefile, text
    for module in re.findall(r"python -m ((?:jobs|cluster)[\w.]*)", path.read_text()):
        assert importlib.util.find_spec(module.rstrip(".")), module


@pytest.mark.parametrize("path", PAGES, ids=ids)
def test_fields_that_are_named_are_there(path):
    """`loss.window`, also with a value, in the text and in commands."""
    named = SPAN.findall(prose(path)) + [
        word for line in commands(path, "bft-ray ") for word in shlex.split(line, comments=True)
    ]
    top = {**Config.model_fields, **SearchSpace.model_fields}
    for word in named:
        name = re.split(r"[=:]", word)[0]
        parts = name.split(".")
        is_file = parts[-1] in ("json", "jsonl", "yaml", "parquet", "html")
        if len(parts) > 1 and not is_file and parts[0] in top and re.fullmatch(r"[a-z_]+(\.[a-z0-9_]+)+", name):
            assert any(is_field(section, parts) for section in (Config, SearchSpace)), word


def is_field(section: type[BaseModel], parts: list[str]) -> bool:
    """Whether dotted parts lead to a field, through lists, unions and mappings of anything."""
    found = [section]
    for place, part in enumerate(parts):
        if part.isdigit() and place:
            continue
        fields = [own.model_fields[part] for own in found if part in own.model_fields]
        if not fields:
            return False
        if any("dict" in str(field.annotation) for field in fields):
            return True
        found = [inner for field in fields for inner in docs_fields._sections_in(field.annotation)]
    return True


def test_a_field_that_is_not_there_is_found():
    assert is_field(Config, ["data", "train", "0", "limit"]) and is_field(
        SearchSpace, ["confirmation", "overrides", "x"]
    )
    assert not is_field(Config, ["loss", "windw"]) and not is_field(SearchSpace, ["budget", "trails"])


# ---- examples ------------------------------------------------------------------------------------------


def load_example(text: str) -> Config | SearchSpace | Series:
    """A block of YAML over the starter recipe or space, or a whole series; raises what a user would see."""
    tree: dict[str, Any] = parse_yaml(text, "the page")
    if "conditions" in tree:
        return validate(Series, tree, "the page")
    if set(tree) <= set(Config.model_fields):
        return make_config({**read_yaml(recipes()["starter"]), **tree})
    return validate(SearchSpace, {**read_yaml(spaces()["starter"]), **tree}, "the page")


EXAMPLES = [(path, text) for path in PAGES for text in blocks(path, "yaml")]


@pytest.mark.parametrize(("path", "text"), EXAMPLES, ids=[ids(path) for path, _ in EXAMPLES])
def test_examples_load(path, text):
    load_example(text)


def test_examples_say_what_their_pages_say():
    of = {ids(path): load_example(text) for path, text in reversed(EXAMPLES)}  # the first of each page
    cluster, tasks, space = of["README.md"], of["docs/evaluation.md"], of["docs/studies.md"]
    assert isinstance(cluster, Config) and cluster.cluster.num_workers == 8
    assert cluster.tracking.uri.startswith("https://")
    assert isinstance(tasks, Config) and [task.kind for task in tasks.evaluation.tasks] == [
        "choice",
        "text",
        "pairs",
        "generation",
    ]
    assert isinstance(space, SearchSpace) and space.objective.second and "loss.epsilon" in space.parameters


def test_python_examples_name_what_there_is():
    text = "\n".join(block for path in PAGES for block in blocks(path, "python"))
    names = {
        name.strip() for line in re.findall(r"^from bft_ray\.loss import (.+)$", text, re.M) for name in line.split(",")
    }
    loss = importlib.import_module("bft_ray.loss")
    assert len(names) >= 5 and all(hasattr(loss, name) for name in names)


# ---- docstrings ------------------------------------------------------------------------------------------


def undocumented(tree: ast.AST, owner: str = "") -> list[str]:
    """Public functions, classes and methods without a docstring. What a name with an underscore holds is not public, and
    neither is what a function holds: validators of pydantic and methods of private classes are named so.
    """
    found = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If | ast.Try):
            found += undocumented(node, owner)
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        found += [] if ast.get_docstring(node) else [f"{owner}{node.name}"]
        found += undocumented(node, f"{owner}{node.name}.") if isinstance(node, ast.ClassDef) else []
    return found


def test_all_that_is_public_has_a_docstring():
    files = sorted((ROOT / "bft_ray").rglob("*.py"))
    found = {ids(path): undocumented(ast.parse(path.read_text())) for path in files}
    assert len(files) > 100 and not {name: names for name, names in found.items() if names}


def test_what_has_no_docstring_is_found():
    text = "class A:\n  def b(self):\n    def c(): 0\n  def _d(self): 0\n"
    text += "if 1:\n  def e(): 'E.'\n  async def f(): 0\nclass _G:\n  def h(self): 0"
    assert undocumented(ast.parse(text)) == ["A", "A.b", "f"]


# ---- the first page ------------------------------------------------------------------------------------


def test_the_first_page_is_short_and_has_the_two_commands():
    text, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    assert len(text.splitlines()) <= MOST_LINES
    for target in ("quickstart", "test"):
        assert f"\nmake {target} " in text and f"\n{target}: $(READY)" in makefile
    assert "has ever run on a GPU" in text.partition("## ")[0]
