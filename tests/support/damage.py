"""What can happen to a file: cut to half, emptied, a flipped bit in its middle, deleted."""

from __future__ import annotations

from pathlib import Path

KINDS = ("half", "empty", "flip", "gone")


def damage(path: Path, kind: str) -> None:
    """Damage a file where it lies."""
    if kind == "gone":
        path.unlink()
        return
    content = bytearray(path.read_bytes())
    assert content, f"{path} is empty already"
    if kind == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes(content[: len(content) // 2 if kind == "half" else 0])
