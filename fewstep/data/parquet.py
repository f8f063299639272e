"""Images in Parquet files as the Hugging Face hub stores them. The only module that imports pyarrow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..config import ConfigError
from ..config.settings import Dataset
from .classes import WORDNET, check_label
from .images import ImageFile
from .records import Record

if TYPE_CHECKING:
    from pyarrow import Table


class Parquet:
    """Columns of images (a struct of ``bytes`` and the original ``path``) and labels, ``dataset.columns``.

    Files are taken in the order of their names, rows as they lie. Opening reads the files' footers
    alone; images are read one row group at a time. Labels are checked as they are read, against the
    class in the original path where that has one.
    """

    def __init__(self, dataset: Dataset, record: Record) -> None:
        self._dataset = dataset
        names = sorted(file.name for file in record.body.files if file.name.endswith(".parquet"))
        if not names:
            raise ConfigError(f"{record.path}: dataset.format: parquet, but there is no .parquet file")
        self._groups: list[tuple[Path, int]] = []
        rows = [0]
        for name in names:
            path = record.file(name)
            with _open(path, self._dataset.columns) as file:
                for group in range(file.num_row_groups):
                    self._groups.append((path, group))
                    rows.append(file.metadata.row_group(group).num_rows)
        self._starts = np.cumsum(rows)
        self._held: tuple[int, Table] | None = None

    def __len__(self) -> int:
        return int(self._starts[-1])

    def files(self, start: int, stop: int) -> list[ImageFile]:
        result = []
        for position in range(start, min(stop, len(self))):
            group = int(np.searchsorted(self._starts, position, side="right")) - 1
            path, _ = self._groups[group]
            row = position - int(self._starts[group])
            table = self._table(group)
            image, label = (table[name][row].as_py() for name in self._dataset.columns)
            where = f"{path}: row {row} of group {self._groups[group][1]} ({image and image['path']})"
            if not image or not image["bytes"]:
                raise ConfigError(f"{where}: has no image bytes")
            folder = WORDNET.search(image["path"] or "")
            label = check_label(where, self._dataset, label, folder and folder[1])
            result.append(ImageFile(image["bytes"], label, where))
        return result

    def _table(self, group: int) -> Table:
        if self._held is None or self._held[0] != group:
            path, number = self._groups[group]
            columns = self._dataset.columns
            with _open(path, columns) as file:
                self._held = group, file.read_row_group(number, columns=columns, use_threads=False)
        return self._held[1]


def _open(path: Path, wanted: list[str]):
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ConfigError(f"{path}: not a Parquet file: {error}") from None
    schema = file.schema_arrow
    columns = {name: schema.field(name).type for name in schema.names}
    image, label = map(columns.get, wanted)
    fits = image is not None and pyarrow.types.is_struct(image) and label is not None
    if not fits or not {"bytes", "path"} <= {field.name for field in image}:
        raise ConfigError(
            f"{path}: needs columns {wanted[0]} (bytes, path) and {wanted[1]}, has {schema.names}; "
            f"name them in dataset.columns"
        )
    return file
