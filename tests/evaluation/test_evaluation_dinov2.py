"""FDD: features of DINOv2, from a tiny random network in transformers' layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_text import write_record

from fewstep.common.files import sha256
from fewstep.config.settings import Metric, Protocol
from fewstep.config.specs import ReferenceSpec
from fewstep.evaluation.features import Extractor, FeatureCollector
from fewstep.evaluation.reference_statistics import Reference, read_reference, write_reference
from fewstep.evaluation.scoring import compute_metrics

GIVEN = {
    "images": 50,
    "labels": "balanced",
    "extractor": "dinov2",
    "features": "cls",
    "metrics": ["fdd"],
    "weights": {"asset": "dinov2-large", "file": "model.safetensors"},
    "reference": {"asset": "adm-reference-512", "file": "ref.npz"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    transformers = pytest.importorskip("transformers", reason="needs the extra [t2i]")
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=56, patch_size=14
    )
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("dinov2")
    transformers.Dinov2Model(config).save_pretrained(path)
    return path


@pytest.fixture
def images():
    return torch.randint(
        0, 256, (6, 3, 40, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def test_features_are_those_of_the_protocol(folder, images):
    """One image after the other: Pillow's bicubic filter, ImageNet's moments, the last norm's class token."""
    from transformers import Dinov2Model

    from fewstep.evaluation.dinov2 import DinoFeatures

    (found,) = DinoFeatures(folder, torch.device("cpu"))(images)
    assert found.shape == (6, 16) and found.dtype == torch.float32
    net = Dinov2Model.from_pretrained(folder).eval()
    for row, image in zip(found, images, strict=True):
        small = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((224, 224), Image.Resampling.BICUBIC)
        values = (np.asarray(small) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        pixels = torch.tensor(values.transpose(2, 0, 1)[None], dtype=torch.float32)
        with torch.no_grad():
            tokens = net(pixel_values=pixels).last_hidden_state
        torch.testing.assert_close(row, tokens[0, 0], rtol=1e-4, atol=1e-5)


def test_the_distance_by_hand():
    protocol = Protocol(**GIVEN)
    ours = torch.randn(60, 3, generator=torch.Generator().manual_seed(1))
    collector = FeatureCollector(protocol)
    collector.add({"cls": ours})
    x = ours.double().numpy()
    mean, covariance = x.mean(0), np.cov(x.T)
    real = Reference(torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64), None)
    roots = np.sqrt(np.linalg.eigvalsh(covariance))
    expected = mean @ mean + np.trace(covariance) + 3 - 2 * roots.sum()
    assert compute_metrics(protocol, collector, real) == {"fdd": pytest.approx(expected, rel=1e-9)}


def test_other_networks_and_missing_parts_are_refused(folder, tmp_path, monkeypatch, images):
    from fewstep.evaluation.dinov2 import DinoFeatures

    pytest.importorskip("transformers", reason="needs the extra [t2i]")
    with pytest.raises(ValueError, match="not a DINOv2 of transformers"):
        DinoFeatures(tmp_path, torch.device("cpu"))
    with pytest.raises(ValueError, match="extractor dinov2 needs a weights file"):
        Extractor(Protocol(**GIVEN), None, None)
    for wrong in (
        {"metrics": ["fid"]},
        {"metrics": ["fdd", "fid"]},
        {"extractor": "vgg16", "features": "fc2"},
    ):
        with pytest.raises(ValueError, match="fdd is the distance in features of dinov2"):
            Protocol(**GIVEN | wrong)
    with pytest.raises(ValueError, match="images have 1 channels, not 3"):
        DinoFeatures(folder, torch.device("cpu"))(images[:, :1])
    shutil.copytree(folder, tmp_path / "half")
    weights = load_file(folder / "model.safetensors")
    del weights["layernorm.weight"]
    save_file(weights, tmp_path / "half/model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"it lacks layernorm\.weight"):
        DinoFeatures(tmp_path / "half", torch.device("cpu"))
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ValueError, match=r"needs transformers; pip install -e"):
        DinoFeatures(tmp_path, torch.device("cpu"))


def test_every_file_of_its_folder_is_verified(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "dinov2-large")
    record = write_record(tmp_path / "dinov2-large")
    config = tmp_path / "dinov2-large/config.json"
    content = config.read_text()
    assert Extractor(Protocol(**GIVEN), record, None).sha256 == sha256(config.with_name("model.safetensors"))
    config.write_text(content.replace('"gelu"', '"relu"'))
    with pytest.raises(ValueError, match=r"config\.json: differs from .*dinov2-large\.json"):
        Extractor(Protocol(**GIVEN), record, None)
    config.write_text(content)
    config.with_name("preprocessor_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"does not name preprocessor_config\.json"):
        Extractor(Protocol(**GIVEN), record, None)


def test_published_moments_are_not_its_reference():
    """They are Inception's: the images beside them are what is compared with."""
    assert not Protocol(**GIVEN).stored


def recorded(folder: Path) -> Path:
    """The record of an asset whose files lie in a folder."""
    files = [
        {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256(path), "source": "x"}
        for path in sorted(folder.iterdir())
    ]
    record = folder.with_suffix(".json")
    body = {"name": folder.name, "kind": "http", "title": "", "licence": "", "files": files}
    record.write_text(json.dumps(body))
    return record


@pytest.fixture
def published(tmp_path):
    """Writes ADM's kind of file, as it is fetched; the record of it."""

    def write(**content: np.ndarray) -> Path:
        (tmp_path / "adm").mkdir()
        np.savez(tmp_path / "adm/ref.npz", **content)
        return recorded(tmp_path / "adm")

    return write


SPEC = ReferenceSpec(protocol=Protocol(**GIVEN), extractor=None, latents=None)


def test_the_reference_is_of_the_images_in_a_published_file(folder, images, published, tmp_path):
    """Not its mu and sigma, which are of other features."""
    from fewstep.evaluation.dinov2 import DinoFeatures

    moments = {"mu": np.zeros(2048), "sigma": np.eye(2048)}
    record = published(arr_0=images.permute(0, 2, 3, 1).numpy(), **moments)
    shutil.copytree(folder, tmp_path / "dinov2")
    out = tmp_path / "out.npz"
    write_reference(SPEC, None, record, recorded(tmp_path / "dinov2"), out)
    (features,) = DinoFeatures(folder, torch.device("cpu"))(images)
    found = read_reference(out, SPEC.protocol, [3, 40, 48], sha256(folder / "model.safetensors"))
    torch.testing.assert_close(found.mu, features.double().mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.sigma, features.double().T.cov(), rtol=1e-5, atol=1e-6)


def test_a_published_file_without_images_is_refused(published, tmp_path):
    record = published(mu=np.zeros(2048), sigma=np.eye(2048))
    told = r"ref.npz: holds mu.npy, sigma.npy and no images \(arr_0\); take fdd out"
    with pytest.raises(ValueError, match=told):
        write_reference(SPEC, None, record, None, tmp_path / "out.npz")


def test_metrics_beyond_published_moments():
    """Some are named in the message wherever a published file is not enough."""
    inception = GIVEN | {"extractor": "inception-v3-compat", "features": "2048", "logits": "logits"}
    inception |= {"images": 50_000, "weights": {"asset": "inception", "file": "inception.pth"}}
    for name in set(get_args(Metric)) - {"fid", "fdd"}:
        moons = {"noise": 0.1} if name in ("moon_distance", "off_moons") else None
        protocol = Protocol.model_validate(inception | {"metrics": ["fid", name], "moons": moons})
        assert protocol.beyond_moments == ([name] if protocol.compares_images else [])
        assert protocol.stored == (not protocol.beyond_moments)
    assert SPEC.protocol.beyond_moments == ["fdd"] and not SPEC.protocol.compares_images
