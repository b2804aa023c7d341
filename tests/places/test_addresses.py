"""Addresses of SQLite files: what a folder is called does not decide where the file goes."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from bft_ray.config import config_from_yaml, make_config
from bft_ray.places.addresses import absolute_uri, redact, redact_tree, redacted_yaml, sqlite_path, sqlite_uri
from bft_ray.tracking.server import connect


@pytest.mark.parametrize("name", ["plain", "a b", "50% of #h", "why?a&b", "a%20b", "a%3Fb", "é;+=@:'"])
def test_the_file_is_in_the_folder(name, tmp_path, monkeypatch):
    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.chdir(folder)
    uri = absolute_uri("sqlite:///own.db")
    assert uri == sqlite_uri(folder / "own.db") == absolute_uri(uri) and sqlite_path(uri) == folder / "own.db"
    engine = create_engine(uri)
    with engine.begin() as connection:
        connection.execute(text("create table x (y int)"))
    engine.dispose()
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()] == [Path(name, "own.db")]


@pytest.mark.parametrize("name", ["c 20% #2", "100%", "7%x"])
def test_mlflow_makes_no_folder_of_another_name(name, tmp_path, monkeypatch):
    """It makes the parent folder of what the address says, where SQLAlchemy would read a character."""
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    assert connect(absolute_uri("sqlite:///mlflow.db")).search_experiments()
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name / "mlflow.db").is_file()


def test_options_stay():
    assert absolute_uri("sqlite:////a/b.db?timeout=5") == "sqlite:////a/b.db?timeout=5"
    assert sqlite_path("sqlite:////a/b.db?timeout=5") == Path("/a/b.db")
    assert sqlite_path("sqlite:///:memory:") is None and sqlite_path("http://127.0.0.1:1") is None


def test_strings_of_a_tree_are_redacted_one_by_one():
    """In the text of JSON or YAML a password at a string's end would take the closing quote with it."""
    tree = {
        "a": ["postgresql://h/db?password=secret", 1, None],
        "b": {"uri": "s3://x/y?X_TOKEN=secret"},
        "c": (True, "plain"),
    }
    kept = {
        "a": ["postgresql://h/db?password=***", 1, None],
        "b": {"uri": "s3://x/y?X_TOKEN=***"},
        "c": [True, "plain"],
    }
    assert redact_tree(tree) == kept


def test_what_is_redacted_stays_as_it_is(make_tree):
    """A card holds the YAML of a config, and is redacted as a whole."""
    config = make_config(make_tree(tracking={"uri": "postgresql://user:secret@h/db?password=secret"}))
    text = redacted_yaml(config)
    assert "secret" not in text and redact(text) == text == redact(redact(text))
    uri = config_from_yaml(text, "the text").tracking.uri
    assert uri == "postgresql://user:***@h/db?password=***"
    assert redact("MLFLOW_TRACKING_TOKEN=*** and a") == "MLFLOW_TRACKING_TOKEN=*** and a"
