"""Samples of a training while it runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from child_processes import ranks
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_pipeline import Call, TinyPipeline, refused
from trained_files import same

from fewstep.backbones.model_file import load_model
from fewstep.common.provenance import PACKAGE, closure
from fewstep.config.settings import Weights


def watched(pipeline: TinyPipeline, method: str, folder: Path) -> Call:
    words = pipeline.plan.watch(f"{method}/base", "0")
    return pipeline.train(method, folder).more("--watch-every", "4", *words)


@pytest.mark.parametrize("method", ["cd", "decm"])
def test_a_training_shows_its_samples(pipeline, tmp_path, method):
    """The same noise at every step; the training is what it is without."""
    folder = tmp_path / "watched"  # a card names files from where the model lies
    call, plain = watched(pipeline, method, folder), pipeline.train(method, tmp_path / "plain")
    call()
    plain()
    same(call, plain)
    pictures = {
        path.name: np.asarray(Image.open(path)) for path in sorted((folder / "samples").glob("*.png"))
    }
    assert list(pictures) == ["0.png", "4.png", "8.png"]
    # 40 images of digits, 8 in a row
    assert {picture.shape for picture in pictures.values()} == {(5 * 8, 8 * 8)}
    assert (pictures["0.png"] != pictures["8.png"]).any()
    assert np.abs(pictures["0.png"].astype(int) - pictures["8.png"]).mean() < 64
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    found = events.Scalars("watch/fid_of_40")
    assert [event.step for event in found] == [0, 4, 8] and all(event.value > 0 for event in found)


def test_the_last_samples_are_those_of_the_model(pipeline, tmp_path):
    """What fewstep.sample makes of it, by the same spec."""
    from fewstep.evaluation.image_archive import open_images

    call = watched(pipeline, "cd", tmp_path)
    call()
    (sampler, steps) = ("cm", "2")
    sample = pipeline.sample("cd", f"{sampler}-{steps}", tmp_path)
    position = sample.arguments.index("--model")
    sample.arguments[position + 1] = str(call.out)
    images = open_images(sample()).images(0)
    picture = np.asarray(Image.open(tmp_path / "samples/8.png"))
    shown = picture.reshape(5, 8, 8, 8).transpose(0, 2, 1, 3).reshape(40, 8, 8)
    assert np.abs(shown.astype(int) - images[:, 0]).max() <= 1, "chunks of another size move last bits"


def test_only_the_main_process_samples(pipeline, tmp_path):
    assert ranks(watched(pipeline, "cd", tmp_path), tmp_path) == [0, 0]
    assert sorted(path.name for path in (tmp_path / "samples").glob("*.png")) == ["0.png", "4.png", "8.png"]


def test_nothing_to_watch(pipeline, tmp_path):
    """A profile may ask for it in all trainings: of an autoencoder there are no samples."""
    assert pipeline.plan.watch("digits-autoencoder/base", "0") == []
    pipeline.train("digits-autoencoder", tmp_path).more("--watch-every", "4")()
    assert not (tmp_path / "samples").exists()


def test_a_score_of_another_network_is_refused(pipeline, tmp_path):
    call = pipeline.train("decm", tmp_path).more(
        "--watch-every", "4", *pipeline.plan.watch("teacher/base", "0")
    )
    refused(call, "samples/spec.json", "--watch takes a score of the network that is trained")


def test_a_training_stays_free_of_evaluation():
    """Neither its imports nor its digest know who watches."""
    found = closure(PACKAGE, ["training.trainer"])
    assert not [name for name in found if name.startswith("evaluation")]


def test_a_published_reference_whose_images_are_compared(pipeline, tmp_path):
    """Its statistics are a file of fewstep.reference, though the distance needs no images."""
    from fewstep.evaluation.watching import Watching

    spec = pipeline.plan.spec("score", "cd/base/0/cm-2/digits")
    published = {"reference": Weights(asset="x", file="y.npz"), "reference_latents": None}
    protocol = spec.protocol.model_copy(update=published)
    assert not protocol.stored and protocol.model_copy(update={"metrics": ["fid"]}).stored
    files = [pipeline.plan.model(name) for name in ("digits-autoencoder", "digits-classifier")]
    reference = pipeline.plan.file("statistics", protocol="digits")
    watching = Watching(
        spec.model_copy(update={"protocol": protocol}),
        tmp_path,
        Path(pipeline.plan.file("manifest", latents="digits-latents")),
        *map(Path, [*files, reference]),
    )
    weights, _ = load_model(pipeline.plan.model("cd"))
    assert watching(0, weights, torch.device("cpu"))["fid_of_40"] > 0
