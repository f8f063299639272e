"""Real images beside samples: the first of each class or caption, and none where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from data_factories import DIGITS, png, record_of, tar_of, write_spec

from fewstep import examples
from fewstep.common.array_files import open_npz
from fewstep.config import ConfigError
from fewstep.config.settings import Dataset
from fewstep.config.specs import ExamplesSpec
from fewstep.config.text import PromptSet
from fewstep.data.sources import open_source
from fewstep.evaluation.image_archive import ImageArchive, open_images

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


def call(folder: Path, spec: ExamplesSpec, record: Path, *words: str) -> ImageArchive:
    out = folder / "images.tar"
    path = write_spec(folder / "examples.json", spec)
    examples.main(["--spec", path, "--source", str(record), "--prompts", *words, "--out", str(out)])
    return open_images(out)


def test_the_first_digit_of_each_class(digits_record: Path, tmp_path: Path) -> None:
    archive = call(tmp_path, ExamplesSpec(dataset=DIGITS, labels=[7, 0, 3]), digits_record)
    with open_npz(digits_record.with_suffix("") / "digits.npz") as content:
        digits, labels = content["images"], content["labels"]
    places = [int(np.flatnonzero(labels == label)[0]) for label in (7, 0, 3)]
    assert archive.labels(0).tolist() == [7, 0, 3] and archive.card["places"] == places
    assert archive.dtype == np.uint8 and archive.shape == (1, 8, 8)
    assert np.abs(archive.images(0)[:, 0] - digits[places] / 16 * 255).max() <= 0.5


def prompts_file(folder: Path, texts: list[str]) -> tuple[PromptSet, Path]:
    lines = "".join(json.dumps({"prompt": text}) + "\n" for text in texts).encode()
    record = record_of(folder / "prompts", {"prompts.jsonl": lines})
    return PromptSet(asset="mine", files=["prompts.jsonl"], prompts=len(texts)), record.path


def test_images_of_prompts_are_found_by_their_captions(tmp_path: Path) -> None:
    """Of equal captions the first; of a prompt that no image has, none."""
    texts = ["a dog", "a cat", "a dog"]
    members = {}
    for number, text in enumerate(texts):
        members |= {f"{number}.json": json.dumps({"prompt": text}).encode()}
        members |= {f"{number}.png": png(COLOURS[number])}
    record = record_of(tmp_path, {"a.tar": tar_of(members)}).path
    dataset = Dataset(asset="mine", format="captioned-tars", resolution=8, classes=3, images=3)
    prompts, file = prompts_file(tmp_path, ["a bird", "a cat", "a dog"])
    spec = ExamplesSpec(dataset=dataset, labels=[2, 0, 1], prompts=prompts)
    archive = call(tmp_path, spec, record, str(file))
    assert archive.labels(0).tolist() == [2, 1] and archive.card["places"] == [0, 1]
    assert archive.images(0)[:, :, 0, 0].tolist() == [[255, 0, 0], [0, 255, 0]]
    none = call(tmp_path, spec.model_copy(update={"labels": [0]}), record, str(file))
    assert none.count == 0 and none.shape == (3, 8, 8)
    with pytest.raises(ConfigError, match="pass --prompts"):
        call(tmp_path, spec, record)


FILES = {"n0/a.png": png(COLOURS[0]), "n1/b.png": png(COLOURS[1]), "n1/c.png": png(COLOURS[2])}
WDS = {"1.png": png(COLOURS[0]), "1.cls": b"1", "2.png": png(COLOURS[1]), "2.cls": b"0"}


@pytest.mark.parametrize(
    ("kind", "files"),
    [
        ("imagefolder", FILES),
        ("webdataset", {"a.tar": tar_of(WDS | {"3.png": png(COLOURS[2]), "3.cls": b"1"})}),
        ("tars", {f"n{k}.tar": tar_of({n: c for n, c in FILES.items() if f"n{k}" in n}) for k in range(2)}),
    ],
)
def test_labels_alone_are_those_of_the_images(kind: str, files: dict[str, bytes], tmp_path: Path) -> None:
    dataset = Dataset(asset="mine", format=kind, resolution=8, classes=2, images=3)
    source = open_source(dataset, record_of(tmp_path, files))
    assert source.labels(0, 9) == source.read(0, 3)[1].tolist()
    assert source.labels(1, 2) == source.read(1, 2)[1].tolist()
