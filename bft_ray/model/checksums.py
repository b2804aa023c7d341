"""The checksums in the folder of an export: a flipped bit of its weights, its config or its tokenizer would load without a word."""

from __future__ import annotations

from pathlib import Path

from bft_ray.errors import BadInput
from bft_ray.model.fitting import settings_hash
from bft_ray.model.safe import CONFIG
from bft_ray.places.cache import sha256_of
from bft_ray.places.kept import read_kept, write_kept

CHECKSUMS = "sha256.json"
_BASE = "base model"  # key of its fingerprint, beside the files of an adapter
_SETTINGS = "adapter settings"  # key of their hash: the place of the base model may change in them (`settings_hash`)
_NOT_SUMMED = {CHECKSUMS, CONFIG, "README.md"}  # a card is for people to edit


def write_checksums(folder: Path, base: str = "") -> None:
    """Write the checksums of the files in a folder beside them; of an adapter also that of its settings.

    Args:
        base: fingerprint of the base model of an adapter.
    """
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and file.name not in _NOT_SUMMED]
    sums = {file.name: sha256_of(file) for file in files}
    settings = {_SETTINGS: settings_hash(folder)} if (folder / CONFIG).is_file() else {}
    write_kept(folder / CHECKSUMS, sums | settings | ({_BASE: base} if base else {}), indent=1)


def recorded_base(adapter: Path) -> str:
    """The fingerprint of the base model that an adapter was trained on; "" where it is not known."""
    return (read_kept(adapter / CHECKSUMS) or {}).get(_BASE, "")


def changed(folder: Path, remedy: str = "Take a whole copy, or train again") -> tuple[Path, str, str] | None:
    """The first file that is not as it was written, the rule and the remedy; None where all are, or no checksums are there."""
    for name, expected in (read_kept(folder / CHECKSUMS) or {}).items():
        if name == _BASE:
            continue
        if name == _SETTINGS:
            name, is_same = CONFIG, settings_hash(folder) == expected
        else:
            is_same = (folder / name).is_file() and sha256_of(folder / name) == expected
        if not is_same:
            rule = f"unchanged since it was written (its checksum in {CHECKSUMS} differs)"
            return folder / name, rule, f"{remedy}; if it was changed on purpose, delete {folder / CHECKSUMS}."
    return None


def require_unchanged(folder: Path, field: str, remedy: str = "Take a whole copy, or train again") -> None:
    """Check that an export is as it was written, where there are checksums in it.

    Args:
        field, remedy: for the error.

    Raises:
        BadInput: a file was changed, or is gone.
    """
    if found := changed(folder, remedy):
        raise BadInput(field, *found)
