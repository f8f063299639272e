"""The digest of training code: what changes it and what does not."""

from __future__ import annotations

import subprocess
import sys

import pytest
from report_helpers import ROOT

from fewstep.provenance import code_digest

SOURCE = '''"""Docstring."""

def f(x):
    """Inner docstring."""
    return x + 1  # comment
'''


@pytest.fixture
def package(tmp_path):
    for name in (
        "core/a.py",
        "backbones/b.py",
        "data/loader.py",
        "data/shards.py",
        "data/other.py",
        "train.py",
        "optimize.py",
        "methods/decm/loss.py",
        "methods/scm/loss.py",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(SOURCE)
    return tmp_path


def test_comments_docstrings_and_layout_do_not_count(package):
    before = code_digest("decm", package)
    (package / "core/a.py").write_text(
        'def f(x):\n    # other\n    """Other words."""\n    return (x+\n     1)\n'
    )
    assert code_digest("decm", package) == before and len(before) == 16


@pytest.mark.parametrize(
    "name",
    ["core/a.py", "backbones/b.py", "data/loader.py", "train.py", "optimize.py", "methods/decm/loss.py"],
)
def test_training_code_counts(package, name):
    before = code_digest("decm", package)
    (package / name).write_text(SOURCE.replace("x + 1", "x + 2"))
    assert code_digest("decm", package) != before


def test_other_methods_and_other_stages_do_not_count(package):
    before = code_digest("decm", package)
    (package / "methods/scm/loss.py").write_text("x = 1\n")
    (package / "data/other.py").write_text("x = 1\n")
    (package / "table.py").write_text("x = 1\n")
    assert code_digest("decm", package) == before != code_digest("scm", package)


def test_a_new_file_in_core_counts(package):
    before = code_digest("decm", package)
    (package / "core/z.py").write_text("")
    assert code_digest("decm", package) != before


def test_a_method_without_source_is_refused(package):
    with pytest.raises(ValueError, match=r"methods/dumo/loss\.py: no such source"):
        code_digest("dumo", package)


def test_the_end_of_the_dag_runs_without_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import fewstep.table, fewstep.figure, fewstep.claims, fewstep.report, fewstep.provenance\n"
        "import fewstep.figures.curves, fewstep.figures.training, fewstep.figures.grid\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
