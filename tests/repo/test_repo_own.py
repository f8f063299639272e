"""From a folder of images to a table and a grid of samples, by the real workflow."""

from __future__ import annotations

import subprocess
import sys

import pytest
from configs import ROOT
from own_images import draw
from PIL import Image

from fewstep.backbones.model_file import load_model
from fewstep.reporting.rows import read_table

TINY = """
overrides:
  settings:
    backbones: {own-teacher: &small {depth: 1, width: 16, heads: 2}, own: *small, own-dual: *small}
    protocols: {pixels-8x8: {images: 30, features: "4"}}
    recipes: {own: {train: &short {steps: 4, optimizer: {warmup: 1}}, guidance: {calibration: 64}}}
  methods: {teacher: {train: *short}}
  tables:
    table: &table
      {steps: [1], rows: [
        {id: teacher, label: Teacher, method: teacher, sampler: euler-guided, steps: [2]},
        {id: decm, label: DE-CM, method: decm}]}
    pictures: *table
"""


@pytest.mark.parametrize("counts", [{"discs": 12, "squares": 8}, {".": 10}], ids=["classes", "flat"])
def test_from_a_folder_to_a_table_and_a_grid(tmp_path, monkeypatch, counts):
    monkeypatch.chdir(tmp_path)
    draw(counts, size=(40, 36))
    (tmp_path / "tiny.yaml").write_text(TINY)
    command = [
        *(sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")),
        *("--profile", str(ROOT / "profiles/own"), "--quiet", "all"),
        *("--configfile", str(ROOT / "config/own.yaml"), "tiny.yaml", "--"),
        *("results/own/table.csv", "results/own/pictures.png", "results/own/report.html"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    table = read_table("results/own/table.csv")
    assert [(row.label, row.steps, row.status) for row in table.rows] == [
        ("Teacher", 2, "measured"),
        ("DE-CM", 1, "measured"),
    ]
    assert all(row.metric == "frechet" and row.protocol == "pixels-8x8" and row.ours for row in table.rows)
    text = (tmp_path / "results/own/table.md").read_text()
    assert "Fréchet distance" in text and "paper" not in text and "miniature" not in text.lower()
    page = (tmp_path / "results/own/report.html").read_text()
    shown, _, methods = page.partition('<h2 id="methods">')
    assert "paper" not in shown.partition("</style>")[2] and ", ours" not in page
    assert "miniature" not in page.partition("</style>")[2].lower()
    assert "deviate from the papers" not in page and "Paper's scale" not in page
    assert methods.count("trained for") == 2 and "<dt>Core-hours</dt>" in methods
    with Image.open("results/own/pictures.png") as grid:
        assert grid.width > len(counts) * 96 and grid.height > 2 * 96
    names = [name for name in counts if name != "."] or ["own"]
    captions = (tmp_path / "results/own/pictures.csv").read_text()
    assert all(name in captions for name in names)
    _, card = load_model("results/own/decm/base/0/model.safetensors")
    assert card["latents"]["names"] == names and card["backbone"]["classes"] == len(names)
