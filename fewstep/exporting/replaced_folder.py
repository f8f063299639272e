"""The folder of an export, which is replaced as a whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ABOUT = "fewstep.json"
"""File of a folder that says what is in it; diffusers does not read it."""


def checked_folder(out: Path) -> Path:
    """The folder of ``out``, which may be replaced.

    Raises:
        ValueError: it holds something that no export wrote.
    """
    folder = out.resolve().parent
    if folder.is_dir() and any(folder.iterdir()) and not (folder / ABOUT).exists():
        raise ValueError(f"{folder}: holds other files, which would be replaced; name an empty folder")
    return folder


def as_json(content: dict[str, Any]) -> str:
    """The text of a file of JSON in such a folder."""
    return json.dumps(content, sort_keys=True, indent=1) + "\n"
