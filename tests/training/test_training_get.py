"""A network whose blocks are tied over iterations: any processes, sharded, recomputed, resumed, and used."""

from __future__ import annotations

import signal

import pytest
import torch
from child_processes import child, ranks, signal_at_step
from tiny_pipeline import Call, TinyPipeline
from trained_files import close, same

import fewstep
from fewstep.backbones.model_file import load_model
from fewstep.common.files import read_lines
from fewstep.config import ConfigError
from fewstep.training.state import STOPPED


@pytest.fixture(scope="module")
def alone(pipeline: TinyPipeline, tmp_path_factory) -> Call:
    call = pipeline.train("get", tmp_path_factory.mktemp("get"))
    call()
    return call


def test_it_starts_from_random_weights_and_its_card_says_how_it_went(alone):
    tensors, card = load_model(alone.out)
    assert tensors["equilibrium.start"].std() == pytest.approx(1, abs=0.3)
    assert card["backbone"]["kind"] == "get" and card["loss"] == "kd"
    assert card["self_test"]["tangent_error"] < 1e-2 and card["flops_per_step"] > 0
    assert len(read_lines(alone.outputs[1])) == 8


def test_two_processes_that_accumulate(pipeline, alone, tmp_path):
    call = pipeline.train("get", tmp_path).more("--device-batch", "8")
    assert ranks(call, tmp_path) == [0, 0], (tmp_path / "rank0.log").read_text()
    close(call, alone)


def reductions() -> None:
    """The process counts how often the gradients of the tied blocks are reduced, and prints it."""
    from torch.distributed.fsdp._fully_shard import _fsdp_param_group

    from fewstep.training.trainer import Trainer

    counts: dict[str, int] = {}
    original, update = _fsdp_param_group.FSDPParamGroup.post_backward, Trainer._update

    def counted(self, *given):
        if "equilibrium" in (self._module_fqn or ""):
            counts["tied"] = counts.get("tied", 0) + 1
        return original(self, *given)

    def told(self, *given):
        counts.clear()
        result = update(self, *given)
        print(f"reduced {counts}", flush=True)
        return result

    _fsdp_param_group.FSDPParamGroup.post_backward, Trainer._update = counted, told


def test_two_processes_that_share_the_weights_reduce_tied_ones_once(pipeline, alone, tmp_path):
    call = pipeline.train("get", tmp_path).more("--shard", "fsdp2", "--checkpoint-blocks")
    assert ranks(call, tmp_path, fault=reductions) == [0, 0], (tmp_path / "rank0.log").read_text()
    close(call, alone)
    told = [line for line in (tmp_path / "rank0.log").read_text().splitlines() if line.startswith("reduced")]
    assert set(told) == {"reduced {'tied': 1}"}


def test_a_stopped_training_goes_on_in_the_same_bits(pipeline, alone, tmp_path):
    call = pipeline.train("get", tmp_path)
    assert child(call, tmp_path / "log", signal_at_step, step=3, number=signal.SIGTERM) == STOPPED
    call()
    same(call, alone)


def test_recomputed_blocks_change_nothing(pipeline, alone, tmp_path):
    call = pipeline.train("get", tmp_path).more("--checkpoint-blocks")
    call()
    close(call, alone)


def test_it_is_used_in_one_step(pipeline, alone):
    pipeline.train("get")()
    model = fewstep.load(pipeline.plan.model("get"))
    three, seven = model([3, 7], seed=3)
    assert three.size == (8, 8) and three.tobytes() != seven.tobytes()
    with pytest.raises(
        ConfigError, match=r"steps: 2 of sampler kind cm, but the network is not told the times"
    ):
        model([3], steps=2)


def test_it_is_sampled_and_scored(pipeline, alone):
    pipeline.train("get")()
    pipeline.sample("get", "cm-1")()
    score = pipeline.score("get", "cm-1")
    score()
    assert '"fid"' in score.out.read_text()


def test_it_is_exported_as_a_folder(pipeline, alone, tmp_path):
    from fewstep.pipeline import main

    pipeline.train("get")()
    spec = pipeline.spec("pipeline", "get/base", tmp_path / "specs")
    index = tmp_path / "folder" / "model_index.json"
    files = pipeline.plan.inputs("pipeline", {"run": "get/base", "seed": "0"})
    words = ["--spec", str(spec), "--model", pipeline.plan.model("get")]
    words += [word for name in ("tokenizer", "latents") for word in (f"--{name}", *files[name])]
    main([*words, "--out", str(index)])
    found = fewstep.Pipeline.from_pretrained(index.parent)([3, 7], steps=1, seed=3).images
    expected = fewstep.load(pipeline.plan.model("get"))([3, 7], seed=3)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.tobytes() == theirs.tobytes()


def test_half_precision_trains(pipeline, tmp_path):
    half = pipeline.varied({"methods": {"get": {"train": {"precision": "bf16"}}}})
    call = half.train("get", tmp_path)
    call()
    assert all(torch.isfinite(tensor).all() for tensor in load_model(call.out)[0].values())
