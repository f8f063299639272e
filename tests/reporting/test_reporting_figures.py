"""Pictures: valid PNG with content, and the numbers beside them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from fewstep import figure as stage
from fewstep.common.csv_files import read_csv
from fewstep.common.files import write_lines
from fewstep.config import dump
from fewstep.evaluation.image_archive import write_images
from fewstep.reporting.figures import grid, learning_curves, style
from fewstep.reporting.figures.learning_curves import running_median


def colours(path) -> int:
    """Number of distinct colours, after checking that the file is a whole PNG."""
    Image.open(path).verify()
    return len(Image.open(path).convert("RGB").getcolors(maxcolors=1 << 24))


def call(spec, tmp_path, *arguments):
    path = tmp_path / "spec.json"
    path.write_text(dump(spec))
    out, numbers = tmp_path / "figure.png", tmp_path / "figure.csv"
    stage.main(["--spec", str(path), *map(str, arguments), "--out", str(out), "--csv", str(numbers)])
    return out, read_csv(numbers)[1]


@pytest.mark.parametrize("scale", ["paper", "demo"])
def test_curve(make_spec, metric, write_json, tmp_path, scale):
    spec = make_spec("figure1", scale=scale, seeds=(0, 1))
    keys = [key for row in spec.rows for column in row.cells["decm"] for key in column]
    files = [write_json(metric(key, 1.0 + key.steps / 10 + key.seed)) for key in keys]
    out, lines = call(spec, tmp_path, "--metrics", *files, "--images", "--curves")
    assert colours(out) > 100
    width, height = Image.open(out).size
    assert (width > 2 * height) == (scale == "demo")
    assert len(lines) == 20 and {line["seeds"] for line in lines} == {"2/2"}


def test_curve_without_any_metrics(make_spec, tmp_path):
    out, lines = call(make_spec("figure1", scale="demo"), tmp_path)
    assert colours(out) > 50 and {line["status"] for line in lines} == {"missing"}


def write_curve(path, values):
    lines = [{"step": i, "update": 0, "grad_norm": v, "loss": 1.0} for i, v in enumerate(values)]
    write_lines(path, "".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_training(make_spec, tmp_path):
    spec = make_spec("figure4")
    curves = [
        write_curve(tmp_path / "a.jsonl", [2.0, float("nan"), 1.0, 1.5] * 30),
        write_curve(tmp_path / "b.jsonl", [20.0, 10.0] * 50),
    ]
    out, lines = call(spec, tmp_path, "--curves", *curves)
    assert colours(out) > 100 and len(lines) == 220
    assert lines[0] == {
        "row": "fm",
        "label": "with flow matching",
        "seed": "0",
        "step": "0",
        "update": "0",
        "grad_norm": "2",
    }
    assert lines[-1]["row"] == "no-fm"


def test_training_refuses_what_does_not_fit(make_spec, tmp_path):
    spec = make_spec("figure4")
    good = write_curve(tmp_path / "a.jsonl", [1.0])
    with pytest.raises(ValueError, match="1 --curves for 2 runs"):
        learning_curves.read(spec, [good])
    empty = tmp_path / "b.jsonl"
    write_lines(empty, '{"step": 0}\n')
    with pytest.raises(ValueError, match=r"b\.jsonl: no line has the column 'grad_norm'"):
        learning_curves.read(spec, [good, empty])
    write_lines(empty, "{\n")
    with pytest.raises(ValueError, match="line 1"):
        learning_curves.read(spec, [good, empty])


def test_the_running_median_passes_over_spikes_and_gaps():
    values = [1.0] * 20 + [100.0, math.nan] + [1.0] * 20
    assert running_median(values)[10] == 1.0 and running_median(values)[21] == 50.5
    assert math.isnan(running_median([math.nan] * 3)[1])


@pytest.fixture
def images(tmp_path):
    """60 images (3, 8, 8) in two batches; image i is of class i % 12 and has the grey value i."""
    path = tmp_path / "images.tar"
    parts = [np.arange(0, 40), np.arange(40, 60)]
    batches = [
        (np.broadcast_to(part[:, None, None, None], (len(part), 3, 8, 8)).astype(np.uint8), part % 12)
        for part in parts
    ]
    write_images(path, {}, batches)
    return path


def test_grid(make_spec, images, tmp_path):
    out, lines = call(make_spec("figure6"), tmp_path, "--images", images)
    assert colours(out) > 40
    assert len(lines) == 10 * 5 and {line["label"] for line in lines} == {str(i) for i in range(10)}
    assert [line["image"] for line in lines[:5]] == ["0", "12", "24", "36", "48"]
    picture = Image.open(out)
    side, margin = 64, 28
    x, y = margin + 3 * (side + grid.GAP) + 5, grid.GAP + 2 * (side + grid.GAP) + 5
    assert picture.getpixel((x, y)) == (38, 38, 38)


def test_grid_of_chosen_classes_stops_early_and_keeps_their_order(images):
    rows = grid.select(images, 2, [11, 3])
    indices = {label: [index for index, _ in chosen] for label, chosen in rows}
    assert list(indices.items()) == [(11, [11, 23]), (3, [3, 15])]
    assert rows[0][1][0][1].shape == (8, 8, 3)
    with pytest.raises(ValueError, match=r"no images of the classes \[99\]"):
        grid.select(images, 2, [99])


def test_each_kind_wants_its_own_input(make_spec, tmp_path):
    with pytest.raises(ValueError, match="takes --images"):
        call(make_spec("figure6"), tmp_path)
    with pytest.raises(ValueError, match=r"use fewstep\.table"):
        call(make_spec("table4"), tmp_path)


@pytest.mark.parametrize(
    "ends", [(10, 11), (2.1, 2.6), (10, 20), (3, 9), (0.5, 4), (10, 40), (5, 800), (1, 5000), (9.99, 10.01)]
)
def test_a_vertical_axis_has_ticks_at_any_range(ends):
    axis = Figure().subplots()
    axis.plot([1, 2], ends)
    axis.set_yscale("log")
    style.plain_numbers(axis, [1, 2])
    low, high = axis.get_ylim()
    shown = [tick for tick in axis.get_yticks() if low <= tick <= high]
    assert 3 <= len(shown) <= 9
