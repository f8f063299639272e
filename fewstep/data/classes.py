"""The classes behind label numbers: label k is the k-th of the sorted WordNet ids."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path, PurePosixPath

from ..config import ConfigError
from ..config.settings import Dataset

WORDNET = re.compile(r"(?:^|/)(n\d{8})[_/.]")
"""The class in a name such as n01440764_10026_n01440764.JPEG."""


@cache
def class_ids(name: str) -> tuple[str, ...]:
    """The ids of a known set of classes by label, from the list of that name beside this module."""
    return tuple(Path(__file__).with_name(f"{name}.txt").read_text(encoding="ascii").split())


def check_folders(where: str | Path, dataset: Dataset, folders: Sequence[str]) -> None:
    """Refuse folders, given in the order of their labels, that are not ``dataset.class_ids``.

    Raises:
        ConfigError: another number of classes, or ids that are missing or unknown.
    """
    if len(folders) != dataset.classes:
        raise ConfigError(
            f"{where}: dataset.classes: found {len(folders)}, the configuration says {dataset.classes}"
        )
    if dataset.class_ids is None:
        return
    ids = class_ids(dataset.class_ids)
    names = [PurePosixPath(folder).name for folder in folders]
    if names != list(ids):
        unknown, missing = sorted({*names} - {*ids}), sorted({*ids} - {*names})
        raise ConfigError(
            f"{where}: dataset.class_ids: the folders are not the classes of {dataset.class_ids} in their "
            f"order: unknown {unknown[:3]}, missing {missing[:3]}"
        )


def check_label(where: str, dataset: Dataset, label: int | None, folder: str | None) -> int:
    """The label, if it is one of the data set's and that of WordNet id ``folder`` (None: not known).

    Raises:
        ConfigError: neither is so.
    """
    if label is None or not 0 <= label < dataset.classes:
        raise ConfigError(f"{where}: label {label} is not one of {dataset.classes} classes")
    if dataset.class_ids is not None and folder is not None:
        ids = class_ids(dataset.class_ids)
        if label >= len(ids) or ids[label] != folder:
            raise ConfigError(
                f"{where}: label {label} on an image of {folder}, but labels must count the sorted ids of "
                f"{dataset.class_ids}"
            )
    return label
