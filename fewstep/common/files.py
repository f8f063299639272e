"""Files that appear whole or not at all, and their checksums."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ABANDONED = 24 * 60 * 60
"""Seconds without a write after which a temporary file of another host is left over."""
# Read once, before there are threads: reading it sets it, for the whole process.
UMASK = os.umask(0o077)
os.umask(UMASK)


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` if the block succeeds.

    The temporary name keeps the suffix. On an exception it is removed and ``path`` is untouched. What a
    killed process left is removed too, see `_sweep`.
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=_prefix(path), suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~UMASK)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """The same of a folder, which is there and empty in the block; it takes the place of an older one."""
    path = Path(path)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=_prefix(path), suffix=path.suffix))
    try:
        yield temporary
        temporary.chmod(0o777 & ~UMASK)
        shutil.rmtree(path, ignore_errors=True)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _prefix(path: Path) -> str:
    """Start of a temporary name beside ``path``, whose folder is made and cleared of what others left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    return f".{path.stem}.{_host()}~{os.getpid()}~"


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _sweep(path: Path) -> None:
    """Remove temporary files, or folders, of ``path`` whose process has ended, or elsewhere wrote nothing
    for a day."""
    name = re.compile(rf"\.{re.escape(path.stem)}\.(\w+)~(\d+)~\w+{re.escape(path.suffix)}")
    for entry in os.scandir(path.parent):
        if not (found := name.fullmatch(entry.name)):
            continue
        host, process = found.groups()
        with suppress(FileNotFoundError):
            ended = host == _host() and not _runs(int(process))
            if ended or time.time() - entry.stat().st_mtime > ABANDONED:
                shutil.rmtree(entry) if entry.is_dir() else Path(entry).unlink()


@contextmanager
def reading(path: str | Path, what: str) -> Iterator[None]:
    """Whatever goes wrong inside is a ValueError in one line that names the file: damage has many exceptions.

    Args:
        what: what the file should be, with its article.
    """
    try:
        yield
    except Exception as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path}: not {what}: {first_line(error)}") from None


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_lines(path: str | Path, text: str) -> None:
    """Write lines of text atomically, and last a line of JSON with their `sha256`."""
    write_text(path, f'{text}{{"sha256": "{hashlib.sha256(text.encode()).hexdigest()}"}}\n')


def read_lines(path: str | Path) -> list[str]:
    """The lines that `write_lines` wrote, without the last.

    Raises:
        ValueError: they are not those of the checksum.
    """
    with reading(path, "whole"):
        *lines, last = Path(path).read_text(encoding="utf-8").splitlines(keepends=True)
        if json.loads(last)["sha256"] != hashlib.sha256("".join(lines).encode()).hexdigest():
            raise ValueError("its lines are not those of the sha256 at its end")
    return lines


def sha256(path: str | Path) -> str:
    """Hex SHA-256 of a file, read in pieces."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def verify_beside(
    manifest: Path, path: Path, checksum: str | None, size: int | None, remedy: str = ""
) -> None:
    """Refuse a file that a manifest names and that is not what it says.

    Args:
        checksum: SHA-256, or None not to hash the file.
        size: in bytes, or None.
        remedy: what to do, at the end of the message.

    Raises:
        ValueError: it is missing, or of another size or content.
    """
    end = f"; {remedy}" if remedy else ""
    if not path.is_file():
        raise ValueError(f"{manifest}: names {path.name}, which is missing beside it{end}")
    if size is not None and (found := path.stat().st_size) != size:
        raise ValueError(f"{manifest}: {path.name}: bytes: {found}, the manifest says {size}{end}")
    if checksum is not None and (digest := sha256(path)) != checksum:
        raise ValueError(f"{manifest}: {path.name}: sha256: {digest}, not {checksum}: damaged{end}")
