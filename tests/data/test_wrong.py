"""Wrong answers on purpose: which rows get them, and what they are."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bft_ray.config import SourceConfig
from bft_ray.config.wrong import WrongConfig
from bft_ray.data.record import BadRow, Row
from bft_ray.data.rows import read_rows
from bft_ray.data.wrong import with_wrong
from bft_ray.errors import BadInput


def rows(count: int, kinds: int = 10**6) -> list[Row]:
    return [Row(f"r{i}", f"f:{i}", prompt=f"q{i}", completion=f"a{i % kinds}") for i in range(count)]


def wrong(given_rows: list, share: float, drop: bool = False) -> list:
    return list(with_wrong(given_rows, WrongConfig(share=share, drop=drop), "data.train.0"))


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_a_share_of_the_rows_exchange_their_answers(share):
    before = rows(2000, kinds=300)
    after = wrong(before, share)
    changed = [row.is_wrong for row in after]
    assert sum(changed) / len(after) == pytest.approx(share, abs=0.03)  # 2.7 standard deviations or more
    for own, new in zip(before, after, strict=True):
        assert (new.id, new.prompt) == (own.id, own.prompt) and (new.completion != own.completion) == new.is_wrong
    own = Counter(row.completion for row in wrong(before, share, drop=True))
    assert own == Counter(row.completion for row in after if not row.is_wrong)


def test_all_different_answers_are_only_dealt_out_anew():
    after = wrong(rows(500), 0.3)
    assert sorted(row.completion for row in after) == sorted(row.completion for row in rows(500))


@given(st.permutations(range(40)), st.floats(0.3, 0.6))
def test_who_is_wrong_depends_on_the_id_alone(order, share):
    chosen = {row.id for row in wrong(rows(80), share) if row.is_wrong}
    shuffled = [rows(80)[i] for i in order]
    assert {row.id for row in wrong(shuffled, share) if row.is_wrong} == chosen & {row.id for row in shuffled}
    assert chosen <= {row.id for row in wrong(rows(80), share + 0.1) if row.is_wrong}


def test_a_row_that_is_left_out_anyway_is_no_wrong_one():
    bad = BadRow("f:1", "empty completion")
    assert wrong([bad, *rows(50)], 0.3)[0] is bad


def test_none_asked_for_is_none():
    given_rows = rows(3)
    assert with_wrong(given_rows, WrongConfig(), "data.train.0") is given_rows


@pytest.mark.parametrize(
    ("rows_", "message"),
    [
        ([{"text": f"t{i}"} for i in range(20)], "0 for rows without prompt and completion"),
        ([{"prompt": f"q{i}", "completion": "yes"} for i in range(20)], "0 where all completions are the same"),
        ([{"id": "x", "prompt": "q", "completion": "a"}], "large enough to choose two rows; it chooses 1"),
    ],
)
def test_rows_that_cannot_be_wrong_are_refused(tmp_path, rows_, message):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows_)))
    with pytest.raises(BadInput) as caught:
        list(read_rows(SourceConfig(path=str(path), wrong={"share": 0.4}), "data.train.0"))
    assert message in str(caught.value) and "data.train.0.wrong.share" in str(caught.value)
