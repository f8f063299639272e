"""What folders hold."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def visible_files(folder: Path) -> Iterator[str]:
    """Names of all files below ``folder``, sorted; hidden ones are left out."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield (Path(root) / name).relative_to(folder).as_posix()
