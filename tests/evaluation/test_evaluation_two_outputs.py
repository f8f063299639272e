"""A network of two heads through the stages: trained from a teacher of one, sampled by either head."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_pipeline import TinyPipeline, replaced

from fewstep.backbones.model_file import load_model, save_model
from fewstep.common.files import read_lines
from fewstep.evaluation.image_archive import open_images

HEAD = "final_layer_u."


@pytest.fixture(scope="module")
def trained(pipeline: TinyPipeline, tmp_path_factory):
    call = pipeline.train("dumo", tmp_path_factory.mktemp("dual"))
    call()
    return call


def test_both_heads_are_trained_from_the_teachers_one(pipeline, trained):
    tensors, card = load_model(trained.out)
    teacher, _ = load_model(pipeline.plan.model("teacher"))
    added = {name for name in tensors if name.startswith(HEAD)}
    assert tensors.keys() - added == teacher.keys() and added
    assert card["backbone"]["outputs"] == 2
    assert card["skipped_updates"] == 0 and card["self_test"]["tangent_error"] < 0.02
    # Eight steps away from the teacher, and from each other.
    for name in (name for name in added if "linear" in name):
        ours, twin = tensors[name], tensors[name.replace(HEAD, "final_layer.")]
        start = teacher[name.replace(HEAD, "final_layer.")]
        assert 0 < (ours - start).abs().max() < 0.1 and 0 < (twin - start).abs().max() < 0.1
        assert not torch.equal(ours, twin)
    lines = [json.loads(line) for line in read_lines(trained.outputs[1])]
    assert {"loss_v", "loss_u", "residual_u"} <= lines[-1].keys()


def test_euler_asks_one_head_and_cm_the_other(pipeline, trained, tmp_path):
    """Without a head that is zeroed a sampler's images stay what they were."""
    tensors, card = load_model(trained.out)
    backbone = pipeline.plan.run("dumo").backbone
    for head in ("final_layer.", HEAD):
        cut = {name: value * (not name.startswith(head + "linear")) for name, value in tensors.items()}
        save_model(tmp_path / f"{head}safetensors", cut, backbone, card)

    def images(cell, model):
        call = replaced(pipeline.sample("dumo", cell, tmp_path / cell / model.name), "--model", str(model))
        call()
        assert open_images(call.out).card["evaluations"] == 2
        return torch.from_numpy(open_images(call.out).images(0))

    for cell, other in {"euler-2": HEAD, "cm-t70-2": "final_layer."}.items():
        whole = images(cell, trained.out)
        own = HEAD if other != HEAD else "final_layer."
        assert torch.equal(whole, images(cell, tmp_path / f"{other}safetensors"))
        assert not torch.equal(whole, images(cell, tmp_path / f"{own}safetensors"))
