"""How studies on one cluster deal its places."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bft_ray.workers import shares
from bft_ray.workers.shares import LEASE_S, Share, Table, deal

ROWS = st.dictionaries(
    st.text(min_size=1, max_size=3), st.tuples(st.floats(0.01, 100), st.floats(0, 1)), min_size=1, max_size=8
)


@given(ROWS)
def test_shares_are_fair_and_leave_nothing_that_is_wanted(rows):
    weights = {name: weight for name, (weight, _) in rows.items()}
    demands = {name: demand for name, (_, demand) in rows.items()}
    found = deal(weights, demands)
    assert all(0 <= found[name] <= demands[name] + 1e-9 for name in rows)
    assert sum(found.values()) == pytest.approx(min(1.0, sum(demands.values())))
    for one in rows:  # who has less than it wants has no less, by weight, than anybody
        if found[one] < demands[one] - 1e-9:
            assert all(found[one] / weights[one] >= found[two] / weights[two] - 1e-9 for two in rows)


def test_numbers():
    assert deal({"a": 1, "b": 3}, {"a": 1, "b": 1}) == {"a": 0.25, "b": 0.75}
    assert deal({"a": 1, "b": 3}, {"a": 1, "b": 0.25}) == {"a": 0.75, "b": 0.25}
    assert deal({"a": 1}, {"a": 1}) == {"a": 1}


def test_a_driver_that_leaves_or_dies_gives_its_share_back():
    now = [0.0]
    table = Table(lambda: now[0])
    assert table.renew("a", 1, 1) == (1, 1)
    assert table.renew("b", 1, 1) == (0.5, 2)
    now[0] = LEASE_S - 1
    assert table.renew("a", 1, 1) == (0.5, 2)
    now[0] = LEASE_S
    assert table.renew("a", 1, 1) == (1, 1)
    assert table.renew("c", 3, 1) == (0.75, 2)
    table.leave("c")
    assert table.renew("a", 1, 1) == (1, 1)


def test_a_study_has_one_slot_however_small_its_share(monkeypatch):
    share = Share(1.0, lambda: 4)
    monkeypatch.setattr(Share, "_renew", lambda self: None)
    for part, slots in ((1.0, 4), (0.75, 3), (0.74, 2), (0.0, 1)):
        share._part = part
        assert share.slots() == slots
    share.tell(2)
    assert share.demand == 0.5
    assert shares.RENEW_S * 5 < LEASE_S


def _comes_to(share: Share, slots: int) -> bool:
    """Whether a share is so many slots within 30 s: on a busy machine the actor may answer too late, and a share keeps what it had."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        share._at = -1e9
        if share.slots() == slots:
            return True
    return False


@pytest.mark.long
def test_two_drivers_on_one_ray_share_it_until_one_leaves():
    import ray
    from ray.util import list_named_actors

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        one, two = Share(1.0, lambda: 4), Share(3.0, lambda: 4)
        assert _comes_to(one, 4) and _comes_to(two, 3) and _comes_to(one, 1) and one.is_shared
        ray.kill(ray.get_actor("bft_ray_shares", namespace="bft_ray"))
        for _ in range(3):  # both find it lost, and write to a new one; meanwhile each keeps what it had
            for share, slots in ((one, 1), (two, 3)):
                share._at = -1e9
                assert share.slots() == slots
        one._hold_until = two._hold_until = 0.0
        assert _comes_to(one, 1) and _comes_to(two, 3)
        two.leave()
        assert _comes_to(one, 4) and not one.is_shared
        one.leave()
        end = time.monotonic() + 20
        while [actor for actor in list_named_actors(all_namespaces=True) if actor["name"] == "bft_ray_shares"]:
            assert time.monotonic() < end, "the last driver leaves nothing in the cluster"
            time.sleep(0.1)
    finally:
        ray.shutdown()
