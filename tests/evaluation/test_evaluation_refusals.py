"""What does not belong together gives no number but a message."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scoring_factories import digits, image_card, protocol, record, reference_call, score_call, write

from fewstep.evaluation.image_archive import open_images, write_images

IMAGES = digits(60, seed=1)
PLAIN = {"metrics": ["fid", "is"], "kid": {"size": 2}}


@pytest.fixture
def size(pipeline) -> int:
    return pipeline.plan.network(protocol(60).weights).features


@pytest.fixture
def good(size, tmp_path):
    return record(tmp_path, "good", mu=np.zeros(size), sigma=np.eye(size))


@pytest.fixture
def images(tmp_path):
    return write(tmp_path / "images.tar", IMAGES)


def refused(call, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()
    assert not call.out.exists()


@pytest.mark.parametrize("count", [49_999, 50_001])
def test_one_image_too_few_or_too_many(pipeline, good, tmp_path, count):
    many = torch.zeros(count, 1, 8, 8, dtype=torch.uint8)
    path = write(tmp_path / "many.tar", many, batch=5000, said=50_000)
    call = score_call(pipeline, tmp_path, path, good, protocol(50_000, **PLAIN))
    refused(call, f"{count} images, but the protocol wants 50000")


def test_exactly_enough_images_are_accepted(tmp_path):
    path = write(tmp_path / "many.tar", torch.zeros(50_000, 1, 8, 8, dtype=torch.uint8), batch=5000)
    assert open_images(path).count == 50_000


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 8, 8)])
def test_images_of_another_size(pipeline, good, tmp_path, shape):
    path = write(tmp_path / "other.tar", torch.zeros(60, *shape, dtype=torch.uint8))
    call = score_call(pipeline, tmp_path, path, good, protocol(60, **PLAIN))
    refused(call, r"the data set's are \(1, 8, 8\)")


def test_images_that_are_not_bytes(pipeline, good, tmp_path):
    path = write(tmp_path / "floats.tar", IMAGES.float() / 255)
    refused(score_call(pipeline, tmp_path, path, good, protocol(60, **PLAIN)), "float32 .* not uint8")


def test_batches_of_different_sizes(tmp_path):
    path = tmp_path / "mixed.tar"
    write_images(
        path, image_card(4), [(np.zeros((2, 1, side, side), np.uint8), np.zeros(2)) for side in (8, 16)]
    )
    with pytest.raises(ValueError, match="of one size"):
        open_images(path)


def test_not_a_tar_of_images(tmp_path):
    path = tmp_path / "text.tar"
    path.write_text("no tar")
    with pytest.raises(ValueError, match="not a tar of images"):
        open_images(path)


def test_statistics_of_other_dimensions(pipeline, images, size, tmp_path):
    wrong = record(tmp_path, "wrong", mu=np.zeros(size + 1), sigma=np.eye(size + 1))
    call = score_call(pipeline, tmp_path, images, wrong, protocol(60, **PLAIN))
    refused(call, f"{size + 1} dimensions, but layer features of conv-classifier has {size}")


@pytest.mark.parametrize("name", ["mu", "sigma"])
def test_statistics_that_are_not_finite(pipeline, images, size, tmp_path, name):
    content = {"mu": np.zeros(size), "sigma": np.eye(size)}
    content[name].flat[3] = np.nan
    wrong = record(tmp_path, "wrong", **content)
    refused(score_call(pipeline, tmp_path, images, wrong, protocol(60, **PLAIN)), "NaN or infinity")


def test_changed_reference_file(pipeline, images, good, tmp_path):
    with (good.with_suffix("") / "statistics.npz").open("ab") as stream:
        stream.write(b"more")
    refused(score_call(pipeline, tmp_path, images, good, protocol(60, **PLAIN)), "differs from")


def test_reference_of_other_extractor_weights_or_images(pipeline, images, size, tmp_path):
    chosen = protocol(60, reference=None, reference_latents="digits-pixels", kid={"size": 2})
    content = {"mu": np.zeros(size), "sigma": np.eye(size), "features": np.zeros((9, size), np.float32)}
    path = tmp_path / "reference.npz"
    for extra, match in (
        ({"extractor": "0" * 64}, "other weights"),
        ({"shape": np.array([3, 8, 8])}, "real images are"),
        ({"features": np.zeros((9, size + 1), np.float32)}, f"statistics of {size} dimensions, but"),
        ({"features": np.full((9, size), np.nan, np.float32)}, "a feature is NaN"),
    ):
        np.savez(path, **(content | extra))
        refused(score_call(pipeline, tmp_path, images, path, chosen), match)
    del content["features"]
    np.savez(path, **content)
    refused(score_call(pipeline, tmp_path, images, path, chosen), "no features of real images")


def test_subset_larger_than_the_real_images(pipeline, images, size, tmp_path):
    chosen = protocol(60, reference=None, reference_latents="digits-pixels", kid={"size": 50})
    features = np.ones((9, size), np.float32)
    np.savez(tmp_path / "reference.npz", mu=np.zeros(size), sigma=np.eye(size), features=features)
    call = score_call(pipeline, tmp_path, images, tmp_path / "reference.npz", chosen)
    refused(call, "kid.size: 50, but there are 60 images and 9 real ones")


def test_published_reference_without_images(pipeline, good, tmp_path):
    refused(reference_call(pipeline, tmp_path, good, protocol(60)), "no images .arr_0.")


def test_reference_call_with_the_wrong_source(pipeline, good, tmp_path):
    call = reference_call(pipeline, tmp_path, good, protocol(60))
    refused(call.more("--latents", "manifest.json"), "give --published alone")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"metrics": []}, "at least 1"),
        ({"metrics": ["fid", "fid"]}, "twice"),
        ({"metrics": ["fid", "is"], "logits": None}, "needs logits"),
        ({"kid": {"size": 61}}, "beyond the 60 images"),
        ({"extractor": "dinov2-vit-l-14"}, "only torch.hub"),
    ],
)
def test_impossible_protocols(changes, match):
    with pytest.raises(ValidationError, match=match):
        protocol(60, **changes)
