"""Benchmarks: what they count, measure and write. Times are anybody's."""

from __future__ import annotations

import argparse
import csv
from functools import partial
from pathlib import Path
from typing import get_args

import pytest
import torch
from configs import make_plan, raw_config

from fewstep.bench import meters, throughput, train_step
from fewstep.bench.__main__ import main
from fewstep.config import ConfigError, dump, read_spec
from fewstep.config.base import merge
from fewstep.config.rates import Blocks, Formulation
from fewstep.config.specs import BenchSpec
from fewstep.core.jvp import FORMULATIONS
from fewstep.core.operations import OperationCounter
from fewstep.training.parallel import check_supported


def read(path) -> list[dict[str, str]]:
    with Path(path).open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    """The demo's benchmark, on fewer tokens and images."""
    plan = make_plan(
        merge(raw_config("demo"), {"bench": {"methods": ["facm"], "batches": [8], "repeats": 1}})
    )
    path = tmp_path_factory.mktemp("spec") / "bench.json"
    path.write_text(plan.spec_text("bench", "bench"))
    return path


@pytest.fixture(scope="module")
def rows(spec, tmp_path_factory):
    out = tmp_path_factory.mktemp("bench") / "bench.csv"
    main(["train-step", "--spec", str(spec), "--out", str(out)])
    return read(out)


def column(rows, name: str, **words: str) -> list[float]:
    return [float(row[name]) for row in rows if words.items() <= row.items()]


def test_every_combination_that_trains_is_there(rows):
    found = {(row["work"], row["tangent"], row["blocks"]) for row in rows}
    assert len(found) == len(rows)
    assert {row["work"] for row in rows} == {"consistency", "facm"}
    for formulation in FORMULATIONS:
        for kind in ("plain", "checkpointed"):
            checkpoint, compiler = train_step.BLOCKS[kind]
            try:
                check_supported(formulation, "none", checkpoint, bool(compiler))
            except ValueError:
                assert ("facm", formulation, kind) not in found
            else:
                assert ("facm", formulation, kind) in found
    for row in rows:
        assert not row["note"] and all(
            float(row[name]) > 0 for name in ("images/s", "ms", "MiB", "GFLOP", "MFU", "time", "memory")
        )


def test_ratios_are_to_functorch_with_plain_blocks(rows):
    for name in ("time", "memory"):
        assert column(rows, name, tangent="functorch") == [1.0] * 2


def test_work_that_is_saved(rows):
    """Counted: the sweep multiplies less than functorch, split more; recomputation adds a forward."""
    for work in ("consistency", "facm"):
        flops = {
            name: column(rows, "GFLOP", work=work, blocks="plain", tangent=name)[0] for name in FORMULATIONS
        }
        assert flops["fused"] < flops["functorch"] < flops["split"]
        (again,) = column(rows, "GFLOP", work=work, blocks="checkpointed", tangent="fused")
        assert again > flops["fused"]
    (one,) = column(rows, "GFLOP", work="consistency", blocks="plain", tangent="fused")
    (three,) = column(rows, "GFLOP", work="facm", blocks="plain", tangent="fused")
    assert 1.5 * one < three < 4 * one


def of(*words: str, **changes) -> BenchSpec:
    """The spec that the command line gives, with another network."""
    options = argparse.ArgumentParser()
    options.add_argument("--repeats", type=int, default=1)
    options.add_argument("--large", action="store_true")
    train_step.add_options(options)
    spec = train_step.spec_of(options.parse_args(words))
    networks = {name: getattr(spec, name).model_copy(update=changes) for name in ("backbone", "teacher")}
    return spec.model_copy(update=networks)


def test_operations_of_the_sweep_are_all_seen():
    """Every product, of values and tangents: counted here and by hand."""
    depth, width, tokens, batch = 2, 256, 256, 2
    spec = of("--methods", depth=depth, width=width, shape=[32, 16, 16])
    dense = batch * tokens * (4 * width**2 + 3 * width * (8 * width // 3)) * depth
    dense += batch * tokens * 32 * width * 2  # first and last layer
    dense += batch * width * (6 * width * depth + 2 * width)  # modulation
    dense += batch * 2 * (256 * width + width**2)  # embeddings of t and s
    scores = batch * tokens**2 * width * depth
    # Attention: two products in the forward, five in the backward (scores anew), five for the tangent.
    expected = 2 * (4 * dense + 12 * scores)
    net = train_step._network(spec.backbone)
    _, step = train_step._work(spec, batch)["consistency"]
    with OperationCounter() as counted:
        step(net, None, "fused")
    assert counted.total == pytest.approx(expected, rel=0.01)


def test_memory_where_activations_outweigh_weights():
    """One graph at a time, and none of a tangent. A record of every allocation: always the same numbers."""
    spec = of(shape=[4, 16, 16], width=64, depth=4, heads=2, classes=10)
    networks = train_step._arranged(*map(train_step._network, (spec.backbone, spec.teacher)), spec, "plain")
    for name, most in {"consistency": 0.40, "facm": 0.45, "decm": 0.45}.items():
        _, step = train_step._work(spec, 4)[name]
        peaks = {}
        for formulation in ("functorch", "fused"):
            step(*networks, formulation)
            peaks[formulation] = meters.peak_bytes(partial(step, *networks, formulation))
        assert peaks["fused"] < most * peaks["functorch"], name


def test_peak_memory_is_what_lives_at_once():
    def call():
        for _ in range(3):
            a = torch.empty(1 << 20)
            b = torch.empty(1 << 20)
            del a, b

    assert meters.peak_bytes(call) == pytest.approx(2 * 4 * (1 << 20), rel=0.01)


def test_what_a_device_can_do():
    most, source = meters.peak_flops("no")
    assert source == "measured" and 1e9 < most < 1e14


def test_words_of_the_configuration_are_those_of_the_code():
    assert set(get_args(Formulation)) == set(FORMULATIONS)
    assert set(get_args(Blocks)) == set(train_step.BLOCKS)


@pytest.mark.parametrize("preset", [None, "demo", "small"])
def test_the_spec_is_of_the_methods_asked_for(preset, tmp_path):
    plan = make_plan(raw_config(preset))
    (tmp_path / "bench.json").write_text(plan.spec_text("bench", "bench"))
    spec = read_spec(BenchSpec, tmp_path / "bench.json")
    run = plan.run("facm")
    assert spec.backbone == run.backbone and spec.losses["facm"] == run.loss
    assert spec.teacher is not None and not spec.teacher.target_time
    assert spec.precision == run.train.precision and dump(spec)


def test_an_unknown_method_is_named():
    raw = merge(raw_config("demo"), {"bench": {"methods": ["facn"], "batches": [2]}})
    with pytest.raises(ConfigError, match=r"bench\.methods: .*facn.*facm"):
        make_plan(raw)


@pytest.mark.parametrize("what", throughput.CASES)
def test_the_other_stages(what, tmp_path):
    main([what, "--repeats", "1", "--batch", "2", "--out", str(tmp_path / "x.csv")])
    for row in read(tmp_path / "x.csv"):
        assert row["benchmark"] == what and float(row["best"]) > 0


@pytest.mark.parametrize("words", [["encode", "--repeats", "0"], ["encode", "--batch", "1"], ["nothing"]])
def test_impossible_calls(words, capsys):
    with pytest.raises(SystemExit):
        main(words)
    capsys.readouterr()
