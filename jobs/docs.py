"""What the documentation takes from the code: commands, files, fields, methods, kinds of tasks and metrics.

    python -m jobs.docs            # renews the pages
    python -m jobs.docs --check    # says which are out of date (status 1), and writes nothing

A page holds such a part between `<!-- generated: NAME -->` and `<!-- end -->`; `BLOCKS` says what each NAME is.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from bft_ray import config
from bft_ray.cli import make_parser
from bft_ray.config import METHODS, LossConfig
from bft_ray.config import tasks as kinds
from bft_ray.config.load import read_yaml, recipes
from bft_ray.config.metrics import METRICS
from bft_ray.config.profile import ProfileConfig
from bft_ray.config.wrong import WrongConfig
from bft_ray.domains import DOMAINS
from bft_ray.operate.after_rl import definition as after_rl
from bft_ray.space import definition, parts, series
from bft_ray.space.claims import Claim
from bft_ray.space.load import spaces as bundled_spaces
from bft_ray.space.ranges import CategoricalParameter, FloatParameter, IntParameter
from jobs import measured
from jobs.docs_fields import first_line, section_text

ROOT = Path(__file__).resolve().parents[1]
_BLOCK = re.compile(r"(<!-- generated: (\S+) -->\n).*?(<!-- end -->)", re.S)

#: heading in docs/configuration.md -> section of a config
CONFIG: dict[str, type[BaseModel]] = {
    "model": config.ModelConfig,
    "lora": config.LoraConfig,
    "data": config.DataConfig,
    "data source": config.SourceConfig,
    "wrong answers": WrongConfig,
    "loss": LossConfig,
    "optimizer": config.OptimizerConfig,
    "schedule": config.ScheduleConfig,
    "deepspeed": config.DeepSpeedConfig,
    "cluster": config.ClusterConfig,
    "checkpoint": config.CheckpointConfig,
    "evaluation": config.EvaluationConfig,
    "profile": ProfileConfig,
    "tracking": config.TrackingConfig,
}
#: kind of a task -> its section
TASKS: dict[str, type[BaseModel]] = {
    task.model_fields["kind"].default: task for task in get_args(get_args(kinds.Task)[0])
}
#: heading -> section of a search space
SPACE: dict[str, type[BaseModel]] = {
    "parameter categorical": CategoricalParameter,
    "parameter int": IntParameter,
    "parameter float": FloatParameter,
    "objective": parts.Objective,
    "second objective": parts.SecondObjective,
    "budget": parts.Budget,
    "sampler": parts.Sampler,
    "scheduler asha": parts.Asha,
    "scheduler none": parts.NoScheduler,
    "confirmation": parts.Confirmation,
    "baseline": parts.Baseline,
    "claim": Claim,
}

SERIES: dict[str, type[BaseModel]] = {
    "condition": series.Condition,
    "trend": series.Trend,
    "contrast": series.Contrast,
    "peak": series.Peak,
}
#: heading -> section of a study of `bft-ray after-rl`
AFTER_RL: dict[str, type[BaseModel]] = {"arm": after_rl.Arm, "rows": after_rl.Rows, "grpo": after_rl.Grpo}


#: heading -> section that several tasks hold
_SHARED: dict[str, type[BaseModel]] = {"decoding": kinds.Decoding, "judge": kinds.JudgeConfig}
_WORDS = {"None": "none", "True": "on", "False": "off"}


def pages() -> list[Path]:
    """Every Markdown page of the repository."""
    rooms = ("bft_ray", "cluster", "docs", "jobs", "search_spaces", "tests")
    return [*sorted(ROOT.glob("*.md")), *(page for room in rooms for page in sorted((ROOT / room).rglob("*.md")))]


def renewed(text: str) -> str:
    """A page with its generated parts made anew.

    Raises:
        KeyError: a part of a name that there is not.
    """
    return _BLOCK.sub(lambda found: f"{found[1]}\n{BLOCKS[found[2]]().strip()}\n\n{found[3]}", text)


def commands() -> str:
    """A row a command: what it is called with, and its help."""
    [group] = [action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    told = {choice.dest: choice.help for choice in group._choices_actions}
    rows = []
    for name, parser in group.choices.items():
        words = [str(action.metavar) for action in parser._get_positional_actions() if action.metavar != "FIELD=VALUE"]
        rows.append((f"`{' '.join(['bft-ray', name, *words])}`", told[name] or ""))
    return _table(("command", "what it does"), rows)


def files() -> str:
    """A line a file of `bft_ray` and `jobs`: the first sentence of its docstring."""
    names = [str(path.relative_to(ROOT)) for room in ("bft_ray", "jobs") for path in (ROOT / room).rglob("*.py")]
    lines, folders = [], set()
    for name in sorted(names):
        path = ROOT / name
        if path.name == "__init__.py":
            continue
        for folder in reversed(path.relative_to(ROOT).parents[:-1]):
            if folder not in folders:
                folders.add(folder)
                lines.append(_file_line(folder.name + "/", len(folder.parts) - 1, ROOT / folder / "__init__.py"))
        lines.append(_file_line(path.name, len(path.relative_to(ROOT).parts) - 1, path))
    return "\n".join(["```", *lines, "```"])


def config_fields() -> str:
    """The top level of a config, and each of its sections."""
    return _sections(config.Config, CONFIG)


def task_fields() -> str:
    """Each kind of an entry of `evaluation.tasks`, and what several of them hold."""
    return _sections(None, {f"task {kind}": section for kind, section in TASKS.items()} | _SHARED)


def space_fields() -> str:
    """The top level of a search space, and each of its sections."""
    return _sections(definition.SearchSpace, SPACE)


def series_fields() -> str:
    """The top level of a series, and each of its sections."""
    return _sections(series.Series, SERIES)


def after_rl_fields() -> str:
    """The top level of a study of `bft-ray after-rl`, and each of its sections."""
    return _sections(after_rl.AfterRl, AFTER_RL)


def methods() -> str:
    """A row a method: the fields that it sets."""
    names = ("token_weight", "confidence", "window", "sample_weight", "epsilon", "weight_cap", "normalise", "aggregate")
    rows = []
    for method in METHODS:
        loss = LossConfig(method=method)  # type: ignore[arg-type]
        cells = [
            "" if name in loss.unused_fields() else _WORDS.get(text := str(getattr(loss, name)), text) for name in names
        ]
        rows.append((f"`{method}`", *cells))
    return _table(("method", *(f"`{name}`" for name in names)), rows)


def task_kinds() -> str:
    """A row a kind of task: what it measures, and its fields."""
    rows = [
        (f"`{kind}`", first_line(section), f"[fields](configuration.md#task-{kind})") for kind, section in TASKS.items()
    ]
    return _table(("kind", "what it measures, and its rows", "fields"), rows)


def metrics() -> str:
    """A row a metric."""
    rows = [(f"`{each.name}`", each.unit, each.direction, each.help) for each in METRICS]
    return _table(("metric", "unit", "better", "meaning"), rows)


def headlines() -> str:
    """A row a domain: the metric that decides, and the others."""
    rows = [
        (f"`{name}`", each.title, f"`{each.headline}`", ", ".join(f"`{metric}`" for metric in each.metrics))
        for name, each in DOMAINS.items()
    ]
    return _table(("domain", "", "headline", "also"), rows)


def search_spaces() -> str:
    """A row a search space of the package."""
    rows = [
        (f"`{name}`", read_yaml(path).get("description", ""), f"[YAML](../search_spaces/{name}.yaml)")
        for name, path in bundled_spaces().items()
    ]
    return _table(("name", "what it answers", "file"), rows)


def series_list() -> str:
    """A row a series of the package."""
    rows = [
        (f"`{name}`", read_yaml(path)["question"], f"[YAML](../search_spaces/series/{name}.yaml)")
        for name, path in series.all_series().items()
    ]
    return _table(("name", "question", "file"), rows)


def recipe_list() -> str:
    """A row a recipe: its first comment."""
    rows = [
        (f"`{name}`", path.read_text().splitlines()[0].lstrip("# "), f"[YAML](../bft_ray/recipes/{name}.yaml)")
        for name, path in recipes().items()
    ]
    return _table(("recipe", "what it is for", "file"), rows)


BLOCKS: dict[str, Callable[[], str]] = {
    "commands": commands,
    "files": files,
    "config_fields": config_fields,
    "task_fields": task_fields,
    "space_fields": space_fields,
    "series_fields": series_fields,
    "after_rl_fields": after_rl_fields,
    "methods": methods,
    "task_kinds": task_kinds,
    "metrics": metrics,
    "headlines": headlines,
    "search_spaces": search_spaces,
    "series": series_list,
    "recipes": recipe_list,
    **{f"measured_{path.stem}": partial(measured.markdown, path) for path in sorted(measured.FOLDER.glob("*.json"))},
}


def main(arguments: list[str] | None = None) -> int:
    """Renew all pages, or say which are out of date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 where a page is out of date")
    options = parser.parse_args(arguments)
    old = {path: (text, new) for path in pages() if (text := path.read_text()) != (new := renewed(text))}
    for path, (_, new) in old.items():
        print(f"{'out of date' if options.check else 'renewed'}  {path.relative_to(ROOT)}")
        if not options.check:
            path.write_text(new)
    return int(options.check and bool(old))


def _sections(top: type[BaseModel] | None, below: dict[str, type[BaseModel]]) -> str:
    every = CONFIG | SPACE | SERIES | AFTER_RL | _SHARED | {f"task {kind}": section for kind, section in TASKS.items()}
    links = {section: f"[{heading}](#{heading.replace(' ', '-')})" for heading, section in every.items()}
    parts = [] if top is None else [section_text(top, links)]
    for heading, section in below.items():
        parts += [f"### {heading}", first_line(section), section_text(section, links)]
    return "\n\n".join(parts)


def _table(head: tuple[str, ...], rows: list[Any]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", r"\|") for cell in line) + " |" for line in lines)


def _file_line(name: str, depth: int, source: Path) -> str:
    said = ast.get_docstring(ast.parse(source.read_text())) if source.is_file() else None
    text = " ".join((said or "").split("\n\n")[0].split())
    return f"{'  ' * depth + name:<28}{text}".rstrip()


if __name__ == "__main__":
    sys.exit(main())
