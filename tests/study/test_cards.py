"""Nodes of different types of accelerator are told."""

from __future__ import annotations

from bft_ray.study.checks.cards import card_lines, card_types

H100 = {"CPU": 8.0, "GPU": 2.0, "accelerator_type:H100": 1.0}
A100 = {"CPU": 8.0, "GPU": 8.0, "accelerator_type:A100": 1.0}
PLAIN = {"CPU": 8.0}
NEED = {"CPU": 1.0, "GPU": 1.0}


def test_only_nodes_that_could_run_a_worker_count():
    assert card_types([H100, A100, PLAIN, H100], NEED) == {"A100": 1, "H100": 2}
    assert card_types([H100, PLAIN], {"CPU": 1.0}) == {"H100": 1, "none": 1}


def test_types_that_differ_are_told_with_what_to_do():
    first, note = card_lines([H100, A100, H100], NEED, deterministic=True)
    assert first == "trials may run on different accelerators: A100 (1 node), H100 (2 nodes)"
    assert "do not give equal bits" in note and '{"accelerator_type:A100": 0.001}' in note
    assert "equal bits" not in card_lines([H100, A100], NEED, deterministic=False)[1]
    assert card_lines([H100, H100, PLAIN], NEED, deterministic=True) == []


def test_the_remedy_leaves_one_type():
    assert card_types([H100, A100, H100], NEED | {"accelerator_type:A100": 0.001}) == {"A100": 1}
