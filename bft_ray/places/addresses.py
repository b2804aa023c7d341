"""Addresses of servers and databases: without their secrets, and as every process means them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    from pydantic import BaseModel

_SECRETS = (
    (re.compile(r"(://[^:/\s@]*):[^/\s]*@"), r"\1:***@"),  # scheme://user:password@host
    (re.compile(r"(https?://)[^:/\s@]+@"), r"\1***@"),  # https://token@host
    (
        re.compile(
            r"(?i)([?&;](?:[\w-]*password|passwd|pwd|[\w-]*token|[\w-]*secret|sig|[\w-]*signature|[\w-]*key)=)(?!\*{3})[^&;\s]+"
        ),
        r"\1***",
    ),
    (re.compile(r"\b([A-Z_]+_(?:PASSWORD|TOKEN|SECRET|KEY)=)(?!\*{3})\S+"), r"\1***"),  # variables of an environment
    (re.compile(r"\bhf_[A-Za-z0-9]{16,}"), "hf_***"),
)


def redact(text: str) -> str:
    """The text with the passwords, tokens and keys of its URIs replaced by ***; what is so replaced stays as it is."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def redact_tree(value: Any) -> Any:
    """The same of each string in nested mappings and lists, keys excepted; before the text of YAML or JSON is made of them, in which
    a password at the end of a string would take the closing quote with it.
    """
    if isinstance(value, Mapping):
        return {key: redact_tree(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact_tree(inner) for inner in value]
    return redact(value) if isinstance(value, str) else value


def redacted_yaml(config: BaseModel) -> str:
    """A config as YAML, resolved and without secrets: for whatever is kept or shown."""
    from bft_ray.config.load import to_yaml  # with pydantic: `--help` needs neither

    return to_yaml(redact_tree(config.model_dump(mode="json")))


def absolute_uri(uri: str) -> str:
    """The URI with an SQLite path made absolute: Ray workers have another working directory."""
    path = sqlite_path(uri)
    return uri if path is None else sqlite_uri(path) + (uri[uri.index("?") :] if "?" in uri else "")


def sqlite_uri(path: Path) -> str:
    """The address of an SQLite file. In one, ? begins options, and % with two digits is a character (SQLAlchemy 2.1); any other
    % stays as it is, because MLflow makes a folder of the name that the address has.
    """
    return "sqlite:///" + re.sub(r"%(?=[0-9a-fA-F]{2})", "%25", str(path)).replace("?", "%3F")


def sqlite_path(uri: str) -> Path | None:
    """The absolute path of an SQLite database, or None for any other address."""
    match = re.fullmatch(r"sqlite(?:\+\w+)?:///([^?]+)(\?.*)?", uri, re.S)
    return Path(os.path.abspath(unquote(match[1]))) if match and match[1] != ":memory:" else None


def driver_package(missing: ImportError) -> str:
    """What `pip install` brings the Python driver of a database with, whose import has failed."""
    return {"psycopg": "'psycopg[binary]'", "psycopg2": "psycopg2-binary"}.get(str(missing.name), str(missing.name))
