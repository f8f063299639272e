"""Records of fetched assets: ``assets/NAME.json`` beside the folder ``assets/NAME/`` of its files."""

from __future__ import annotations

import hashlib
import io
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from pydantic import Field

from ..common.cli import first_few
from ..common.files import sha256
from ..common.folders import visible_files
from ..config import ConfigError, Strict
from ..config.assets import AssetFile
from ..config.base import read_spec

RECORD = "the record of a fetched asset"
AGAIN = "fetch the asset again (snakemake -R fetch)"
BLOCK = 1 << 20
"""Bytes that have a checksum of their own, so that a part of a large file can be verified."""


class RecordFile(Strict):
    """A file that is there, with what it was when the record was written."""

    name: str = Field(description="path inside the asset's folder, with forward slashes")
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    blocks: str = Field(
        default="", pattern=r"^([0-9a-f]{8})*$", description="CRC-32 of each MiB; empty: not known"
    )
    source: str = Field(description="where it came from: URL, hub path or origin")


class RecordBody(Strict):
    """Content of a record."""

    name: str
    kind: str
    title: str
    licence: str
    files: list[RecordFile]


class VerifiedFile(io.RawIOBase):
    """A file of an asset, opened to be read; each block is verified before a byte of it is given out.

    Raises:
        ConfigError: at reading, a block that differs from the record, or ends before it should.
    """

    def __init__(self, path: Path, file: RecordFile) -> None:
        self.path = path
        self.size = file.bytes
        self._checksums = file.blocks
        self._stream = path.open("rb", buffering=0)
        self._place = 0
        self._held = -1, b""

    def read(self, size: int | None = -1) -> bytes:
        """At most ``size`` bytes, fewer only at the end."""
        rest = max(self.size - self._place, 0)
        result = bytearray(rest if size is None or size < 0 else min(size, rest))
        self.readinto(result)
        return bytes(result)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        done, count = 0, min(len(view), max(self.size - self._place, 0))
        while done < count:
            number, start = divmod(self._place, BLOCK)
            part = self._block(number)[start : start + count - done]
            view[done : done + len(part)] = part
            done += len(part)
            self._place += len(part)
        return count

    def _block(self, number: int) -> bytes:
        if self._held[0] != number:
            self._stream.seek(number * BLOCK)
            content, size = b"", min(BLOCK, self.size - number * BLOCK)
            while part := self._stream.read(size - len(content)):  # may be fewer bytes than are asked for
                content += part
            expected = self._checksums[8 * number : 8 * number + 8]
            if len(content) < size or (self._checksums and f"{zlib.crc32(content):08x}" != expected):
                raise ConfigError(
                    f"{self.path}: damaged: its MiB {number} is not the one that was fetched; {AGAIN}"
                )
            self._held = number, content
        return self._held[1]

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self.size}[whence]
        return self._place

    def tell(self) -> int:
        return self._place

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._stream.close()
        super().close()


@dataclass(frozen=True)
class Record:
    """A record and the place of its files."""

    path: Path
    body: RecordBody

    @property
    def folder(self) -> Path:
        return self.path.with_suffix("")

    @property
    def digest(self) -> str:
        """SHA-256 over names and hashes of the files: equal for equal content, whatever its source."""
        lines = (f"{file.sha256} {file.name}\n" for file in sorted(self.body.files, key=lambda f: f.name))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def file(self, name: str | None) -> Path:
        """Path of the file called ``name``, of which nothing is read: data sets have hundreds of gigabytes.

        Raises:
            ConfigError: the record has no such file, or it is missing or of another size than it says.
        """
        path, file = self._find(name)
        if (size := path.stat().st_size) != file.bytes:
            raise ConfigError(
                f"{self.path}: files.{name}: {path} has {size} bytes, the record says {file.bytes}; {AGAIN}"
            )
        return path

    def open(self, name: str | None) -> VerifiedFile:
        """The file called ``name``, of which all that is read is verified.

        Raises:
            ConfigError: as for `file`.
        """
        path, (_, file) = self.file(name), self._find(name)
        if not file.blocks:  # the record is of before there were any
            self.verified_once(name)
        return VerifiedFile(path, file)

    def verified_once(self, name: str | None) -> Path:
        """Path of the file called ``name``, hashed when it is asked for first; errors as for `verified`."""
        if name not in self._hashed:
            self.verified(name)
            self._hashed.add(name)
        return self._find(name)[0]

    def verified(self, name: str | None) -> tuple[Path, str]:
        """Path of the file called ``name``, hashed again, and its SHA-256.

        Raises:
            ConfigError: the record has no such file, or it is missing, or not the one that was fetched.
        """
        path, file = self._find(name)
        if (found := sha256(path)) != file.sha256:
            raise ConfigError(
                f"{path}: differs from {self.path}: its sha256 is {found}, not {file.sha256}; {AGAIN}"
            )
        return path, found

    def verified_with_folder(self, name: str | None) -> tuple[Path, str]:
        """Path of the file called ``name``, and its SHA-256; every file of its folder is hashed again, for a
        library that reads more of the folder than it is told of.

        Raises:
            ConfigError: as for `verified_folder`.
        """
        path, file = self._find(name)
        self.verified_folder(file.name.rpartition("/")[0])
        return path, file.sha256

    def verified_folder(self, name: str = "") -> Path:
        """Path of a folder of the asset, or of the whole asset, of which every file is hashed again.

        Raises:
            ConfigError: as for `verified`; a file that the record does not name lies there, and would be
                read by whoever reads the folder.
        """
        start = f"{name}/" if name else ""
        named = {file for file in self._by_name if file.startswith(start)}
        for file in sorted(named):
            self.verified(file)
        if strangers := sorted({f"{start}{file}" for file in visible_files(self.folder / name)} - named):
            raise ConfigError(
                f"{self.path}: files: does not name {first_few(strangers)}, but {self.folder} has it"
            )
        return self.folder / name

    def _find(self, name: str | None) -> tuple[Path, RecordFile]:
        file = self._by_name.get(name or "")
        if file is None:
            raise ConfigError(f"{self.path}: has no file {name!r}; it names {first_few(self._by_name)}")
        path = inside(self.folder, file.name, str(self.path))
        if not path.is_file():
            raise ConfigError(f"{self.path}: files.{name}: {path} is missing; {AGAIN}")
        return path, file

    @cached_property
    def _hashed(self) -> set[str | None]:
        return set()

    @cached_property
    def _by_name(self) -> dict[str, RecordFile]:
        return {file.name: file for file in self.body.files}

    def names(self, suffix: str) -> list[str]:
        """Names of the files that end in ``suffix``, sorted."""
        return sorted(file.name for file in self.body.files if file.name.endswith(suffix))


def verify(path: Path, file: AssetFile, source: str) -> RecordFile:
    """The entry in the record of ``file``, which lies at ``path`` and came from ``source``.

    Raises:
        ValueError: its size or SHA-256 differs from what ``file`` promises (None: nothing).
    """
    size = path.stat().st_size
    if file.bytes is not None and size != file.bytes:
        raise ValueError(f"{path.name}: {size} bytes instead of {file.bytes}")
    total, blocks = hashlib.sha256(), []
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            total.update(block)
            blocks.append(f"{zlib.crc32(block):08x}")
    digest = total.hexdigest()
    if file.sha256 is not None and digest != file.sha256:
        raise ValueError(f"{path.name}: sha256 is {digest} instead of {file.sha256}")
    return RecordFile(name=file.name, bytes=size, sha256=digest, blocks="".join(blocks), source=source)


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
    try:
        return Record(Path(path), read_spec(RecordBody, path, RECORD))
    except ConfigError as error:
        reason = str(error).splitlines()[0].removeprefix(f"{path}: ").removeprefix(f"not {RECORD}: ")
        raise ConfigError(f"{path}: not {RECORD}: {reason}") from None
