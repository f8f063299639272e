"""The numbers are torch-fidelity's, from our streaming path."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from child_processes import ranks
from scoring_factories import digits, protocol, record, reference_call, score_call, write
from torch_fidelity import calculate_metrics
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from fewstep.evaluation.frechet import GaussianStats, frechet_distance
from fewstep.evaluation.image_archive import open_npz_images

OURS, REAL = digits(230, seed=1), digits(170, seed=2)


@pytest.fixture
def published(pipeline, tmp_path):
    """As ADM's: images, and statistics of other, more images."""
    dimensions = pipeline.plan.network(protocol(2, kid={"size": 2}).weights).features
    draws = np.random.default_rng(0)
    root = draws.normal(size=(dimensions, dimensions))
    mu, sigma = draws.normal(size=dimensions), root @ root.T
    return record(tmp_path, "published", arr_0=REAL.permute(0, 2, 3, 1).numpy(), mu=mu, sigma=sigma)


class Items(torch.utils.data.Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


def test_frechet_distance_is_torch_fidelitys():
    one, two = torch.randn(2, 300, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    two = 1.3 * two + 0.2
    theirs = fid_statistics_to_metric(fid_features_to_statistics(one), fid_features_to_statistics(two), False)
    sides = []
    for features in (one, two):
        stats = GaussianStats(40)
        for part in features.split(64):
            stats.update(part)
        sides += [stats.mean, stats.cov]
    assert frechet_distance(*sides) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)


def test_all_metrics_are_torch_fidelitys(pipeline, published, tmp_path):
    """Same images, our extractor, and statistics that belong to the images on both sides."""
    theirs = calculate_metrics(
        input1=Items(OURS),
        input2=Items(REAL),
        feature_extractor="conv-classifier",
        feature_extractor_weights_path=pipeline.plan.inputs("reference", {"protocol": "digits"})["extractor"][
            0
        ],
        **{"cuda": False, "cache": False, "verbose": False, "samples_find_deep": False, "batch_size": 50},
        **{"fid": True, "isc": True, "kid": True, "prc": True, "kid_subsets": 5, "kid_subset_size": 50},
    )
    chosen = protocol(len(OURS))
    made = reference_call(pipeline, tmp_path, published, chosen)()
    with np.load(made) as content:
        features = torch.from_numpy(content["features"]).double()
        fixed = dict(content) | {"mu": features.mean(0).numpy(), "sigma": features.T.cov().numpy()}
    np.savez(made, **fixed)
    images = write(tmp_path / "images.tar", OURS)
    ours = json.loads(score_call(pipeline, tmp_path, images, made, chosen)().read_text())
    assert ours["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert ours["is"] == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert ours["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4, abs=1e-7)
    assert (ours["precision"], ours["recall"]) == (theirs["precision"], theirs["recall"])
    assert 0 < ours["precision"] < 1 or 0 < ours["recall"] < 1


def test_published_statistics_are_used_as_stored(pipeline, published, tmp_path):
    chosen = protocol(len(OURS))
    made = reference_call(pipeline, tmp_path, published, chosen)()
    with np.load(made) as ours, np.load(published.with_suffix("") / "statistics.npz") as theirs:
        for name in ("mu", "sigma"):
            assert ours[name].tobytes() == theirs[name].tobytes()
        assert len(ours["features"]) == ours["n"] == len(REAL)
        assert ours["shape"].tolist() == [1, 8, 8]
    images = write(tmp_path / "images.tar", OURS)
    compared = json.loads(score_call(pipeline, tmp_path, images, made, chosen)().read_text())
    # Without metrics that compare images the published file is itself the reference.
    plain = protocol(len(OURS), metrics=["fid", "is"])
    stored = json.loads(score_call(pipeline, tmp_path, images, published, plain)().read_text())
    assert stored["fid"] == compared["fid"]
    assert "kid" not in stored and "recall" not in stored


def test_rescaled_features_rescale_every_distance(pipeline, published, tmp_path):
    chosen = protocol(len(OURS))
    made = reference_call(pipeline, tmp_path, published, chosen)()
    images = write(tmp_path / "images.tar", OURS)
    plain = json.loads(score_call(pipeline, tmp_path, images, made, chosen)().read_text())
    with np.load(made) as content:
        trace = float(content["sigma"].trace())
    scaled = protocol(len(OURS), feature_scale=4 * trace)
    twice = json.loads(score_call(pipeline, tmp_path, images, made, scaled)().read_text())
    assert twice["fid"] == pytest.approx(4 * plain["fid"], rel=1e-9)
    assert (twice["precision"], twice["recall"]) == (plain["precision"], plain["recall"])
    assert twice["kid"] > plain["kid"]


def test_images_of_an_npz_in_any_order(published):
    read, count = open_npz_images(published.with_suffix("") / "statistics.npz")
    assert count == len(REAL)
    for chunk in (range(100, 170), range(0, 3), range(169, 170)):
        assert np.array_equal(read(chunk), REAL[chunk.start : chunk.stop].numpy())


def test_two_processes_give_the_same_numbers(pipeline, published, tmp_path):
    chosen = protocol(len(OURS))
    one, two = tmp_path / "one", tmp_path / "two"
    images = write(tmp_path / "images.tar", OURS)
    for folder in (one, two):
        folder.mkdir()
        for call in (
            reference_call(pipeline, folder, published, chosen),
            score_call(pipeline, folder, images, folder / "reference.npz", chosen),
        ):
            if folder == one:
                call()
            else:
                assert ranks(call, folder) == [0, 0], (folder / "rank0.log").read_text()
    ours, theirs = (json.loads((folder / "score.json").read_text()) for folder in (one, two))
    assert ours == theirs
