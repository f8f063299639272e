"""Images inside tar and Parquet files. The only module that imports pyarrow."""

from __future__ import annotations

import tarfile
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from tqdm import tqdm

from ..common.array_files import open_npz
from ..common.files import atomic
from ..config import ConfigError
from ..config.settings import Dataset
from .asset_files import Record
from .image_files import SUFFIXES, ImageFile, ImageFiles, check_folders, check_label, check_number

if TYPE_CHECKING:
    from pyarrow import Table
    from pyarrow.parquet import ParquetFile


class TarEntry(NamedTuple):
    """Where the bytes of an image lie, and of which class it is."""

    tar: int
    offset: int
    size: int
    label: int


class _TarFiles(ImageFiles):
    """All headers are read once and kept beside the record, in NAME.FORMAT.npz (a cache: delete it freely).

    WebDataset itself can only stream, and shards need ranges.
    """

    _entries: np.ndarray
    _folders: list[str]

    def __init__(self, dataset: Dataset, record: Record) -> None:
        super().__init__(dataset)
        self._paths = _files(record, dataset, ".tar")
        cache = record.path.with_suffix(f".{dataset.format}.npz")
        digest = record.digest
        # A cache that is not there, damaged, or of an older version or other files is made anew.
        with suppress(ValueError), open_npz(cache) as content:
            if str(content["digest"]) == digest:
                self._entries, self._folders = content["entries"], content["folders"].tolist()
                return
        entries, self._folders = self._scan()
        self._entries = np.array(entries, np.int64).reshape(-1, len(TarEntry._fields))
        with suppress(OSError), atomic(cache) as temporary:
            np.savez(temporary, entries=self._entries, folders=np.array(self._folders, str), digest=digest)

    @abstractmethod
    def _scan(self) -> tuple[list[TarEntry], list[str]]:
        """Entries of all images in order, and the names of the classes if the tars know them."""

    def __len__(self) -> int:
        return len(self._entries)

    def files(self, start: int, stop: int) -> list[ImageFile]:
        result = []
        for entry in (TarEntry(*row) for row in self._entries[start:stop].tolist()):
            path = self._paths[entry.tar]
            with path.open("rb") as stream:
                stream.seek(entry.offset)
                content = stream.read(entry.size)
            result.append(ImageFile(content, entry.label, f"{path} at byte {entry.offset}"))
        return result


class ClassTars(_TarFiles):
    """ILSVRC2012_img_train.tar, a tar of one tar per class, or the tars of the classes themselves.

    Classes are numbered in the sorted order of their tars' names, and images ordered by class and
    name: the order of the unpacked folders.
    """

    def __init__(self, dataset: Dataset, record: Record) -> None:
        super().__init__(dataset, record)
        check_folders(record.path, dataset, self._folders)

    def _scan(self) -> tuple[list[TarEntry], list[str]]:
        found: list[tuple[str, str, TarEntry]] = []
        for number, path in enumerate(self._paths):
            with _open_tar(path) as tar:
                for member in tqdm(tar, desc=f"reading headers of {path.name}", mininterval=1.0):
                    if member.isfile() and member.name.endswith(".tar"):
                        with tarfile.open(fileobj=tar.extractfile(member), mode="r:") as inner:
                            found += _class_entries(number, member.offset_data, member.name, inner)
                    else:
                        found += _class_entries(number, 0, path.name, [member])
        found.sort(key=lambda image: image[:2])
        folders = sorted({folder for folder, _, _ in found})
        labels = {folder: label for label, folder in enumerate(folders)}
        return [entry._replace(label=labels[folder]) for folder, _, entry in found], folders


def _class_entries(
    tar: int, base: int, name: str, members: Iterable[tarfile.TarInfo]
) -> Iterator[tuple[str, str, TarEntry]]:
    """Class, name and entry (without a label yet) of the images in the tar ``name`` of one class."""
    for member in members:
        path = PurePosixPath(member.name)
        if member.isfile() and path.suffix.lower() in SUFFIXES:
            entry = TarEntry(tar, base + member.offset_data, member.size, -1)
            yield PurePosixPath(name).stem, path.name, entry


class WebDatasetTars(_TarFiles):
    """WebDataset tar files of images (``KEY.jpg``) and labels (``KEY.cls``, an integer as text).

    Tars are taken in sorted order, samples in the order of their images inside. Where a sample's name tells
    its class (n01440764_10026), the label must be that class's number.
    """

    def __init__(self, dataset: Dataset, record: Record) -> None:
        super().__init__(dataset, record)
        found = len(np.unique(self._entries[:, TarEntry._fields.index("label")]))
        check_number(record.path, "classes", found, dataset.classes)

    def _scan(self) -> tuple[list[TarEntry], list[str]]:
        found: list[TarEntry] = []
        for number, path in enumerate(self._paths):
            found += _labelled_entries(number, path, self._dataset)
        return found, []


def _labelled_entries(number: int, path: Path, dataset: Dataset) -> list[TarEntry]:
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    with _open_tar(path) as tar:
        for member in filter(tarfile.TarInfo.isfile, tar):
            folder, slash, base = member.name.rpartition("/")
            stem, _, kind = base.partition(".")
            key, kind = folder + slash + stem, kind.lower()
            if "." + kind in SUFFIXES:
                images[key] = member.offset_data, member.size
            elif kind == "cls":
                content = tar.extractfile(member)
                text = content.read() if content else b""
                if not text.strip().isdigit() or int(text) >= dataset.classes:
                    raise ConfigError(
                        f"{path}: {member.name}: {text[:20]!r} is no label below {dataset.classes}"
                    )
                labels[key] = check_label(f"{path}: {member.name}", dataset, int(text), member.name)
    if missing := images.keys() ^ labels.keys():
        raise ConfigError(f"{path}: sample {min(missing)!r} has not both an image and a .cls label")
    return [TarEntry(number, *entry, labels[key]) for key, entry in images.items()]


@contextmanager
def _open_tar(path: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(path, "r:") as tar:
            yield tar
    except (tarfile.TarError, OSError) as error:
        raise ConfigError(f"{path}: not a whole and uncompressed tar file: {error}") from None


class ParquetImages(ImageFiles):
    """Columns of images (a struct of ``bytes`` and the original ``path``) and labels, ``dataset.columns``.

    Files are taken in the order of their names, rows as they lie. Opening reads the files' footers
    alone; images are read one row group at a time. Labels are checked as they are read, against the
    class in the original path where that has one.
    """

    def __init__(self, dataset: Dataset, record: Record) -> None:
        super().__init__(dataset)
        self._groups: list[tuple[Path, int]] = []
        rows = [0]
        for path in _files(record, dataset, ".parquet"):
            with _open_parquet(path, dataset.columns) as file:
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
            label = check_label(where, self._dataset, label, image["path"])
            result.append(ImageFile(image["bytes"], label, where))
        return result

    def _table(self, group: int) -> Table:
        if self._held is None or self._held[0] != group:
            path, number = self._groups[group]
            columns = self._dataset.columns
            with _open_parquet(path, columns) as file:
                self._held = group, file.read_row_group(number, columns=columns, use_threads=False)
        return self._held[1]


def _open_parquet(path: Path, wanted: list[str]) -> ParquetFile:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ConfigError(f"{path}: not a Parquet file: {error}") from None
    schema = file.schema_arrow
    columns = {name: schema.field(name).type for name in schema.names}
    image, label = map(columns.get, wanted)
    parts = {field.name for field in image} if image and pyarrow.types.is_struct(image) else set()
    if label is None or not {"bytes", "path"} <= parts:
        raise ConfigError(
            f"{path}: needs columns {wanted[0]} (bytes, path) and {wanted[1]}, has {schema.names}; "
            f"name them in dataset.columns"
        )
    return file


def _files(record: Record, dataset: Dataset, suffix: str) -> list[Path]:
    """The files of the record that end in ``suffix``, in the order of their names."""
    paths = [record.file(name) for name in record.names(suffix)]
    if not paths:
        raise ConfigError(f"{record.path}: dataset.format: {dataset.format}, but there is no {suffix} file")
    return paths
