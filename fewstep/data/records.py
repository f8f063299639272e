"""Records of fetched assets: ``assets/NAME.json`` beside the folder ``assets/NAME/`` of its files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from pydantic import Field

from ..config import ConfigError, Strict
from ..config.base import parse


class RecordFile(Strict):
    """A file that is there, with what it was when the record was written."""

    name: str = Field(description="path inside the asset's folder, with forward slashes")
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    source: str = Field(description="where it came from: URL, hub path or origin")


class RecordBody(Strict):
    """Content of a record."""

    name: str
    kind: str
    title: str
    licence: str
    files: list[RecordFile]


@dataclass(frozen=True)
class Record:
    """A record and the place of its files."""

    path: Path
    body: RecordBody

    @property
    def folder(self) -> Path:
        return folder_of(self.path)

    @property
    def digest(self) -> str:
        """SHA-256 over names and hashes of the files: equal for equal content, whatever its source."""
        lines = (f"{file.sha256} {file.name}\n" for file in sorted(self.body.files, key=lambda f: f.name))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def locate(self, file: RecordFile) -> Path:
        """Path of a recorded file.

        Raises:
            ConfigError: the file is missing or has another size than the record says.
        """
        path = inside(self.folder, file.name, str(self.path))
        if not path.is_file():
            raise ConfigError(f"{self.path}: files.{file.name}: {path} is missing; run the fetch stage again")
        if (size := path.stat().st_size) != file.bytes:
            raise ConfigError(
                f"{self.path}: files.{file.name}: {path} has {size} bytes, the record says {file.bytes}; "
                f"run the fetch stage again"
            )
        return path

    def file(self, name: str) -> Path:
        """Path of the file called ``name``; errors as for `locate`."""
        for file in self.body.files:
            if file.name == name:
                return self.locate(file)
        raise ConfigError(f"{self.path}: has no file {name!r}; it names {_some(self.body.files)}")


def _some(files: list[RecordFile]) -> str:
    names = ", ".join(file.name for file in files[:5])
    return names + (f" and {len(files) - 5} more" if len(files) > 5 else "")


def folder_of(record: Path) -> Path:
    """Folder of the files of a record: its path without the suffix."""
    return record.with_suffix("")


def inside(folder: Path, name: str, where: str) -> Path:
    """``folder / name``.

    Raises:
        ConfigError: ``name`` is empty, absolute, hidden, or leaves the folder; ``where`` says who asked.
    """
    parts = PurePosixPath(name).parts
    if not parts or "\\" in name or PureWindowsPath(name).anchor or any(part[0] in "./" for part in parts):
        raise ConfigError(
            f"{where}: file name {name!r} is refused: it must be a relative path of plain names, without '..'"
        )
    return folder.joinpath(*parts)


def read_record(path: str | Path) -> Record:
    """Read a record.

    Raises:
        ConfigError: naming the file and what is wrong with it.
    """
    path = Path(path)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not the record of a fetched asset: {error}") from None
    return Record(path, parse(RecordBody, raw, str(path)))
