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
from ..common.files import atomic, first_line
from ..common.image_folders import SUFFIXES
from ..common.tar_files import members
from ..config import ConfigError
from ..config.settings import Dataset
from .asset_files import Record, VerifiedFile
from .caption_text import caption_of, json_object
from .image_files import ImageFile, ImageFiles, check_folders, check_label, check_number, check_size

if TYPE_CHECKING:
    from pyarrow import Table
    from pyarrow.parquet import ParquetFile

LABEL_BYTES = 32
"""The most that a label has as text."""
CAPTION_BYTES = 1 << 16
"""The most that the .json of a caption has."""
GROUP_BYTES = 1 << 30
"""The most that a row group may take in memory."""


class TarEntry(NamedTuple):
    """Where the bytes of an image lie, of which class it is, and where that is written as text, if it is."""

    tar: int
    offset: int
    size: int
    label: int
    label_offset: int = 0
    label_size: int = 0


class _TarFiles(ImageFiles):
    """All headers are read once and kept beside the record, in NAME.FORMAT.npz (a cache: delete it freely).

    WebDataset itself can only stream, and shards need ranges.
    """

    _entries: np.ndarray
    _folders: list[str]

    def __init__(self, dataset: Dataset, record: Record) -> None:
        super().__init__(dataset)
        self._record = record
        self._names = _names(record, dataset, ".tar")
        self._open: tuple[int, VerifiedFile] | None = None
        self._cache = cache = record.path.with_suffix(f".{dataset.format}.npz")
        digest = record.digest
        # A cache that is not there, damaged, or of an older version or other files is made anew.
        with suppress(ValueError), open_npz(cache) as content:
            shape = (dataset.images, len(TarEntry._fields))
            if str(content["digest"]) == digest and content["entries"].shape == shape:
                self._entries, self._folders = content["entries"], content["folders"].tolist()
                return
        entries, self._folders = self._scan()
        # A damaged header ends a tar before its end: that must not be kept.
        check_number(record.path, "images", len(entries), dataset.images)
        self._entries = np.array(entries, np.int64).reshape(-1, len(TarEntry._fields))
        with suppress(OSError), atomic(cache) as temporary:
            np.savez(temporary, entries=self._entries, folders=np.array(self._folders, str), digest=digest)

    @abstractmethod
    def _scan(self) -> tuple[list[TarEntry], list[str]]:
        """Entries of all images in order, and the names of the classes if the tars know them."""

    def __len__(self) -> int:
        return len(self._entries)

    def labels(self, start: int, stop: int) -> list[int]:
        return [TarEntry(*row).label for row in self._entries[start:stop].tolist()]

    def files(self, start: int, stop: int) -> list[ImageFile]:
        result = []
        for entry in (TarEntry(*row) for row in self._entries[start:stop].tolist()):
            tar = self._tar(entry.tar)
            where = f"{tar.path} at byte {entry.offset}"
            check_size(where, entry.size)
            tar.seek(entry.offset)
            result.append(ImageFile(tar.read(entry.size), entry.label, where))
            self._check_label(entry, where)
        return result

    def _check_label(self, entry: TarEntry, where: str) -> None:
        """Refuse a label that is another one in the verified file."""
        if entry.label_size and int(self._label_text(entry)) != entry.label:
            self._cache.unlink(missing_ok=True)  # it is of files that were damaged then
            raise ConfigError(f"{where}: another label than {self._cache} had, which is removed; run again")

    def _label_text(self, entry: TarEntry) -> bytes:
        tar = self._tar(entry.tar)
        tar.seek(entry.label_offset)
        return tar.read(entry.label_size)

    def _tar(self, number: int) -> VerifiedFile:
        """A tar; one is open at a time."""
        if self._open is None or self._open[0] != number:
            self._open = number, self._record.open(self._names[number])
        return self._open[1]


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
        for number, name in enumerate(self._names):
            path = self._record.file(name)
            with _open_tar(path) as (tar, outer):
                for member in tqdm(outer, desc=f"reading headers of {path.name}", mininterval=1.0):
                    if member.isfile() and member.name.endswith(".tar"):
                        with tarfile.open(fileobj=tar.extractfile(member), mode="r:") as inner:
                            inside = members(inner, member.size)
                            found += _class_entries(number, member.offset_data, member.name, inside)
                    else:
                        found += _class_entries(number, 0, path.name, [member])
        found.sort(key=lambda image: image[:2])
        folders = sorted({folder for folder, _, _ in found})
        labels = {folder: label for label, folder in enumerate(folders)}
        return [entry._replace(label=labels[folder]) for folder, _, entry in found], folders


def _class_entries(
    tar: int, base: int, name: str, images: Iterable[tarfile.TarInfo]
) -> Iterator[tuple[str, str, TarEntry]]:
    """Class, name and entry (without a label yet) of the images in the tar ``name`` of one class."""
    for member in images:
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
        for number, name in enumerate(self._names):
            found += _labelled_entries(number, self._record.file(name), self._dataset)
        return found, []


class CaptionedTars(_TarFiles):
    """WebDataset tar files of images (``KEY.jpg``) and captions (``KEY.json``, with a key `prompt`).

    The first ``dataset.images`` of them, tars in sorted order, pairs in the order of their images inside;
    later tars are not opened. The label of image i is i, the number of its caption.
    """

    def _scan(self) -> tuple[list[TarEntry], list[str]]:
        found: list[TarEntry] = []
        for number, name in enumerate(self._names):
            if len(found) < self._dataset.images:
                found += _captioned_entries(
                    number, self._record.file(name), self._dataset.images - len(found)
                )
        return [entry._replace(label=label) for label, entry in enumerate(found)], []

    def _check_label(self, entry: TarEntry, where: str) -> None:
        """It is the image's place."""

    def captions(self) -> list[str]:
        """Caption of each image, read from the verified file.

        Raises:
            ConfigError: a damaged file, or one that was damaged when its headers were read.
        """
        result = []
        for row in tqdm(self._entries.tolist(), desc="captions", mininterval=1.0):
            entry = TarEntry(*row)
            where = f"{self._tar(entry.tar).path} at byte {entry.label_offset}"
            text = self._label_text(entry)
            try:
                result.append(caption_of(json_object(text, where), "prompt", where))
            except ConfigError as error:
                self._cache.unlink(missing_ok=True)
                raise ConfigError(
                    f"{error}; {self._cache} knew a caption there: removed, run again"
                ) from None
        return result


def _captioned_entries(number: int, path: Path, most: int) -> list[TarEntry]:
    """Entries, without labels yet, of the first images of a tar.

    Raises:
        ConfigError: one of its samples, whether among the first or not, is not an image with a caption.
    """
    images: dict[str, tuple[int, int]] = {}
    captions: dict[str, tuple[int, int]] = {}
    with _open_tar(path) as (tar, every):
        for member in tqdm(filter(tarfile.TarInfo.isfile, every), desc=f"reading headers of {path.name}"):
            key, kind = _sample(member)
            found = images if "." + kind in SUFFIXES else captions if kind == "json" else None
            if found is None:
                continue
            where = f"{path}: {member.name}"
            if key in found:
                raise ConfigError(f"{where}: sample {key!r} has two of this kind")
            if found is captions:
                if member.size > CAPTION_BYTES:
                    raise ConfigError(f"{where}: has {member.size} bytes, more than {CAPTION_BYTES}")
                content = tar.extractfile(member)
                caption_of(json_object(content.read() if content else b"", where), "prompt", where)
            found[key] = member.offset_data, member.size
    if alone := images.keys() ^ captions.keys():
        key = min(alone)
        has, lacks = ("an image", ".json") if key in images else ("a .json", "image")
        raise ConfigError(f"{path}: {key}: {has} without {lacks}")
    return [TarEntry(number, *images[key], -1, *captions[key]) for key in list(images)[:most]]


def _sample(member: tarfile.TarInfo) -> tuple[str, str]:
    """WebDataset's key of a member, and the rest of its name in small letters."""
    folder, slash, base = member.name.rpartition("/")
    stem, _, kind = base.partition(".")
    return folder + slash + stem, kind.lower()


def _labelled_entries(number: int, path: Path, dataset: Dataset) -> list[TarEntry]:
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, tuple[int, int, int]] = {}
    with _open_tar(path) as (tar, every):
        for member in filter(tarfile.TarInfo.isfile, every):
            key, kind = _sample(member)
            if "." + kind in SUFFIXES:
                images[key] = member.offset_data, member.size
            elif kind == "cls":
                content = tar.extractfile(member)
                text = content.read(LABEL_BYTES) if content else b""
                if member.size > LABEL_BYTES or not text.strip().isdigit() or int(text) >= dataset.classes:
                    raise ConfigError(
                        f"{path}: {member.name}: {text[:20]!r} is no label below {dataset.classes}"
                    )
                label = check_label(f"{path}: {member.name}", dataset, int(text), member.name)
                labels[key] = label, member.offset_data, member.size
    if missing := images.keys() ^ labels.keys():
        raise ConfigError(f"{path}: sample {min(missing)!r} has not both an image and a .cls label")
    return [TarEntry(number, *entry, *labels[key]) for key, entry in images.items()]


@contextmanager
def _open_tar(path: Path) -> Iterator[tuple[tarfile.TarFile, Iterator[tarfile.TarInfo]]]:
    """The tar, whose headers have checksums, and its members in order."""
    try:
        with tarfile.open(path, "r:") as tar:
            yield tar, members(tar, path.stat().st_size)
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
        self._record = record
        self._groups: list[tuple[str, int]] = []
        rows = [0]
        for name in _names(record, dataset, ".parquet"):
            path = record.file(name)
            with _open_parquet(path, path, dataset.columns) as file:
                for group in range(file.num_row_groups):
                    self._groups.append((name, group))
                    rows.append(file.metadata.row_group(group).num_rows)
        self._starts = np.cumsum(rows)
        self._held: tuple[int, Table] | None = None

    def __len__(self) -> int:
        return int(self._starts[-1])

    def files(self, start: int, stop: int) -> list[ImageFile]:
        result = []
        for position in range(start, min(stop, len(self))):
            group = int(np.searchsorted(self._starts, position, side="right")) - 1
            row = position - int(self._starts[group])
            table = self._table(group)
            image, label = (table[name][row].as_py() for name in self._dataset.columns)
            name, number = self._groups[group]
            where = f"{self._record.folder / name}: row {row} of group {number} ({image and image['path']})"
            if not image or not image["bytes"]:
                raise ConfigError(f"{where}: has no image bytes")
            check_size(where, len(image["bytes"]))
            label = check_label(where, self._dataset, label, image["path"])
            result.append(ImageFile(image["bytes"], label, where))
        return result

    def _table(self, group: int) -> Table:
        if self._held is None or self._held[0] != group:
            name, number = self._groups[group]
            columns = self._dataset.columns
            shared = [f"{columns[0]}.{part}" for part in ("bytes", "path")]
            stream = self._record.open(name)
            with stream, _open_parquet(stream, stream.path, columns, shared) as file:
                if (size := file.metadata.row_group(number).total_byte_size) > GROUP_BYTES:
                    raise ValueError(f"row group {number} has {size} bytes, more than {GROUP_BYTES}")
                self._held = group, file.read_row_group(number, columns=columns, use_threads=False)
        return self._held[1]


@contextmanager
def _open_parquet(
    source: Path | VerifiedFile, path: Path, wanted: list[str], shared: list[str] | None = None
) -> Iterator[ParquetFile]:
    """An open file; values of the columns ``shared`` that stand many times in it are one in memory."""
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(source, read_dictionary=shared) as file:
            _check_columns(path, file, wanted)
            yield file
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{path}: not a Parquet file: {first_line(error)}") from None


def _check_columns(path: Path, file: ParquetFile, wanted: list[str]) -> None:
    import pyarrow

    schema = file.schema_arrow
    columns = {name: schema.field(name).type for name in schema.names}
    image, label = map(columns.get, wanted)
    parts = {field.name for field in image} if image and pyarrow.types.is_struct(image) else set()
    if label is None or not {"bytes", "path"} <= parts:
        raise ConfigError(
            f"{path}: needs columns {wanted[0]} (bytes, path) and {wanted[1]}, has {schema.names}; "
            f"name them in dataset.columns"
        )


def _names(record: Record, dataset: Dataset, suffix: str) -> list[str]:
    """Names of the files of the record that end in ``suffix``, sorted."""
    names = [name for name in record.names(suffix) if name.startswith(dataset.prefix)]
    if not names:
        raise ConfigError(f"{record.path}: dataset.format: {dataset.format}, but there is no {suffix} file")
    return names
