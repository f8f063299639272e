"""What killed and terminated stages leave behind, and what the next start removes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from child_processes import die_at_rename, finish, start
from tiny_pipeline import TinyPipeline

from fewstep.common import files
from fewstep.common.files import atomic, atomic_folder


def stop_while_writing(number: int) -> None:
    """The process gets a signal when its output is half written."""
    import tarfile

    original = tarfile.TarFile.addfile

    def stopped(self, *arguments):
        original(self, *arguments)
        if len(self.members) == 2:
            os.kill(os.getpid(), number)

    tarfile.TarFile.addfile = stopped


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.startswith(".")]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_stopped_stage_leaves_nothing_for_long(pipeline: TinyPipeline, tmp_path, number, status):
    call = pipeline.sample("cd", "cm-2", tmp_path)
    assert finish(start(call, tmp_path / "log", fault=stop_while_writing, number=number)) == status
    assert not call.out.exists() and len(leftovers(tmp_path)) == (number == signal.SIGKILL)
    assert call().read_bytes() == pipeline.sample("cd", "cm-2").out.read_bytes()
    assert leftovers(tmp_path) == []


def test_a_shard_that_was_killed_at_its_rename(pipeline: TinyPipeline, tmp_path):
    call = pipeline.encode("digits-pixels", tmp_path, shard=0)
    for _ in range(2):
        assert finish(start(call, tmp_path / "log", fault=die_at_rename, name=call.out.name)) == -9
    assert len(leftovers(tmp_path)) == 1  # the second start removed that of the first
    call()
    assert leftovers(tmp_path) == []


def test_the_processs_umask_is_left_alone(tmp_path, monkeypatch):
    """Writing changes it in no thread, and what is written has the mode that it leaves."""
    before = os.umask(0o077)
    os.umask(before)
    monkeypatch.setattr(os, "umask", None)
    with atomic(tmp_path / "file") as path:
        path.write_text("")
    with atomic_folder(tmp_path / "folder"):
        pass
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("file", "folder")]
    assert modes == [0o666 & ~before, 0o777 & ~before]


def test_only_what_nobody_writes_is_removed(tmp_path, monkeypatch):
    path = tmp_path / "shard.tar"
    with atomic(path) as ours:
        with atomic(path) as other:  # another writer of the same file
            other.write_text("theirs")
        assert ours.exists() and path.read_text() == "theirs"
        ours.write_text("ours")
    assert path.read_text() == "ours"

    elsewhere = tmp_path / ".shard.01234567~1~abc.tar"
    foreign = [tmp_path / name for name in (".shard.tar", ".shard.index.tar", ".other.01234567~1~abc.tar")]
    for each in (elsewhere, *foreign):
        each.touch()
    with atomic(path):
        assert elsewhere.exists()
    os.utime(elsewhere, (0, time.time() - files.ABANDONED - 1))
    with atomic(path):
        assert not elsewhere.exists() and all(each.exists() for each in foreign)
