"""Sampling on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from archive_contents import images_of
from configs import ROOT
from tiny_pipeline import TinyPipeline

pytestmark = pytest.mark.gpu


def test_images_are_those_of_a_cpu(pipeline: TinyPipeline, tmp_path: Path):
    """But for a value in a hundred that is rounded to its neighbour; and a second time the same."""
    first, again, cpu = (pipeline.sample("cd", "cm-2", tmp_path / name) for name in ("a", "b", "cpu"))
    first()
    again()
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "fewstep.sample", *cpu.arguments]
    subprocess.run(words, env=environment, check=True, capture_output=True)
    found = images_of(first.out)
    assert (found == images_of(again.out)).all()
    apart = (found.int() - images_of(cpu.out).int()).abs()
    assert apart.max() <= 1 and (apart > 0).double().mean() < 0.01
