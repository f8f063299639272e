"""Averaged pixels as features: what stands for a network where there is none for the images."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from fewstep.config.settings import Protocol
from fewstep.evaluation.features import Extractor, FeatureCollector
from fewstep.evaluation.reference_statistics import Reference
from fewstep.evaluation.scoring import compute_metrics


def protocol(**changes) -> Protocol:
    given = {"images": 50, "labels": "random", "extractor": "pixels", "features": "4", "metrics": ["frechet"]}
    return Protocol.model_validate({**given, "reference_latents": "own", **changes})


def test_features_are_means_over_squares():
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    images[0, 1, :2, 2:4] = torch.tensor([[0, 255], [255, 0]], dtype=torch.uint8)
    features = Extractor(protocol(), None, None)(images)["4"]
    assert features.shape == (2, 48)
    assert features[0].nonzero().tolist() == [[16 + 1]] and features[0, 17] == 0.5
    assert not features[1].any()


def collected(given: Protocol, images: torch.Tensor) -> FeatureCollector:
    collector = FeatureCollector(given)
    collector.add(Extractor(given, None, None)(images))
    return collector


def test_the_mean_image_alone_is_at_100():
    """So that a reader knows what a number means, whatever the images are."""
    given = protocol(feature_scale=100.0)
    draws = torch.Generator().manual_seed(0)
    real = torch.randint(0, 256, (200, 3, 8, 8), generator=draws, dtype=torch.uint8)
    mu, sigma = collected(given, real).statistics()
    constant = Reference(mu, sigma, None)
    same = compute_metrics(given, collected(given, real), constant)["frechet"]
    assert same == pytest.approx(0, abs=1e-3)
    mean = real.float().mean(0).round().byte().expand(200, -1, -1, -1)
    assert compute_metrics(given, collected(given, mean), constant)["frechet"] == pytest.approx(100, abs=0.5)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"metrics": ["fid"]}, "of pixels say frechet"),
        ({"features": "5"}, "pixels has no layer '5'"),
        ({"weights": {"asset": "a", "file": "b"}}, "it and pixels alone go without weights"),
        ({"uint8": "none"}, "identity goes with uint8: none"),
    ],
)
def test_refused_protocols(changes, told):
    with pytest.raises(ValidationError, match=told):
        protocol(**changes)
