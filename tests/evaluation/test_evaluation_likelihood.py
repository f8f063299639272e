"""Likelihoods through their stage: in several processes, and in the number type that the protocol names."""

from __future__ import annotations

import json

import pytest
import torch
from child_processes import ranks
from tiny_pipeline import TRAIN, TinyPipeline
from torch import nn

from fewstep.config.specs import LikelihoodScoreSpec
from fewstep.evaluation import likelihood

IMAGES = 300
"""More than one chunk, of which the last is shorter."""
CELLS = {"f2d2-teacher": "euler-2", "f2d2-meanflow": "jump-2"}


@pytest.fixture(scope="module")
def scored(pipeline: TinyPipeline) -> TinyPipeline:
    """A teacher, and a student with the output `scalar`; likelihoods of some images under them."""
    small = {"width": 32, "depth": 2}
    settings = {
        "backbones": {f"mlp-digits{end}": small for end in ("", "-teacher", "-scalar")},
        "recipes": {"digits-f2d2": {"train": TRAIN}},
        "protocols": {"digits-bpd": {"images": IMAGES, "trace": "probe"}},
    }
    methods = {name: {"train": {"steps": 8, "optimizer": {"warmup": 2}}} for name in CELLS}
    varied = pipeline.varied({"settings": settings, "methods": methods})
    for method in CELLS:
        varied.train(method)()
    return varied


@pytest.mark.parametrize("method", CELLS)
def test_two_processes_find_what_one_finds(scored, tmp_path, method):
    one, two = (
        scored.score(method, CELLS[method], tmp_path / name, protocol="digits-bpd") for name in ("one", "two")
    )
    for call, count in ((one, 1), (two, 2)):
        call.out.parent.mkdir(exist_ok=True)
        assert ranks(call, call.out.parent, count) == [0] * count, (call.out.parent / "rank0.log").read_text()
    assert one.out.read_bytes() == two.out.read_bytes()
    found = json.loads(one.out.read_text())
    assert found["images"] == IMAGES and found["bpd"] > 0


@pytest.mark.parametrize("method", CELLS)
def test_the_network_computes_in_what_the_protocol_says(scored, tmp_path, monkeypatch, method):
    """In float32 where it says nothing; the rest in more in any case."""
    load, seen = likelihood.load_network, set()

    def load_network(*given):
        net, card = load(*given)
        for module in net.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(lambda *given: seen.add(given[-1].dtype))
        return net, card

    monkeypatch.setattr(likelihood, "load_network", load_network)
    bits = {}
    asked = scored.plan.spec("score", f"{method}/base/0/{CELLS[method]}/digits-bpd")
    assert isinstance(asked, LikelihoodScoreSpec)
    model, manifest = scored.plan.model(method), scored.plan.file("manifest", latents="digits-pixels")
    for dtype, named in ((torch.float32, {}), (torch.bfloat16, {"network_dtype": "bfloat16"})):
        protocol = asked.protocol.model_copy(update={"images": 40, **named})
        out = tmp_path / f"{dtype}.json"
        seen.clear()
        likelihood.score_likelihoods(asked.model_copy(update={"protocol": protocol}), model, manifest, out)
        bits[dtype] = json.loads(out.read_text())["bpd"]
        # Embeddings of times and labels are never in half precision.
        assert dtype in seen and (dtype is torch.bfloat16 or seen == {dtype})
    assert bits[torch.float32] != bits[torch.bfloat16]
    assert bits[torch.float32] == pytest.approx(bits[torch.bfloat16], rel=0.02)
