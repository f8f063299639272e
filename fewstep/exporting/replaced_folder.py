"""The folder of an export, which is replaced as a whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..common.files import reading, sha256
from ..common.folders import visible_files
from ..config import ConfigError

ABOUT = "fewstep.json"
"""File of a folder that says what is in it; diffusers does not read it."""
CARD = "README.md"
"""Its model card, if it has one."""


def checked_folder(out: Path) -> Path:
    """The folder of ``out``, which may be replaced.

    Raises:
        ValueError: it holds something that no export wrote.
    """
    folder = out.resolve().parent
    if folder.is_dir() and any(folder.iterdir()) and not (folder / ABOUT).exists():
        raise ValueError(f"{folder}: holds other files, which would be replaced; name an empty folder")
    return folder


def write_about(folder: Path, about: dict[str, Any]) -> None:
    """Write what is in a folder, as the last of its files, with the SHA-256 of all others."""
    files = {name: sha256(folder / name) for name in visible_files(folder)}
    (folder / ABOUT).write_text(as_json({**about, "files": files}), encoding="utf-8")


def whole_folder(out: Path) -> Path:
    """The folder of ``out``, as an export wrote it; its model card may be another, and files may be added.

    Raises:
        ConfigError: no export wrote it, or a file is missing or another than was written.
    """
    folder = out.resolve().parent
    path = folder / ABOUT
    if not path.is_file():
        raise ConfigError(f"{path}: not there, so that no pipeline is; write it first, with --spec")
    with reading(path, "what an export says of its folder"):
        files: dict[str, str] = dict(json.loads(path.read_text(encoding="utf-8")).get("files", {}))
    if not files:
        raise ConfigError(f"{path}: files: lists none; write the folder again, with --spec")
    for name, checksum in files.items():
        if not (folder / name).is_file():
            raise ConfigError(f"{folder / name}: missing; write the folder again")
        if name != CARD and sha256(folder / name) != checksum:
            raise ConfigError(f"{folder / name}: not what was written there; write the folder again")
    return folder


def as_json(content: dict[str, Any]) -> str:
    """The text of a file of JSON in such a folder."""
    return json.dumps(content, sort_keys=True, indent=1) + "\n"
