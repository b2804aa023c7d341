"""KubeRay's schema of a RayJob, and merge patches as kubectl applies them."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.support.paths import SHARED

SCHEMA = SHARED / "schemas" / "kuberay" / "ray.io_rayjobs.yaml"


def rayjob_schema() -> Any:
    """That of version v1, in which an object has the fields that are told and no others; skips where it is not here."""
    if not SCHEMA.is_file():
        pytest.skip("KubeRay's schemas are not here (../shared/schemas)")
    tree = yaml.load(SCHEMA.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = [version for version in tree["spec"]["versions"] if version["name"] == "v1"]
    return _strict(version["schema"]["openAPIV3Schema"])


def _strict(schema: Any) -> Any:
    """The schema, in which an object has the fields that are told and no others."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    tight = {key: _strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        tight["additionalProperties"] = False
    return tight


def merged(target: Any, patch: Any) -> Any:
    """A merge patch (RFC 7386), as `kubectl patch --type merge` does it: None removes a field, a list is replaced whole."""
    if not isinstance(patch, dict):
        return patch
    found = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            found.pop(key, None)
        else:
            found[key] = merged(found.get(key), value)
    return found
