"""Scores: one path for every extractor, and no number when anything disagrees."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from archive_contents import card_of, images_of
from configs import extractor_file
from tiny_pipeline import TinyPipeline, refused, replaced
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from fewstep.backbones.model_file import load_model, load_network, save_model
from fewstep.common.files import sha256
from fewstep.common.provenance import is_stale
from fewstep.config import ConfigError
from fewstep.data.asset_files import RecordBody, RecordFile, read_record
from fewstep.data.shards import LatentShards
from fewstep.evaluation import generation
from fewstep.evaluation.features import Extractor
from fewstep.evaluation.image_archive import write_images
from fewstep.evaluation.quantization import quantize

CELL = ("cd", "cm-2")


@pytest.fixture(scope="module")
def extractor(pipeline: TinyPipeline) -> Extractor:
    protocol = pipeline.plan.parts.protocols["digits"]
    path = extractor_file(pipeline.plan)
    return Extractor(protocol, Path(path), pipeline.plan.network(protocol.weights))


@pytest.fixture(scope="module")
def images(pipeline) -> torch.Tensor:
    return images_of(pipeline.sample(*CELL).out)


@pytest.fixture
def tar(pipeline, images, tmp_path):
    """A changed copy of the cell's images."""

    def make(pictures=images, **changes):
        card = {**card_of(pipeline.sample(*CELL).out), **changes}
        write_images(tmp_path / "images.tar", card, [(pictures.numpy(), np.arange(len(pictures)) % 10)])
        return str(tmp_path / "images.tar")

    return make


def test_torch_fidelity_gives_our_features(pipeline, extractor, images):
    net, _ = load_network(extractor_file(pipeline.plan))
    with torch.no_grad():
        direct = net.features(images.float() / 127.5 - 1)
        logits = net.head(direct)
    values = extractor(images)
    torch.testing.assert_close(values["features"], direct)
    torch.testing.assert_close(values["logits"], logits)
    assert direct.std() > 0


def test_distance_equals_torch_fidelity(pipeline, extractor, images):
    shards = LatentShards(pipeline.plan.file("manifest", latents="digits-pixels"))
    real = quantize(shards.read(range(len(shards)))[:, 0], "round")
    ours, theirs = (extractor(each)["features"] for each in (images, real))
    expected = fid_statistics_to_metric(
        fid_features_to_statistics(ours.double()), fid_features_to_statistics(theirs.double()), False
    )["frechet_inception_distance"]
    metrics = json.loads(pipeline.score(*CELL).out.read_text())
    with np.load(pipeline.reference().out) as reference:
        scale = 100.0 / reference["sigma"].trace()
        assert int(reference["n"]) == 1797
        np.testing.assert_allclose(reference["mu"], theirs.double().mean(0), rtol=1e-10)
    assert metrics["fid"] == pytest.approx(expected * scale, rel=1e-6)


def test_the_metrics_say_how_they_were_made(pipeline):
    metrics = json.loads(pipeline.score(*CELL).out.read_text())
    assert metrics["images"] == 40 and metrics["evaluations"] == 2
    assert metrics["reference_sha256"] == sha256(pipeline.reference().out)
    assert metrics["extractor_sha256"] == sha256(extractor_file(pipeline.plan))
    assert metrics["protocol"]["labels"] == "balanced" and metrics["protocol"]["feature_scale"] == 100.0
    assert metrics["cell"]["method"] == "cd" and metrics["status"] == "trained"
    assert 1 <= metrics["is"] <= 10
    assert not is_stale(metrics) and is_stale(metrics | {"score_code": "0" * 16})


def test_real_images_are_near_themselves(pipeline, tar, tmp_path):
    """The scale of the numbers: the first forty digits against all."""
    shards = LatentShards(pipeline.plan.file("manifest", latents="digits-pixels"))
    real = quantize(shards.read(range(40))[:, 0], "round")
    call = replaced(pipeline.score(*CELL, tmp_path), "--images", tar(real))
    call()
    assert json.loads(call.out.read_text())["fid"] < json.loads(pipeline.score(*CELL).out.read_text())["fid"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": 50}, ["images: these images have 50, but 40"]),
        ({"labels": "random"}, ["labels", "random", "balanced"]),
        ({"uint8": "truncate"}, ["uint8", "truncate", "round"]),
        ({"model": {"method": "scm", "status": "trained", "code": None}}, ["model.method", "scm", "cd"]),
        ({"steps": 1}, ["steps: these images have 1, but 2"]),
        ({"seed": 7}, ["seed: these images have 7, but 0"]),
        ({"sampler": {"kind": "euler"}}, ["sampler: these images have {'kind': 'euler'}"]),
        ({"guidance": {"scale": 2.0}}, ["guidance: these images have {'scale': 2.0}, but None"]),
        ({"backbone": {"kind": "mlp"}}, ["backbone: these images have {'kind': 'mlp'}"]),
    ],
)
def test_refuses_images_of_another_protocol_or_cell(pipeline, tar, tmp_path, changes, words):
    refused(replaced(pipeline.score(*CELL, tmp_path), "--images", tar(**changes)), "images.tar", *words)


@pytest.mark.parametrize("count", [30, 50])
def test_refuses_another_count_than_the_card_says(pipeline, tar, images, tmp_path, count):
    call = replaced(pipeline.score(*CELL, tmp_path), "--images", tar(images.repeat(2, 1, 1, 1)[:count]))
    refused(call, f"{count} images", "the protocol wants 40")


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 8, 8), (1, 8, 4)])
def test_refuses_images_of_another_size(pipeline, tar, tmp_path, shape):
    """Inception rescales whatever it gets, so a wrong size would go unnoticed."""
    call = replaced(
        pipeline.score(*CELL, tmp_path), "--images", tar(torch.zeros(40, *shape, dtype=torch.uint8))
    )
    refused(call, str(shape), "(1, 8, 8)")


def test_sampling_refuses_a_decoder_of_another_size(pipeline, tmp_path, monkeypatch):
    original = generation.open_tokenizer

    def doubling(*rest):
        coder = original(*rest)
        decode = coder.decode
        coder.decode = lambda latents: decode(latents).repeat(1, 1, 2, 2)
        return coder

    monkeypatch.setattr(generation, "open_tokenizer", doubling)
    refused(pipeline.sample(*CELL, tmp_path), "(1, 16, 16)", "(1, 8, 8)")


def test_refuses_a_tar_without_card(pipeline, tmp_path):
    (tmp_path / "x.npy").write_bytes(b"")
    with tarfile.open(tmp_path / "bare.tar", "w") as bare:
        bare.add(tmp_path / "x.npy", "00000000.images.npy")
    call = replaced(pipeline.score(*CELL, tmp_path), "--images", str(tmp_path / "bare.tar"))
    refused(call, "bare.tar", "does not start with card.json")


def changed_reference(pipeline, tmp_path, **changes) -> str:
    with np.load(pipeline.reference().out) as content:
        np.savez(tmp_path / "reference.npz", **{**content, **changes})
    return str(tmp_path / "reference.npz")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mu": np.zeros(5), "sigma": np.eye(5)}, ["5 dimensions", "16"]),
        ({"extractor": "0" * 64}, ["other weights of conv-classifier"]),
        ({"shape": np.array([1, 16, 16])}, ["(1, 8, 8)", "(1, 16, 16)"]),
        ({"mu": np.full(16, np.nan)}, ["NaN"]),
    ],
)
def test_refuses_a_reference(pipeline, tmp_path, changes, words):
    path = changed_reference(pipeline, tmp_path, **changes)
    refused(replaced(pipeline.score(*CELL, tmp_path), "--reference", path), *words)


def test_refuses_an_npz_without_statistics(pipeline, tmp_path):
    np.savez(tmp_path / "empty.npz", pixels=np.zeros(3))
    call = replaced(pipeline.score(*CELL, tmp_path), "--reference", str(tmp_path / "empty.npz"))
    refused(call, "empty.npz", "pixels", "mu and sigma")


def test_refuses_a_damaged_reference(pipeline, tmp_path):
    path = tmp_path / "reference.npz"
    path.write_bytes(pipeline.reference().out.read_bytes()[:-100])
    refused(
        replaced(pipeline.score(*CELL, tmp_path), "--reference", str(path)), "reference.npz: not an npz file"
    )


def test_refuses_an_extractor_of_another_backbone(pipeline, tmp_path):
    call = pipeline.varied({"settings": {"backbones": {"digits-classifier": {"features": 32}}}}).score(
        *CELL, tmp_path
    )
    refused(call, "holds backbone")


def test_refuses_a_reference_by_other_weights(pipeline, tmp_path):
    """The extractor was trained again after the reference was made."""
    tensors, card = load_model(pipeline.plan.model("digits-classifier"))
    tensors["head.bias"] = tensors["head.bias"] + 1
    save_model(tmp_path / "other.safetensors", tensors, pipeline.plan.run("digits-classifier").backbone, card)
    call = replaced(pipeline.score(*CELL, tmp_path), "--extractor", str(tmp_path / "other.safetensors"))
    refused(call, "digits.npz", "other weights")


def test_reference_refuses_latents_that_are_not_pixels(pipeline, tmp_path):
    changed = {"settings": {"protocols": {"digits": {"reference_latents": "digits-latents"}}}}
    refused(pipeline.varied(changed).reference(tmp_path), "digits-latents", "not pixels")


def test_asset_files_are_compared_with_their_record(tmp_path):
    folder = tmp_path / "stats"
    folder.mkdir()
    (folder / "a.npz").write_bytes(b"abc")
    entry = RecordFile(name="a.npz", bytes=3, sha256=sha256(folder / "a.npz"), source="here")
    body = RecordBody(name="stats", kind="http", title="", licence="", files=[entry])
    record = tmp_path / "stats.json"
    record.write_text(body.model_dump_json())
    assert read_record(record).verified("a.npz")[0] == folder / "a.npz"
    with pytest.raises(ConfigError, match=r"no file 'b\.npz'"):
        read_record(record).verified("b.npz")
    (folder / "a.npz").write_bytes(b"abd")
    with pytest.raises(ConfigError, match=r"differs from .*fetch the asset again"):
        read_record(record).verified("a.npz")
    shutil.rmtree(folder)


def test_real_images_stay_as_they_are_whatever_the_rule_for_generated_ones(pipeline, tmp_path):
    plan = pipeline.varied({"settings": {"protocols": {"digits": {"uint8": "truncate"}}}})
    with np.load(plan.reference(tmp_path)()) as found, np.load(pipeline.reference().out) as expected:
        assert all(np.array_equal(found[name], expected[name]) for name in ("mu", "sigma", "features"))


def test_a_metric_that_is_not_finite_is_never_written(pipeline, tmp_path, monkeypatch):
    from fewstep.evaluation import fidelity

    monkeypatch.setattr(fidelity, "inception_score", lambda logits: float("nan"))
    refused(pipeline.score(*CELL, tmp_path), "digits.json: is of 40 images is nan")
