"""The cost plan and the list of assets: counted like Snakemake counts, sized like the stages write."""

from __future__ import annotations

import csv
import io
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from configs import ROOT, behind, make_plan, raw_config, wildcard_values

from fewstep import costs as stage
from fewstep.bench import estimate
from fewstep.bench.estimate import evaluations, operations, parameters
from fewstep.config import ConfigError
from fewstep.config.backbones import LightningDiT
from fewstep.config.base import merge, read_yaml
from fewstep.config.settings import Latents, Tokenizer
from fewstep.plan.costs_spec import reference_bytes, shard_bytes

SMALL = {"shape": [4, 8, 8], "classes": 10, "depth": 2, "width": 64, "heads": 2}


def table(plan) -> dict[str, estimate.Line]:
    """The row of each rule on its main device, the last one; see `jobs` for all."""
    return {row.name: row for row in rows(plan) if row.kind == "rule"}


def rows(plan) -> list[estimate.Line]:
    return estimate.with_totals(estimate.estimate(plan.spec("costs", "costs")))


def jobs(plan) -> dict[str, int]:
    """Jobs of each rule, on all devices."""
    spec = plan.spec("costs", "costs")
    return dict(Counter(spec.lines[job.line].rule for job in spec.jobs))


def of(*targets: str, **more):
    return make_plan(merge(raw_config(), {"targets": list(targets), **more}))


def test_assets_of_the_paper_and_of_the_demo(paper_plan, demo_plan):
    assert wildcard_values(behind(paper_plan, "table3")["fetch"], "asset") - {"facm-stage1"} == {
        *("imagenet-train", "vavae-f16d32", "lightningdit-xl1-800ep"),
        *("facm-reference", "adm-reference", "inception-2015"),
    }
    assert demo_plan.assets() == ["digits"]


def test_fewer_targets_need_less():
    # sample grids are not scored
    grid = of("figure6")
    assert "inception-2015" not in grid.assets() and "score" not in jobs(grid)
    all_of_it, one = table(make_plan(raw_config())), table(of("table4"))
    assert one["train"].jobs < all_of_it["train"].jobs
    assert one["sample"].time < all_of_it["sample"].time


def test_nothing_is_left_unknown(paper_plan, demo_plan):
    for plan in (paper_plan, demo_plan, make_plan(raw_config("small"))):
        assert not [row for row in rows(plan) if row.note]
    every = make_plan(raw_config("demo") | {"targets": "all"})
    assert not [row for row in rows(every) if row.note]


def test_a_measured_rate_is_laid_over_what_is_counted():
    over = {"files": {"costs": "config/costs.yaml"}}
    plan = make_plan(merge(raw_config("demo"), {"targets": ["figure4"], **over}))
    trained = [plan.runs[key["run"]] for key in behind(plan, "figure4")["train"]]
    rates = plan.config.costs.train
    expected = sum(
        run.train.steps * run.train.global_batch_size / rates[run.network][run.loss.name].rate
        + plan.config.costs.start
        for run in trained
    )
    row = table(plan)["train"]
    assert (row.time, row.unit, row.source) == (pytest.approx(expected), "CPU-seconds", "measured")


def test_what_has_no_rate_is_counted():
    """A flow-matching step is three forward passes; a student's has the teacher's two besides."""
    plan = make_plan(raw_config("small"))
    teacher, student = plan.run("teacher"), plan.run("flow-matching")
    assert evaluations(teacher.loss, teacher.backbone, None, False) == pytest.approx(3, rel=0.05)
    found = evaluations(student.loss, student.backbone, teacher.backbone, True)
    assert found == pytest.approx(5, rel=0.05)
    rate = plan.config.costs.operations.half.rate
    spec = plan.spec("costs", "costs").model_copy(update={"start": 0.0})
    (counted,) = [
        estimate.job_line(spec, line)
        for line in spec.lines
        if any(work.name.startswith("flow_matching on lightningdit-b1-t") for work in line.work)
    ]
    images = teacher.train.steps * teacher.train.global_batch_size
    cost = evaluations(teacher.loss, teacher.backbone, None, False) * operations(teacher.backbone)
    assert counted.seconds == pytest.approx(images * cost / rate) and counted.sources == {"counted"}


def test_operations_of_one_evaluation():
    """46 GFLOP: 256 tokens x 2 x 85 M weights, and 5 % for attention (settings.yaml, imagenet256-small)."""
    backbone = LightningDiT(shape=[32, 16, 16], classes=1000, depth=12, width=768, heads=12)
    assert operations(backbone) == pytest.approx(46e9, rel=0.01)


def test_tokenizers_are_counted(paper_plan):
    """Stable Diffusion's: 0.27 TFLOP to encode 256 pixels, 0.62 to decode; of 512, four times and more."""
    small, large = (paper_plan.parts.tokenizers[name] for name in ("sd-vae-ft-ema", "sd-vae-ft-ema-512"))
    found = [estimate.tokenizer_operations(small, decode) for decode in (False, True)]
    assert found == pytest.approx([0.27e12, 0.62e12], rel=0.02)
    assert 4 < estimate.tokenizer_operations(large, True) / found[1] < 4.5


def test_the_longest_job_of_a_rule(paper_plan):
    spec = paper_plan.spec("costs", "costs")
    jobs = [(spec.lines[job.line], estimate.job_line(spec, spec.lines[job.line])) for job in spec.jobs]
    rules = {(line.name, line.device): line for line in estimate.estimate(spec)}
    for rule in ("train", "sample", "score"):
        each = [cost.seconds for line, cost in jobs if (line.rule, line.device) == (rule, "gpu")]
        whole = rules[rule, "gpu"]
        assert whole.longest == max(each) and whole.jobs == len(each)
        assert whole.seconds == pytest.approx(sum(each))


def test_costs_by_run(demo_plan):
    spec = demo_plan.spec("costs", "costs")
    runs = {line.name: line for line in estimate.by_run(spec)}
    rules = {line.name: line for line in estimate.estimate(spec)}
    assert next(iter(runs)) == max(runs, key=lambda name: runs[name].seconds)
    parts = sum(rules[rule].seconds for rule in ("train", "sample", "score"))
    assert sum(line.seconds for line in runs.values()) == pytest.approx(parts)
    assert "decm/freq-5" in runs and runs["decm/freq-5"].jobs == 1 + 4 + 4


def test_guided_sampling_counts_twice():
    def hours(guidance: str | dict) -> float:
        change = {"settings": {"samplers": {"euler-lightningdit": {"guidance": guidance}}}}
        return table(of("table1", overrides=change))["sample"].time

    assert hours({"scale": 1.5}) > hours("none")


def test_images_in_bfloat16_are_counted_at_its_rate():
    def half(**dtypes: str) -> set[bool]:
        change = {"settings": {"protocols": dict.fromkeys(("decm-fid50k", "common"), dtypes)}}
        lines = of("table1", overrides=change).spec("costs", "costs").lines
        return {work.half for line in lines if line.rule == "sample" for work in line.work}

    assert half() == {False}
    assert half(network_dtype="bfloat16", decoder_dtype="bfloat16") == {True}
    assert half(network_dtype="bfloat16") == {True, False}


def test_an_extractor_without_a_rate_is_named_and_not_counted(tmp_path):
    costs_file = tmp_path / "costs.yaml"
    text = (ROOT / "config/costs.yaml").read_text()
    costs_file.write_text(re.sub(r"  inception-v3-compat:\n.*\n", "", text))
    plan = make_plan(merge(raw_config(), {"files": {"costs": str(costs_file)}}))
    assert "no rate for features of inception-v3-compat" in {row.note for row in rows(plan)}


def test_a_misspelt_name_is_an_error(tmp_path):
    costs_file = tmp_path / "costs.yaml"
    costs_file.write_text((ROOT / "config/costs.yaml").read_text().replace("  digits-ae:", "  digits-ea:", 1))
    with pytest.raises(ConfigError, match=r"encode: unknown name 'digits-ea'; did you mean 'digits-ae'"):
        make_plan(merge(raw_config(), {"files": {"costs": str(costs_file)}}))


def test_the_stage_prints_what_it_writes(demo_plan, tmp_path, capsys):
    (tmp_path / "spec.json").write_text(demo_plan.spec_text("costs", "costs"))
    stage.main(["--spec", str(tmp_path / "spec.json"), "--out", str(tmp_path / "plan.csv")])
    lines = list(csv.DictReader(io.StringIO((tmp_path / "plan.csv").read_text())))
    shown = capsys.readouterr().out.strip().splitlines()
    counted = [line for line in lines if line["kind"] != "end"]
    lines_of_jobs = [re.split(" {2,}", text.strip())[:2] for text in shown[:-1] if text]
    tables = [words for words in lines_of_jobs if words[0] != "jobs"]
    assert tables == [[line["name"] or "total, CPUs", line["jobs"]] for line in counted]
    assert {line["unit"] for line in counted} == {"CPU-seconds", ""}
    ends = {line["name"]: float(line["time"]) for line in lines if line["kind"] == "end"}
    assert list(ends) == ["1 cores", "any number of cores"] and ends["1 cores"] > ends["any number of cores"]
    assert shown[-1].startswith("All is done after ")


def test_without_torch_it_is_one_line(demo_plan, tmp_path):
    (tmp_path / "spec.json").write_text(demo_plan.spec_text("costs", "costs"))
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from fewstep.common.cli import run\n"
        "from fewstep.costs import main\n"
        "run(main)"
    )
    words = ["--spec", str(tmp_path / "spec.json"), "--out", str(tmp_path / "plan.csv")]
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.fullmatch(r"error: networks are counted with torch, .* has no torch: pip .*\n", done.stderr)


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
    from fewstep.config.backbones import Backbone

    backbone = TypeAdapter(Backbone).validate_python({"kind": "lightningdit", **entry})
    assert parameters(backbone) == sum(tensor.numel() for tensor in build(backbone).parameters())
    assert operations(backbone) > 2 * parameters(backbone)


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
    common, decm = (paper_plan.parts.protocols[name] for name in ("common", "decm-fid50k"))
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
    assert re.search(r"^train +14 .* GPU-hours", out, re.MULTILINE)
    assert (tmp_path / "plan.csv").read_text().startswith("kind,name,jobs,time,unit,longest,kept_bytes")
    assert [path.name for path in (tmp_path / "specs").iterdir()] == ["costs"]


@pytest.mark.slow
def test_assets_are_a_target():
    out = snakemake("--profile", "profiles/slurm", "-n", "--forceall", "--quiet", "rules", "--", "assets")
    assert re.search(rf"^fetch +{len(make_plan(raw_config()).assets())}$", out, re.MULTILINE)
    assert not re.search(r"^(encode|train) ", out, re.MULTILINE)


def test_profiles_name_only_rules_with_jobs():
    resources = read_yaml(ROOT / "profiles/slurm/config.yaml")["set-resources"]
    plan = make_plan({**raw_config(), "targets": ["table1", "table2"]})
    assert set(resources) - {"bench"} <= set(jobs(plan))


def test_nothing_asked_for_costs_nothing(tmp_path, capsys):
    plan = make_plan({**raw_config(), "targets": []})
    (tmp_path / "spec.json").write_text(plan.spec_text("costs", "costs"))
    stage.main(["--spec", str(tmp_path / "spec.json"), "--out", str(tmp_path / "plan.csv")])
    assert {line["kind"] for line in csv.DictReader(io.StringIO((tmp_path / "plan.csv").read_text()))} == {
        "end"
    }
    assert "All is done after 0 minutes" in capsys.readouterr().out
