"""Published weights of SD3: a tiny file as diffusers writes it, through the adopt stage, and the refusals."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("diffusers")
from diffusers import SD3Transformer2DModel
from tiny_sd3 import ADAPTERS, Store, inputs, network, sd3

from fewstep import adopt
from fewstep.backbones import use_text
from fewstep.backbones.import_weights import import_weights
from fewstep.backbones.model_file import load_network
from fewstep.common.files import sha256
from fewstep.config import dump
from fewstep.config.settings import Tokenizer
from fewstep.config.specs import AdoptSpec

FILE = "transformer/diffusion_pytorch_model.safetensors"
SPEC = sd3(target_time=False, time_scale=1000.0)


@pytest.fixture
def asset(tmp_path):
    """A folder of diffusers with a transformer, and the record of it."""
    folder = tmp_path / "assets" / "sd3"
    network(SPEC).transformer.save_pretrained(folder / "transformer")
    path = folder / FILE
    entry = {"name": FILE, "bytes": path.stat().st_size, "sha256": sha256(path), "source": "x"}
    body = {"name": "sd3", "kind": "hub", "title": "", "licence": "", "files": [entry]}
    folder.with_suffix(".json").write_text(json.dumps(body))
    return folder


def test_a_transformer_of_diffusers_is_adopted(asset, tmp_path):
    """Its own class, loaded by itself, gives the same velocity, bit for bit."""
    spec = AdoptSpec(
        method="teacher",
        backbone=SPEC,
        asset="sd3",
        file=FILE,
        tokenizer=Tokenizer(kind="pixels", shape=SPEC.shape),
    )
    (tmp_path / "spec.json").write_text(dump(spec))
    out = tmp_path / "model.safetensors"
    words = ["--spec", tmp_path / "spec.json", "--asset", asset.with_suffix(".json"), "--out", out]
    adopt.main([str(word) for word in words])
    net, card = load_network(out, SPEC)
    assert card["status"] == "released" and card["source"]["converted"] == []
    store = Store()
    use_text(net, store)
    theirs = SD3Transformer2DModel.from_pretrained(asset / "transformer")
    x, t, s, y = inputs(SPEC)
    assert torch.equal(net(x, t, s, y), -theirs(x, *store(y), 1000 * (1 - t)).sample)


def test_a_student_starts_with_published_weights(asset, tmp_path):
    """In half precision as they are published; the embedding of the target time is new and starts at zero."""
    published = {name: tensor.half() for name, tensor in load_file(asset / FILE).items()}
    net, _ = import_weights(published, sd3(time_scale=1000.0), asset)
    use_text(net, Store())
    x, t, s, y = inputs(SPEC)
    assert torch.equal(net(x, t, s, y), net(x, t, t, y))
    assert {weight.dtype for weight in net.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layers": 2}, "backbone.layers is 2; for these weights it must be 3"),
        ({"dual_attention": 2}, "backbone.dual_attention is 2; for these weights it must be 1"),
        ({"qk_norm": False}, "backbone.qk_norm is false; for these weights it must be true"),
        ({"positions": 7}, "backbone.positions is 7; for these weights it must be 6"),
        ({"context": 32}, "backbone.context is 32; for these weights it must be 24"),
        ({"pooled": 32}, "backbone.pooled is 32; for these weights it must be 12"),
        ({"time_scale": 20.0}, "backbone.time_scale is 20.0; for these weights it must be 1000.0"),
        ({"lora": ADAPTERS}, "backbone.lora is .*; for these weights it must be null"),
        ({"heads": 4}, "shape of transformer"),
    ],
)
def test_another_size(asset, changes, words):
    spec = sd3(**{"target_time": False, "time_scale": 1000.0} | changes)
    with pytest.raises(ValueError, match=words) as error:
        import_weights(load_file(asset / FILE), spec, asset / FILE)
    assert str(error.value).startswith(str(asset / FILE)) and "\n" not in str(error.value)


def harmed(name: str, harm) -> dict:
    tensors = dict(network(SPEC).transformer.state_dict())
    tensors |= harm(tensors.pop(name))
    return tensors


@pytest.mark.parametrize(
    ("name", "harm", "words"),
    [
        ("proj_out.weight", lambda _: {}, "missing transformer.proj_out.weight"),
        ("proj_out.weight", lambda w: {"proj_out.weight": w[:-1]}, "proj_out.weight is .3, 16., not .4, 16."),
        ("proj_out.bias", lambda w: {"proj_out.bias": w.int()}, "proj_out.bias: is torch.int32"),
        (
            "proj_out.bias",
            lambda w: {"proj_out.bias": w / 0},
            "proj_out.bias: has values that are not finite",
        ),
        ("proj_out.bias", lambda w: {"proj_out.bias": w, "more": w + 1}, "unexpected transformer.more"),
    ],
    ids=["missing", "misshapen", "integers", "infinite", "unknown"],
)
def test_missing_and_misshapen_tensors(tmp_path, name, harm, words):
    path = tmp_path / "weights.safetensors"
    save_file(harmed(name, harm), path)
    with pytest.raises(ValueError, match=words):
        import_weights(load_file(path), SPEC, path)


def test_sd3s_clock_is_not_reversed_twice(asset):
    with pytest.raises(ValueError, match=r"set reverse: false"):
        import_weights(load_file(asset / FILE), SPEC, asset, reverse=True)
