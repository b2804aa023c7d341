"""The node that a message names."""

from __future__ import annotations

import socket
from types import SimpleNamespace

import ray

from bft_ray.workers import node
from bft_ray.workers.node import on_this_node


def test_a_node_is_named_where_there_are_several(monkeypatch):
    assert on_this_node() == ""  # without Ray
    nodes = [{"Alive": True}, {"Alive": False}]
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(node, "require_same_head", lambda: None)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "0123456789abcdef"))
    assert on_this_node() == ""
    nodes.append({"Alive": True})
    assert on_this_node() == f"on node {socket.gethostname()} (01234567): "
    monkeypatch.setattr(ray, "nodes", lambda: 1 / 0)  # the head is gone
    assert on_this_node() == ""
