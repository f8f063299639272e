"""The list of commands, and the command that writes schemas."""

from __future__ import annotations

import subprocess
import sys

import pytest
from configs import ROOT

from fewstep.config.__main__ import main as write_schemas


def test_the_list_of_commands():
    """Every command with one line, without torch."""
    code = "import sys; sys.modules['torch'] = None; from fewstep.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    told = dict(line.split(maxsplit=3)[2:] for line in done.stdout.splitlines() if "-m fewstep." in line)
    files = {path.stem for path in (ROOT / "fewstep").glob("*.py") if "__main__" in path.read_text()}
    rooms = {path.parent.name for path in (ROOT / "fewstep").glob("*/__main__.py")}
    assert told.keys() == {f"fewstep.{name}" for name in (files | rooms) - {"__main__"}}
    assert all(summary.endswith(".") for summary in told.values())


def test_schemas_are_written_only_where_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for words in ([], ["--help"]):
        with pytest.raises(SystemExit):
            write_schemas(words)
    assert not list(tmp_path.iterdir())
    write_schemas(["schemas"])
    assert (tmp_path / "schemas/config.json").is_file()
