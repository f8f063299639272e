"""Sampling: what belongs to an image's index, and nothing else, decides about the image."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import webdataset
from archive_contents import card_of, images_of
from tiny_pipeline import TinyPipeline, refused, replaced

from fewstep.backbones.model_file import load_model, save_model
from fewstep.common.files import sha256
from fewstep.config import read_spec
from fewstep.config.specs import SampleSpec
from fewstep.evaluation import generation, generator
from fewstep.evaluation.generation import image_labels
from fewstep.evaluation.generator import indexed_noise
from fewstep.evaluation.image_archive import open_images
from fewstep.evaluation.quantization import quantize, refuse_nan


@pytest.fixture
def spec(pipeline: TinyPipeline, tmp_path) -> SampleSpec:
    run = f"cd/base/cm-2/{pipeline.plan.image_set('digits')}"
    return read_spec(SampleSpec, pipeline.spec("sample", run, tmp_path))


def test_labels(spec):
    balanced = image_labels(spec)
    assert balanced.tolist() == list(range(10)) * 4
    chance = image_labels(spec.model_copy(update={"labels": "random", "images": 2000}))
    counts = chance.bincount(minlength=10)
    assert counts.sum() == 2000 and 150 < counts.min() < counts.max() < 250
    assert torch.equal(chance, image_labels(spec.model_copy(update={"labels": "random", "images": 2000})))
    other = image_labels(spec.model_copy(update={"labels": "random", "images": 2000, "seed": 1}))
    assert not torch.equal(chance, other)


def test_noise_belongs_to_the_image(spec):
    shape, seed = spec.latents.shape, spec.seed
    whole = indexed_noise(shape, seed, range(12), "start")
    parts = [indexed_noise(shape, seed, part, "start") for part in (range(5), range(5, 12))]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, indexed_noise(shape, seed, range(12), 0))
    assert not torch.equal(whole, indexed_noise(shape, 1, range(12), "start"))
    many = indexed_noise(shape, seed, range(500), "start")
    assert abs(many.mean()) < 0.05 and many.std() == pytest.approx(1, abs=0.02)


def test_chunks_move_the_last_bits_only(pipeline, tmp_path, monkeypatch):
    default = images_of(pipeline.sample("cd", "cm-2").out)
    monkeypatch.setattr(generation, "CHUNK", 7)
    call = pipeline.sample("cd", "cm-2", tmp_path)
    call()
    cut = images_of(call.out)
    assert open_images(call.out).sizes == [7, 7, 7, 7, 7, 5]
    assert (default.int() - cut.int()).abs().max() <= 1
    assert (default != cut).float().mean() < 0.01


def test_models_share_noise_and_labels(pipeline, tmp_path, monkeypatch):
    """Differences between methods are then not differences of luck."""
    seen: dict[str, list] = {}

    def spying(sampler, field, x0, steps, again):
        seen.setdefault("start", []).append(x0.clone())
        seen.setdefault("again", []).append(again(0).clone())
        return torch.zeros_like(x0)

    monkeypatch.setattr(generator, "integrate", spying)
    for method, cell in (("cd", "cm-2"), ("teacher", "euler-4")):
        pipeline.sample(method, cell, tmp_path / method)()
    for first, second in seen.values():
        assert torch.equal(first, second)


def test_guidance_doubles_the_evaluations(pipeline, tmp_path):
    # The tiny teacher hardly knows its labels; a large scale shows that they are asked for.
    strong = pipeline.varied({"settings": {"recipes": {"digits": {"guidance": {"scale": 1000.0}}}}})
    plain = strong.sample("teacher", "euler-4", tmp_path)
    guided = strong.sample("teacher", "euler-guided-4", tmp_path / "guided")
    plain()
    guided()
    assert card_of(plain.out)["evaluations"] == 4
    assert card_of(guided.out)["evaluations"] == 8
    assert card_of(guided.out)["guidance"]["scale"] == 1000
    assert not torch.equal(images_of(plain.out), images_of(guided.out))


def test_refuses_other_tokenizer_weights(pipeline, tmp_path):
    """Same network, other weights: the images would look almost right."""
    tensors, card = load_model(pipeline.plan.model("digits-autoencoder"))
    first = next(iter(tensors))
    tensors[first] = tensors[first] + 1e-3
    backbone = pipeline.plan.run("digits-autoencoder").backbone
    save_model(tmp_path / "other.safetensors", tensors, backbone, card)
    call = replaced(
        pipeline.sample("cd", "cm-2", tmp_path), "--tokenizer", str(tmp_path / "other.safetensors")
    )
    refused(call, "manifest.json", "encoded with other tokenizer weights")
    refused(replaced(call, "--tokenizer"), "other tokenizer weights than None")


def test_refuses_a_model_trained_with_other_tokenizer_weights(pipeline, tmp_path):
    """Where no manifest is at hand, the model's own card knows."""
    tensors, card = load_model(pipeline.plan.model("cd"))
    assert card["latents"]["weights"] == sha256(pipeline.plan.model("digits-autoencoder"))
    card["latents"]["weights"] = "0" * 64
    save_model(tmp_path / "other.safetensors", tensors, pipeline.plan.run("cd").backbone, card)
    call = replaced(pipeline.sample("cd", "cm-2", tmp_path), "--model", str(tmp_path / "other.safetensors"))
    refused(call, "other.safetensors", "trained with other tokenizer weights", "0" * 64)


def test_refuses_a_model_of_another_backbone(pipeline, tmp_path):
    call = replaced(pipeline.sample("cd", "cm-2", tmp_path), "--model", pipeline.plan.model("teacher"))
    refused(call, "holds backbone", "target_time")


def test_refuses_other_latents(pipeline, tmp_path):
    call = replaced(
        pipeline.sample("cd", "cm-2", tmp_path),
        "--latents",
        pipeline.plan.file("manifest", latents="digits-pixels"),
    )
    refused(call, "tokenizer.kind")


def test_refuses_images_that_are_not_finite(pipeline, tmp_path, monkeypatch):
    def broken(sampler, field, x0, *rest):
        return torch.full_like(x0, float("nan"))

    monkeypatch.setattr(generator, "integrate", broken)
    refused(pipeline.sample("cd", "cm-2", tmp_path), "NaN", "diverge")


def test_webdataset_reads_the_tar(pipeline):
    path = pipeline.sample("cd", "cm-2").out
    samples = list(webdataset.WebDataset(str(path), shardshuffle=False).decode())
    card, *batches, checksums = samples
    assert checksums["__key__"] == "sha256" and len(checksums["json"]) == 3
    assert card["__key__"] == "card" and card["json"] == card_of(path)
    assert [batch["__key__"] for batch in batches] == ["00000000"]
    assert batches[0]["images.npy"].shape == (40, 1, 8, 8)
    assert batches[0]["images.npy"].dtype == np.uint8
    assert batches[0]["labels.npy"].tolist() == list(range(10)) * 4
    assert torch.equal(torch.from_numpy(batches[0]["images.npy"]), images_of(path))


def test_card(pipeline):
    card = card_of(pipeline.sample("cd", "cm-2").out)
    assert (card["images"], card["labels"], card["uint8"], card["evaluations"]) == (
        40,
        "balanced",
        "round",
        2,
    )
    assert card["model"]["method"] == "cd" and card["sampler"]["kind"] == "cm"
    assert json.loads(json.dumps(card)) == card


def test_images_are_not_constant(pipeline):
    images = images_of(pipeline.sample("cd", "cm-2").out)
    assert images.float().std() > 5
    assert len({bytes(image.numpy()) for image in images}) == 40


def test_rounding_is_lightningdits_truncation_of_what_is_half_a_level_higher():
    x = 1.2 * torch.rand(1000, generator=torch.Generator().manual_seed(0)) * 2 - 1.2
    assert torch.equal(quantize(x, "round"), (127.5 * x + 128).clamp(0, 255).to(torch.uint8))


def test_quantize():
    levels = torch.arange(256, dtype=torch.float32) / 127.5 - 1
    assert torch.equal(quantize(levels, "round"), torch.arange(256).to(torch.uint8))
    between = torch.tensor([(100.4 / 127.5) - 1, (100.6 / 127.5) - 1, 1.5, -1.5])
    assert quantize(between, "round").tolist() == [100, 101, 255, 0]
    assert quantize(between, "truncate").tolist() == [100, 100, 255, 0]
    with pytest.raises(ValueError, match="NaN"):
        refuse_nan(torch.tensor([float("nan")]).isnan().any())
