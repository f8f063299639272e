"""The paper's extractor: Inception from a local file, here with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scoring_factories import SAMPLE, image_card
from tiny_pipeline import Call
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from fewstep.common.files import sha256
from fewstep.config import dump
from fewstep.config.specs import CellKey, ScoreSpec
from fewstep.data.asset_files import RecordBody, RecordFile
from fewstep.evaluation.features import Extractor, FeatureCollector
from fewstep.evaluation.image_archive import write_images

pytestmark = pytest.mark.slow
FILE = "weights-inception-2015-12-05-6726825d.pth"


def record_of(path: Path) -> Path:
    """The record of an asset with one file, path.parent.json."""
    entry = RecordFile(name=path.name, bytes=path.stat().st_size, sha256=sha256(path), source="here")
    record = path.parent.with_suffix(".json")
    body = RecordBody(name=path.parent.name, kind="http", title="", licence="", files=[entry])
    record.write_text(body.model_dump_json())
    return record


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A file of the published form whose network is random."""
    folder = tmp_path_factory.mktemp("assets") / "inception-2015"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        patch.setattr("torch.load", lambda *_, **__: {})
        torch.manual_seed(0)
        net = FeatureExtractorInceptionV3("random", ["2048"], feature_extractor_weights_path="none")
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    torch.save(net.state_dict(), folder / FILE)
    return record_of(folder / FILE)


@pytest.fixture(scope="module")
def protocol(paper_plan):
    return paper_plan.parts.protocols["decm-fid50k"].model_copy(update={"images": 6})


def pictures() -> torch.Tensor:
    return torch.randint(256, (6, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_a_local_file_gives_2048_features(weights, protocol):
    extractor = Extractor(protocol, weights, None)
    values = extractor(pictures())
    assert values["2048"].shape == (6, 2048)
    assert values["logits_unbiased"].shape == (6, 1008)
    assert values["2048"].isfinite().all() and values["2048"].std() > 0
    assert extractor.sha256 == sha256(weights.with_suffix("") / FILE)


def test_channels_last_moves_features_by_rounding(weights, protocol):
    plain, other = (Extractor(protocol, weights, None, channels_last=chosen) for chosen in (False, True))
    for layer, expected in plain(pictures()).items():
        apart = (other(pictures())[layer] - expected).norm() / expected.norm()
        assert apart < 1e-5, layer


def test_score(weights, protocol, tmp_path):
    """The whole stage with a published reference: an asset's npz."""
    protocol = protocol.model_copy(update={"logits": None, "metrics": ["fid"]})
    features = FeatureCollector(protocol)
    features.add(Extractor(protocol, weights, None)(pictures()))
    mu, sigma = features.statistics()
    folder = tmp_path / "facm-reference"
    folder.mkdir()
    np.savez(folder / "fid-50k-256.npz", mu=mu.numpy() + 1, sigma=sigma.numpy())
    reference = record_of(folder / "fid-50k-256.npz")
    changes = {"labels": "balanced", "uint8": "truncate", "steps": 2, "image": [3, 32, 32]}
    card = image_card(6, **changes)
    card["model"] = {"status": "released", "code": None, "backbone": {"kind": "lightningdit"}}
    write_images(tmp_path / "images.tar", card, [(pictures().numpy(), np.zeros(6, np.int64))])
    cell = CellKey(method="decm", variant="base", seed=0, sampler="cm", steps=2, protocol="decm")
    sample = SAMPLE.model_copy(update={"images": 6, **changes})
    spec = tmp_path / "score.json"
    spec.write_text(dump(ScoreSpec(cell=cell, protocol=protocol, extractor=None, sample=sample)))
    words = ["--spec", str(spec), "--images", str(tmp_path / "images.tar"), "--extractor", str(weights)]
    out = tmp_path / "metrics.json"
    Call("score", [*words, "--reference", str(reference), "--out", str(out)], [out])()
    metrics = json.loads(out.read_text())
    # equal covariances, means one apart in every direction
    assert metrics["fid"] == pytest.approx(2048, rel=1e-6)
    assert "is" not in metrics and metrics["status"] == "released"


def test_refuses_a_file_with_objects(protocol, tmp_path):
    """torch_fidelity would run whatever it holds."""
    folder = tmp_path / "inception-2015"
    folder.mkdir()
    torch.save({"weights": Path("anything")}, folder / FILE)
    record = record_of(folder / FILE)
    with pytest.raises(ValueError, match="holds pickled objects"):
        Extractor(protocol, record, None)
