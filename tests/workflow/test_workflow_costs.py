"""The cost plan and the list of assets: counted like Snakemake counts, sized like the stages write."""

from __future__ import annotations

import csv
import io
import re
import subprocess
import sys

import numpy as np
import pytest
from configs import ROOT, make_plan, raw_config

from fewstep.config import ConfigError
from fewstep.config.base import merge, read_yaml
from fewstep.config.settings import Latents, Tokenizer
from fewstep.plan.costs import costs, rows
from fewstep.plan.needs import needs
from fewstep.plan.sizes import parameters, reference_bytes, shard_bytes

SMALL = {"shape": [4, 8, 8], "classes": 10, "depth": 2, "width": 64, "heads": 2}


def table(plan) -> dict[str, dict[str, str]]:
    """The line of each rule on its main device, the last one; see `jobs` for all."""
    return {row["rule"]: row for row in rows(costs(plan)) if row["rule"] != "total"}


def jobs(plan) -> dict[str, int]:
    """Jobs of each rule, on all devices."""
    found: dict[str, int] = {}
    for row in rows(costs(plan)):
        if row["rule"] != "total":
            found[row["rule"]] = found.get(row["rule"], 0) + int(row["jobs"])
    return found


def test_assets_of_the_paper_and_of_the_demo(paper_plan, demo_plan):
    assert set(needs(paper_plan, ["table3", "report"]).assets) - {"facm-stage1"} == {
        *("imagenet-train", "vavae-f16d32", "lightningdit-xl1-800ep"),
        *("facm-reference", "adm-reference", "inception-2015"),
    }
    assert demo_plan.asset_records() == ["results/demo/assets/digits.json"]


def test_fewer_targets_need_less():
    def of(*targets: str):
        return make_plan(raw_config() | {"targets": list(targets)})

    # sample grids are not scored
    assert "inception-2015" not in needs(of("figure6"), ["figure6"]).assets
    assert "score" not in table(of("figure6"))
    all_of_it, one = table(make_plan(raw_config())), table(of("table4"))
    assert int(one["train"]["jobs"]) < int(all_of_it["train"]["jobs"])
    assert float(one["sample"]["time"]) < float(all_of_it["sample"]["time"])


def test_nothing_is_left_unknown(paper_plan, demo_plan):
    for plan in (paper_plan, demo_plan, make_plan(raw_config("small"))):
        assert not [row for row in rows(costs(plan)) if row["note"]]


def test_training_time_follows_from_steps_batch_and_rate():
    raw = raw_config() | {"targets": ["figure4"]}
    plan = make_plan(raw)
    expected = sum(
        plan.runs[name].train.steps
        * plan.runs[name].train.global_batch_size
        / plan.config.costs.train["lightningdit-xl1"][plan.runs[name].loss.name].rate
        + plan.config.costs.start
        for name, _ in needs(plan, ["figure4"]).models
        if not plan.runs[name].adopted
    )
    row = table(plan)["train"]
    assert (float(row["time"]), row["unit"]) == (pytest.approx(expected / 3600, rel=1e-3), "GPU-hours")


def test_guided_sampling_counts_twice():
    def hours(guidance: str | dict) -> float:
        raw = raw_config() | {"targets": ["table1"]}
        over = {"overrides": {"settings": {"samplers": {"euler": {"guidance": guidance}}}}}
        return float(table(make_plan(merge(raw, over)))["sample"]["time"])

    assert hours({"scale": 1.5}) > hours("none")


def test_an_undeclared_rate_is_named_and_not_counted(tmp_path):
    costs_file = tmp_path / "costs.yaml"
    text = (ROOT / "config/costs.yaml").read_text()
    costs_file.write_text(re.sub(r"    decm: .*46\.0.*\n", "", text))
    raw = raw_config()
    plan = make_plan(merge(raw, {"files": {"costs": str(costs_file)}}))
    notes = {row["note"] for row in rows(costs(plan)) if row["rule"] == "train"}
    assert "no rate for decm on lightningdit-xl1" in notes
    assert float(table(plan)["train"]["time"]) < float(table(make_plan(raw))["train"]["time"])


def test_a_misspelt_name_is_an_error(tmp_path):
    costs_file = tmp_path / "costs.yaml"
    costs_file.write_text(
        (ROOT / "config/costs.yaml").read_text().replace("  vavae-f16d32:\n", "  vavae-f16:\n", 1)
    )
    with pytest.raises(ConfigError, match=r"encode: unknown name 'vavae-f16'; did you mean 'vavae-f16d32'"):
        make_plan(merge(raw_config(), {"files": {"costs": str(costs_file)}}))


def test_csv_and_table_agree(demo_plan):
    lines = list(csv.DictReader(io.StringIO(demo_plan.cost_csv())))
    shown = demo_plan.cost_table().splitlines()
    assert len(shown) == len(lines) + 1
    for line, text in zip(lines, shown[1:], strict=True):
        assert text.split()[:2] == [line["rule"], line["jobs"]]
    assert {line["unit"] for line in lines} == {"CPU-seconds", ""}


@pytest.mark.parametrize(
    "entry",
    [
        {**SMALL},
        {**SMALL, "target_time": False, "patch": 2},
        {**SMALL, "outputs": 2, "width": 96, "heads": 3, "qk_norm": True},
        {"kind": "conv-autoencoder", "shape": [1, 8, 8], "width": 48, "latent": 4},
        {"kind": "conv-classifier", "shape": [3, 8, 8], "classes": 10, "features": 64},
    ],
)
def test_parameters_are_those_of_the_network(entry):
    from pydantic import TypeAdapter

    from fewstep.backbones import build
    from fewstep.config.settings import Backbone

    backbone = TypeAdapter(Backbone).validate_python({"kind": "lightningdit", **entry})
    assert parameters(backbone) == pytest.approx(
        sum(tensor.numel() for tensor in build(backbone).parameters()), rel=5e-3
    )


def test_the_published_size_of_the_big_one(paper_plan):
    assert 4 * parameters(paper_plan.parts.backbones["lightningdit-xl1-teacher"]) == pytest.approx(
        2.7e9, rel=0.01
    )


@pytest.mark.parametrize("flip", [False, True])
def test_shards_are_as_large_as_written(tmp_path, flip):
    from fewstep.data.shards import ShardCard, write_shard

    latents = Latents(dataset="x", tokenizer="x", shards=1, flip=flip, dtype="float16")
    shape = [5, 7, 3]
    array = np.zeros((2 if flip else 1, *shape), np.float16)
    card = ShardCard(spec="", shard=0, start=0, stop=40, source="", weights=None)
    write_shard(tmp_path / "x.tar", card, ((array, 1) for _ in range(40)))
    planned = shard_bytes(latents, Tokenizer(kind="pixels", shape=shape), 40)
    written = (tmp_path / "x.tar").stat().st_size
    # the card, and zeros up to a whole record of 10,240 bytes
    assert planned < written <= planned + 12 * 1024


def test_references_are_as_large_as_written(paper_plan):
    common, decm = (paper_plan.parts.protocols[name] for name in ("common", "decm"))
    assert reference_bytes(decm, None, 10_000) == 8 * (2048**2 + 2048)
    assert reference_bytes(common, None, 10_000) == 8 * (2048**2 + 2048) + 4 * 10_000 * 2048
    odd = decm.model_copy(update={"features": "pool"})
    assert reference_bytes(odd, None, 10_000) is None


def snakemake(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("profile", "preset"), [("demo", "demo"), ("slurm", None), ("small", "small")])
def test_jobs_are_those_of_the_dag(profile, preset):
    out = snakemake("--profile", f"profiles/{profile}", "-n", "--forceall", "--quiet", "rules")
    counted = {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", out, re.MULTILINE)}
    for name in ("all", "total", "spec"):
        counted.pop(name)
    assert jobs(make_plan(raw_config(preset))) == counted


@pytest.mark.slow
def test_plan_is_printed_and_written_without_any_other_job(tmp_path):
    over = [f"pathvars={{results: {tmp_path}, logs: {tmp_path}/logs, assets: a, latents: l}}"]
    # both profiles stay out of the way of other runs of the workflow
    out = snakemake(
        *("--profile", "profiles/slurm", "--executor", "local", "--cores", "1", "--nolock", "--quiet", "all"),
        *("--config", *over, "--", f"{tmp_path}/plan.csv"),
    )
    plan = make_plan(raw_config())
    assert plan.cost_table().splitlines()[5] in out
    assert (tmp_path / "plan.csv").read_text() == plan.cost_csv() + "\n"
    assert not (tmp_path / "specs").exists()


@pytest.mark.slow
def test_assets_are_a_target():
    out = snakemake("--profile", "profiles/slurm", "-n", "--forceall", "--quiet", "rules", "--", "assets")
    assert re.search(rf"^fetch +{len(make_plan(raw_config()).asset_records())}$", out, re.MULTILINE)
    assert not re.search(r"^(encode|train) ", out, re.MULTILINE)


def test_profiles_name_only_rules_with_jobs():
    resources = read_yaml(ROOT / "profiles/slurm/config.yaml")["set-resources"]
    assert set(resources) - {"bench"} <= set(table(make_plan(raw_config())))
