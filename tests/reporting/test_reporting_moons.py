"""Pictures of a sweep and of points, and claims about experiments that are toys in the paper too."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from configs import make_plan, raw_config
from PIL import Image
from pydantic import ValidationError

from fewstep import figure as stage
from fewstep.common.csv_files import read_csv
from fewstep.config import ConfigError, read_spec
from fewstep.config.specs import CellKey, ClaimsSpec, TableSpec
from fewstep.config.tables import Claim, Table
from fewstep.evaluation.image_archive import write_images
from fewstep.reporting.claim_checks import check_claims
from fewstep.reporting.markdown import claims_markdown


@pytest.fixture
def spec_file(paper_plan, tmp_path):
    """The spec of a table of this repository, as the plan writes it."""

    def make(name: str):
        path = tmp_path / f"{name}.json"
        path.write_text(paper_plan.spec_text("table", name))
        return path, read_spec(TableSpec, path)

    return make


def draw(path, tmp_path, *arguments):
    out, numbers = tmp_path / "figure.png", tmp_path / "figure.csv"
    stage.main(["--spec", str(path), *map(str, arguments), "--out", str(out), "--csv", str(numbers)])
    Image.open(out).verify()
    return Image.open(out).convert("RGB"), read_csv(numbers)[1]


def colours(picture) -> int:
    return len(picture.getcolors(maxcolors=1 << 24))


@pytest.mark.parametrize("lowest", [1e-3, -1e-4])
def test_a_sweep_shows_every_seed(spec_file, metric, write_json, tmp_path, lowest):
    """Unbiased estimates may be negative, where a logarithm ends."""
    path, spec = spec_file("dumo-figure3")
    keys = [key for row in spec.rows for column in row.cells["moons"] for key in column]
    assert {key.seed for key in keys} == {0, 1, 2} and {key.steps for key in keys} == {1}
    values = {
        key: lowest + 2e-3 * spec.parameters.get(row.id, 0.5) + 1e-4 * key.seed
        for row in spec.rows
        for key in row.cells["moons"][0]
    }
    away = {"moon_distance": 1.25, "off_moons": 0.125}
    files = [write_json(metric(key, 0.0, mmd=value, **away)) for key, value in values.items()]
    picture, lines = draw(path, tmp_path, "--metrics", *files)
    assert colours(picture) > 100
    found = {line["row"]: (line["parameter"], line["values"].count(";")) for line in lines}
    assert found["rho-80"] == ("0.8", 2) and found["dumo"] == ("", 2)
    assert {line["status"] for line in lines} == {"reproduced"}
    assert {(line["ours_moon_distance"], line["ours_off_moons"]) for line in lines} == {("1.25", "0.125")}


def test_a_sweep_without_metrics(spec_file, tmp_path):
    path, _ = spec_file("dumo-figure3")
    picture, lines = draw(path, tmp_path)
    assert colours(picture) > 20 and {line["status"] for line in lines} == {"missing"}


@pytest.fixture
def points(tmp_path):
    """Write samples (n, 2) as a cell's tar."""

    def make(name: str, values: np.ndarray):
        samples = values[:, :, None, None].astype(np.float32)
        parts = [samples[first : first + 300] for first in range(0, len(samples), 300)]
        batches = ((part, np.zeros(len(part), np.int64)) for part in parts)
        write_images(tmp_path / name, {"uint8": "none"}, batches)
        return tmp_path / name

    return make


@pytest.fixture
def reference(tmp_path):
    real = np.random.default_rng(1).normal(size=(500, 2))
    np.savez(tmp_path / "reference.npz", features=real.astype(np.float32))
    return tmp_path / "reference.npz"


def test_scatter_shows_the_samples_of_every_row(spec_file, points, reference, tmp_path):
    path, spec = spec_file("dumo-figure3-samples")
    draws = np.random.default_rng(2)
    # In the order of the table, which is not that of the names.
    order = [row.id for row in spec.table.rows]
    assert order != sorted(order)
    files = [points(f"{row}.tar", draws.normal(i, 1e-3, (700, 2))) for i, row in enumerate(order)]
    picture, lines = draw(path, tmp_path, "--images", *files, "--reference", reference)
    assert colours(picture) > 50
    rows = [line["row"] for line in lines]
    assert {row: rows.count(row) for row in rows} == {"data": 500} | dict.fromkeys(spec.runs, 700)
    found = {line["row"]: round(float(line["x"])) for line in lines if line["row"] != "data"}
    assert found == {row: i for i, row in enumerate(order)}


def test_scatter_refuses_what_is_no_point_of_the_plane(spec_file, points, reference, tmp_path):
    path, spec = spec_file("dumo-figure3-samples")
    files = [points(f"{row}.tar", np.zeros((10, 3))) for row in spec.runs]
    with pytest.raises(ValueError, match="not float32"):
        draw(path, tmp_path, "--images", *files, "--reference", reference)
    with pytest.raises(ValueError, match="one for each"):
        draw(path, tmp_path, "--images", files[0], "--reference", reference)
    with pytest.raises(ValueError, match="--reference"):
        draw(path, tmp_path, "--images", *files)


def test_the_plan_asks_for_samples_and_real_points(paper_plan, demo_plan):
    samples, metrics = (
        paper_plan.inputs("figure", {"table": name}) for name in ("dumo-figure3-samples", "dumo-figure3")
    )
    assert len(samples["images"]) == 7
    assert samples["reference"] == ["results/references/moons.npz"] and metrics["reference"] == []
    # A grid takes one file, whatever its protocols.
    assert (
        len(paper_plan.inputs("figure", {"table": "figure6"})["images"])
        == len(demo_plan.inputs("figure", {"table": "figure6"})["images"])
        == 1
    )
    assert len(demo_plan.inputs("figure", {"table": "dumo-figure3"})["metrics"]) == 7 * 3


def test_toys_are_the_same_under_every_preset(paper_plan, demo_plan):
    for method in ("meanflow-moons", "dumo-moons"):
        name = f"train/{method}/base/0".split("/", 1)
        assert paper_plan.spec_text(*name) == demo_plan.spec_text(*name)
    for plan in (paper_plan, demo_plan):
        assert json.loads(plan.spec_text("table", "dumo-figure3"))["scale"] == "toy"
        assert "toy" not in json.loads(plan.spec_text("report", "report"))["scale"]


def test_a_toy_does_not_stand_beside_other_rows():
    raw = raw_config()
    row = {"id": "x", "label": "x", "method": "decm"}
    raw["overrides"] = {"tables": {"dumo-figure3-samples": {"rows": {"dumo": row | {"id": "dumo"}}}}}
    with pytest.raises(ConfigError, match=r"dumo-figure3-samples\.rows: toys stand beside paper"):
        make_plan(raw)


def test_a_parameter_that_the_losses_lack_is_named():
    raw = raw_config()
    raw["overrides"] = {"tables": {"dumo-figure3": {"parameter": "loss.equals"}}}
    with pytest.raises(ConfigError, match=r"dumo-figure3\.parameter: 'loss.equals' is a number in 0"):
        make_plan(raw)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "sweep"}, "parameter"),
        ({"kind": "curve", "parameter": "loss.flow_matching_fraction"}, "parameter"),
        ({"kind": "scatter", "steps": [1, 2]}, "one number of steps"),
    ],
)
def test_impossible_figures_are_refused(change, message):
    rows = [{"id": "a", "label": "a", "method": "meanflow-moons"}]
    with pytest.raises(ValidationError, match=message):
        Table.model_validate({"title": "t", "paper": "p", "steps": [1], "rows": rows} | change)


@pytest.mark.parametrize("scale", ["paper", "demo"])
def test_claims_about_toys_keep_their_seeds_and_what_is_known(metric, scale):
    raw = {
        "id": "c",
        "statement": "one head is worse",
        "source": "p",
        "left": {"method": "meanflow-moons", "sampler": "cm", "steps": 1},
        "relation": "<",
        "right": [{"method": "dumo-moons", "sampler": "cm", "steps": 1}],
        "metric": "mmd",
        "seeds": [3, 4],
        "miniature": "fails",
    }
    values = {"meanflow-moons": 0.004, "dumo-moons": 0.002}
    cells = [
        [
            CellKey(method=method, variant="base", seed=seed, sampler="cm", steps=1, protocol="moons")
            for method in values
        ]
        for seed in (3, 4)
    ]
    spec = ClaimsSpec(claims=[Claim(**raw)], cells={"c": cells}, seeds=[0], toys=["c"], scale=scale)
    found = {key: metric(key, 0.0, mmd=values[key.method]) for keys in cells for key in keys}
    (checked,) = check_claims(spec, found)
    assert (checked.holds, checked.seeds, checked.expected, checked.scale) == ("no", "0/2", "fails", "toy")
    assert not checked.surprising
    assert "0.00400 ± 0.00" in claims_markdown(spec, [replace(checked, left_std=0.0)])
