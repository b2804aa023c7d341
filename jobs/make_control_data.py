"""Make two small domains that are not biomedical, for comparison: worked sums (`arithmetic`) and dates (`calendar`).

    python -m jobs.make_control_data --out bft_ray/data/starter

Rows and questions have the forms and numbers of the starter data (`jobs/make_starter_data.py`). All are made of numbers and the
templates below; nothing is drawn but by generators seeded from sha256, so the same code gives the same bytes. The numbers of
a row decide, by their sha256, in which split it stands: no sum and no date stands in two.
"""

from __future__ import annotations

import argparse
import datetime
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from jobs.make_starter_data import generator_of, number_of, write_jsonl

SPLITS = {"train": 480, "validation": 110, "confirmation": 110, "test": 110}
NUM_CHOICE_ITEMS = 120
_MOST_DRAWS = 200_000  # a domain has far more different rows than are asked for
_START = datetime.date(2001, 1, 1)


@dataclass(frozen=True)
class Task:
    """A question with its worked answer.

    Args:
        key: what makes it this one.
        wrong: answers that a slip would give; more than three, all different from `right`.
    """

    key: str
    question: str
    steps: str
    right: str
    wrong: tuple[str, ...]


def _numbers(right: int, *slips: int) -> tuple[str, ...]:
    near = [right + 1, right - 1, right + 10, right - 10, right + 2]
    found = dict.fromkeys(str(value) for value in (*slips, *near) if value > 0 and value != right)
    return tuple(found)


def _jars(draw: random.Random) -> Task:
    a, b, c = draw.randint(3, 19), draw.randint(3, 19), draw.randint(2, 60)
    total = a * b + c
    return Task(
        f"jars {a} {b} {c}",
        f"A shelf holds {a} boxes with {b} jars each, and {c} jars stand beside them. How many jars are there?",
        f"The boxes hold {a} times {b}, which is {a * b} jars. With the {c} beside them there are {a * b} + {c} = {total}.",
        str(total),
        _numbers(total, a * b, a + b + c, a * (b + c)),
    )


def _coins(draw: random.Random) -> Task:
    price, count, rest = draw.randint(2, 24), draw.randint(3, 15), draw.randint(1, 90)
    paid = price * count + rest
    return Task(
        f"coins {price} {count} {rest}",
        f"A ticket costs {price} coins. Someone buys {count} tickets with {paid} coins. How many coins come back?",
        f"{count} tickets cost {count} times {price}, which is {price * count} coins. {paid} - {price * count} = {rest}.",
        str(rest),
        _numbers(rest, paid - price, price * count, paid - count),
    )


def _shares(draw: random.Random) -> Task:
    people, each, left = draw.randint(3, 12), draw.randint(4, 30), draw.randint(1, 2)
    total = people * each + left
    return Task(
        f"shares {people} {each} {left}",
        f"{total} apples are dealt out to {people} people, as many to each as to the others. How many does each one get?",
        f"{people} times {each} is {people * each}, and {left} more {'is' if left == 1 else 'are'} too few to deal out again. "
        f"So each one gets {each}.",
        str(each),
        _numbers(each, people, total - people, left),
    )


def _road(draw: random.Random) -> Task:
    speed, hours, more = draw.randint(10, 90), draw.randint(2, 9), draw.randint(5, 80)
    total = speed * hours + more
    return Task(
        f"road {speed} {hours} {more}",
        f"A train goes {speed} miles an hour for {hours} hours, and then {more} miles more. How far does it go?",
        f"In {hours} hours it goes {hours} times {speed}, which is {speed * hours} miles. {speed * hours} + {more} = {total}.",
        str(total),
        _numbers(total, speed * hours, speed + hours + more, speed * (hours + 1)),
    )


def _weekday(draw: random.Random) -> Task:
    day, count = _START + datetime.timedelta(draw.randrange(7)), draw.randint(8, 120)
    weeks, rest = divmod(count, 7)
    then = day + datetime.timedelta(count)
    after = f"{rest} day{'s' * (rest != 1)} after {day:%A} comes {then:%A}" if rest else f"That is {day:%A} again"
    names = [f"{_START + datetime.timedelta(n):%A}" for n in range(7)]
    return Task(
        f"weekday {day:%A} {count}",
        f"Today is {day:%A}. Which day of the week is it in {count} days?",
        f"{count} days are {weeks} week{'s' * (weeks != 1)} and {rest} day{'s' * (rest != 1)}. {after}.",
        f"{then:%A}",
        tuple(draw.sample([name for name in names if name != f"{then:%A}"], 4)),
    )


def _dates(draw: random.Random) -> Task:
    first = _START + datetime.timedelta(draw.randrange(300))
    last = first + datetime.timedelta(draw.randint(5, 60))
    count = (last - first).days
    if (first.year, first.month) == (last.year, last.month):
        steps = f"Both lie in {first:%B}: {last.day} - {first.day} = {count}."
    else:
        end = (first.replace(day=28) + datetime.timedelta(4)).replace(day=1)
        parts = [f"From {first.day} {first:%B} to the first of {end:%B} are {(end - first).days} days"]
        parts.append(f"and to {last.day} {last:%B} {(last - end).days} more")
        steps = f"{', '.join(parts)}. Together {count}."
    return Task(
        f"dates {first:%m%d} {last:%m%d}",
        f"How many days after {first.day} {first:%B} is {last.day} {last:%B}, in a year that is no leap year?",
        steps,
        str(count),
        _numbers(count, abs(last.day - first.day), count + 30, count + 7),
    )


DOMAINS: dict[str, tuple[Callable[[random.Random], Task], ...]] = {
    "arithmetic": (_jars, _coins, _shares, _road),
    "calendar": (_weekday, _dates),
}


def tasks(domain: str) -> Iterator[tuple[str, Task]]:
    """(split, task) without end, no task twice; a split has a fixed share of all keys."""
    draw, seen = generator_of(f"control {domain}"), set()
    for _ in range(_MOST_DRAWS):
        task = draw.choice(DOMAINS[domain])(draw)
        if task.key in seen:
            continue
        seen.add(task.key)
        yield ("train", "train", "train", "validation", "confirmation", "test")[number_of(task.key) % 6], task
    raise RuntimeError(f"{domain}: too few different rows")


def make(domain: str) -> dict[str, list[dict]]:
    """File name -> rows."""
    files: dict[str, list[dict]] = {name: [] for name in SPLITS}
    files |= {f"choices_{name}": [] for name in SPLITS if name != "train"}
    size = SPLITS | {f"choices_{name}": NUM_CHOICE_ITEMS for name in SPLITS}
    for split, task in tasks(domain):
        own, number = files[split], len(files[split])
        choices = files.get(f"choices_{split}", [])
        if len(own) < size[split]:
            name = f"{domain}-{split}-{number}"
            own.append({"id": name, "prompt": task.question, "completion": f"{task.steps} The answer is {task.right}."})
        elif f"choices_{split}" in files and len(choices) < NUM_CHOICE_ITEMS:
            choices.append(_choice(f"{domain}-{split}-choice-{len(choices)}", task, len(choices)))
        if all(len(rows) == size[name] for name, rows in files.items()):
            return files
    raise AssertionError("`tasks` ends by an error")


def _choice(name: str, task: Task, number: int) -> dict:
    """A question with four options; the right one's index is evenly spread."""
    options, answer = list(task.wrong[:3]), number % 4
    options.insert(answer, task.right)
    return {"id": name, "question": task.question, "choices": options, "answer": answer}


def main() -> None:
    """Write all files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder that gets one folder a domain")
    out = parser.parse_args().out
    for domain in DOMAINS:
        for name, rows in make(domain).items():
            write_jsonl(out / domain / f"{name}.jsonl", rows)
        print(f"{domain}: {out / domain}")


if __name__ == "__main__":
    main()
