"""Captions and prompts as they come from outside: read in their order, or refused with file and place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_factories import LatentSet, png, record_of, tar_of

from fewstep.config import ConfigError
from fewstep.config.settings import Dataset, Latents, Tokenizer
from fewstep.config.specs import EncodeSpec
from fewstep.config.text import PromptSet
from fewstep.data import archives
from fewstep.data.asset_files import read_record
from fewstep.data.captions import read_captions, read_prompts
from fewstep.data.shards import LatentShards
from fewstep.data.sources import open_source

SCENES = Dataset(asset="mine", format="scenes", resolution=32, classes=2, images=9)
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0), (255, 255, 255)]


def tars(images: int = 5, **change: Any) -> Dataset:
    base = {"asset": "mine", "format": "captioned-tars", "resolution": 8}
    return Dataset.model_validate({**base, "classes": images, "images": images, **change})


def pair(key: str, number: int, content: bytes | None = None) -> dict[str, bytes]:
    text = json.dumps({"prompt": f"caption {number}", "other": 1}).encode()
    return {f"{key}.json": content if content is not None else text, f"{key}.jpg": png(COLOURS[number])}


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two tars of three and two pairs, not in the order of their names inside."""
    first = {**pair("b", 0), **pair("folder/a", 1), **pair("c", 2), "c.mask.png": b"x"}
    second = {**dict(reversed(pair("a", 3).items())), "notes.txt": b"x", **pair("b", 4)}
    files = {"data/data_000001.tar": tar_of(second), "data/data_000000.tar": tar_of(first)}
    return record_of(tmp_path, files).path


def test_pairs_come_in_the_order_of_tars_and_members(shards: Path) -> None:
    assert read_captions(tars(), shards) == [f"caption {number}" for number in range(5)]
    images, labels = open_source(tars(), read_record(shards)).read(0, 5)
    assert labels.tolist() == [0, 1, 2, 3, 4]
    expected = torch.tensor(COLOURS) / 127.5 - 1
    assert torch.equal(images[:, :, 0, 0], expected)


def test_the_first_pairs_are_taken_and_fewer_are_refused(shards: Path) -> None:
    for images in (4, 3, 5, 2):  # whatever the cache of headers holds from before
        source = open_source(tars(images), read_record(shards))
        assert source.read(0, images)[1].tolist() == list(range(images))
        assert len(read_captions(tars(images), shards)) == images
    for call in (lambda: read_captions(tars(6), shards), lambda: open_source(tars(6), read_record(shards))):
        with pytest.raises(ConfigError, match=r"mine\.json: dataset\.images: found 5, .* says 6"):
            call()
    with pytest.raises(ValueError, match="classes 4: every image is one with format: captioned-tars, so 5"):
        tars(classes=4)


def test_later_tars_are_not_opened(tmp_path: Path) -> None:
    files = {"0.tar": tar_of({**pair("a", 0), **pair("b", 1)}), "1.tar": b"no tar"}
    assert len(read_captions(tars(2), record_of(tmp_path, files).path)) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x.jpg": b"image"}, "x: an image without .json"),
        ({"x.json": b'{"prompt": "x"}'}, "x: a .json without image"),
        (pair("x", 0, b'{"caption": "x"}'), "x.json: has no key 'prompt'"),
        (pair("x", 0, b'{"prompt": null}'), "x.json: prompt: must be text, not NoneType"),
        (pair("x", 0, b'{"prompt": ["x"]}'), "x.json: prompt: must be text, not list"),
        (pair("x", 0, b'{"prompt": " \\n"}'), "x.json: prompt: is empty"),
        (pair("x", 0, b'{"prompt": "\xff"}'), "x.json: not UTF-8: byte 0xff"),
        (pair("x", 0, b'{"prompt": "\\ud83d"}'), r"x.json: prompt: not UTF-8: '\ud83d' is half a character"),
        (pair("x", 0, b'["x"]'), "x.json: must be a JSON object, not list"),
        (pair("x", 0, b"prompt"), "x.json: not JSON: Expecting value"),
        (pair("x", 0, b""), "x.json: not JSON: Expecting value"),
        (pair("x", 0, b"[" * 60_000), "x.json: not JSON: "),
        (pair("x", 0, b" " * 70_000), "x.json: has 70000 bytes, more than 65536"),
        ({**pair("x", 0), "x.png": b"image"}, "x.png: sample 'x' has two of this kind"),
    ],
)
def test_pairs_that_are_none_are_named(tmp_path: Path, change: dict[str, bytes], message: str) -> None:
    record = record_of(tmp_path, {"a.tar": tar_of({**pair("a", 0), **change})})
    for call in (lambda: read_captions(tars(1), record.path), lambda: open_source(tars(1), record)):
        with pytest.raises(ConfigError) as caught:
            call()
        assert str(caught.value).startswith(f"{record.folder / 'a.tar'}: {message}")
        assert "\n" not in str(caught.value)


def test_images_are_those_of_other_sources(tmp_path: Path) -> None:
    broken = {**pair("a", 0), "a.jpg": b"no image"}
    source = open_source(tars(1), record_of(tmp_path / "broken", {"a.tar": tar_of(broken)}))
    with pytest.raises(ConfigError, match=r"a\.tar at byte \d+: not an image"):
        source.read(0, 1)
    large = {**pair("a", 0), "a.jpg": png((9, 9, 9), (16, 16))}
    record = record_of(tmp_path / "large", {"a.tar": tar_of(large)})
    with pytest.raises(ConfigError, match=r"is 16x16, not 8x8, and crop is none"):
        open_source(tars(1), record).read(0, 1)
    assert open_source(tars(1, crop="adm"), record).read(0, 1)[0].shape == (1, 3, 8, 8)


def test_a_cache_of_damaged_tars_is_made_anew(shards: Path) -> None:
    read_captions(tars(), shards)
    cache = shards.with_suffix(".captioned-tars.npz")
    with np.load(cache, allow_pickle=False) as content:
        arrays = dict(content)
    arrays["entries"][1, archives.TarEntry._fields.index("label_offset")] += 3
    np.savez(cache, **arrays)
    with pytest.raises(ConfigError, match=r"data_000000\.tar at byte \d+: not JSON: .* removed, run again$"):
        read_captions(tars(), shards)
    assert len(read_captions(tars(), shards)) == 5


def test_many_classes_leave_the_manifest_small(shards: Path, tmp_path: Path) -> None:
    spec = EncodeSpec(
        name="captioned",
        dataset=tars(),
        tokenizer=Tokenizer(kind="pixels", shape=[3, 8, 8]),
        latents=Latents(dataset="mine", tokenizer="pixels", shards=2),
    )
    made = LatentSet(tmp_path / "latents", shards, spec)
    made.encode()
    opened = LatentShards(made.manifest)
    assert opened.manifest.histogram == [] and opened.labels.tolist() == [0, 1, 2, 3, 4]
    raw = json.loads(made.manifest.read_text())
    raw["histogram"] = [1] * 5
    del raw["digest"]
    made.manifest.write_text(json.dumps(raw))
    with pytest.raises(ConfigError, match="histogram: 5 disagrees with 0"):
        LatentShards(made.manifest)


def scenes(folder: Path, content: bytes) -> Path:
    return record_of(folder, {"captions.json": content}).path


def test_captions_of_scenes_are_a_list(tmp_path: Path) -> None:
    good = json.dumps({"captions": ["a dog", "zwei Hunde, ü"], "pictures": []}).encode()
    assert read_captions(SCENES, scenes(tmp_path, good)) == ["a dog", "zwei Hunde, ü"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"captions": ["a", "b", "c"]}', "dataset.classes: found 3, the configuration says 2"),
        (b'{"captions": ["a", ""]}', "captions: 1: is empty"),
        (b'{"captions": ["a", 2]}', "captions: 1: must be text, not int"),
        (b'{"captions": {"0": "a", "1": "b"}}', "captions: must be a list, not dict"),
        (b"{}", "captions: must be a list, not NoneType"),
        (b"[]", "must be a JSON object, not list"),
        (b'{"captions": ["a", "\xe9"]}', "not UTF-8: byte 0xe9"),
    ],
)
def test_other_captions_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    record = scenes(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        read_captions(SCENES, record)
    assert str(caught.value) == f"{read_record(record).folder / 'captions.json'}: {message}"


def test_data_without_captions_are_refused(digits_record: Path) -> None:
    digits = Dataset(asset="digits", format="digits", resolution=8, channels=1, classes=10, images=1797)
    with pytest.raises(ConfigError, match=r"digits\.json: dataset\.format: digits has no captions"):
        read_captions(digits, digits_record)


GENEVAL = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {
        "tag": "counting",
        "include": [{"class": "clock", "count": 2}],
        "exclude": [{"class": "clock", "count": 3}],
        "prompt": "a photo of two clocks",
    },
    {
        "tag": "position",
        "include": [
            {"class": "bench", "count": 1},
            {"class": "dog", "count": 1, "position": ["right of", 0]},
        ],
        "prompt": "a photo of a dog right of a bench",
    },
    {
        "tag": "color_attr",
        "include": [
            {"class": "cup", "count": 1, "color": "red"},
            {"class": "car", "count": 1, "color": "blue"},
        ],
        "prompt": "a photo of a red cup and a blue car",
    },
]


def prompts(folder: Path, content: bytes, count: int) -> list[dict[str, Any]]:
    record = record_of(folder, {"prompts.jsonl": content}).path
    return read_prompts(PromptSet(asset="mine", files=["prompts.jsonl"], prompts=count), record)


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_prompts_are_lines_of_json(tmp_path: Path, end: bytes) -> None:
    """Those of GenEval, plain ones, and one that is there twice, with characters that also end lines."""
    own = [
        {"prompt": "a line\u2028and another"},
        {"prompt": "x", "source": [1]},
        {"prompt": "x", "held_out": True},
    ]
    lines = [json.dumps(line, ensure_ascii=False).encode() for line in [*GENEVAL, *own]]
    assert prompts(tmp_path, b"\n".join(lines) + end, 7) == [*GENEVAL, *own]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"", "not JSON: Expecting value"),
        (b"a dog", "not JSON: Expecting value"),
        (b'"a dog"', "must be a JSON object, not str"),
        (b'{"text": "a dog"}', "has no key 'prompt'"),
        (b'{"prompt": ""}', "prompt: is empty"),
        (b'{"prompt": 7}', "prompt: must be text, not int"),
        (b'{"prompt": "\xff"}', "not UTF-8: byte 0xff"),
        (b'{"prompt": "x", "held_out": 1}', "held_out: must be true or false, not 1"),
        (b'{"prompt": "x", "tag": 1}', "tag: must be text, not 1"),
        (b'{"prompt": "x", "include": [{"count": 1}]}', "include.0.class: is missing"),
        (
            b'{"prompt": "x", "include": [{"class": "dog", "count": 0}]}',
            "include.0.count: must be above 0, not 0",
        ),
        (b'{"prompt": "x", "exclude": {}}', "exclude: must be a list, not a mapping"),
        (
            b'{"prompt": "x", "include": [{"class": "dog", "count": 1, "position": ["over", 0]}]}',
            "include.0.position.0: 'over' is not one of left of, right of, above, below",
        ),
        (
            b'{"prompt": "x", "include": [{"class": "dog", "count": 1, "position": ["above", 0]}]}',
            "include.0.position: 0 is no earlier entry",
        ),
    ],
)
def test_lines_that_are_no_prompts_are_named(tmp_path: Path, line: bytes, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        prompts(tmp_path, b'{"prompt": "a dog"}\n' + line + b'\n{"prompt": "a cat"}\n', 3)
    assert str(caught.value).startswith(f"{(tmp_path / 'assets/mine/prompts.jsonl')}: line 2: {message}")
    assert "\n" not in str(caught.value)


def listed(folder: Path, *files: Any, count: int) -> list[dict[str, Any]]:
    contents = {
        f"{number}.json": entry if isinstance(entry, bytes) else json.dumps(entry).encode()
        for number, entry in enumerate(files)
    }
    chosen = PromptSet(asset="mine", files=list(contents), format="json", prompts=count)
    return read_prompts(chosen, record_of(folder, contents).path)


def test_prompts_are_lists_of_json(tmp_path: Path) -> None:
    """Of texts, or of objects with an id, in several files, one after the other."""
    objects = [{"id": "005-1", "prompt": "a dog"}, {"id": 7, "prompt": "a cat", "tag": "counting"}]
    expected = [{"prompt": "two dogs"}, {"prompt": "two dogs"}, *objects]
    assert listed(tmp_path, ["two dogs", "two dogs"], objects, count=4) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[", "not JSON: Expecting value"),
        (b"\xff", "not UTF-8: byte 0xff"),
        ({"prompt": "x"}, "must be a JSON list, not dict"),
        (["x", 7], "entry 2: must be text or a JSON object, not int"),
        (["x", ""], "entry 2: prompt: is empty"),
        (["x", {"text": "x"}], "entry 2: has no key 'prompt'"),
        ([{"prompt": "x", "id": [1]}], "entry 1: id"),
        ([{"prompt": "x", "id": "a"}, {"prompt": "y", "id": "a"}], "entry 2: id: 'a' is that of {}: entry 1"),
    ],
)
def test_lists_that_are_no_prompts_are_named(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "assets/mine/0.json"
    with pytest.raises(ConfigError) as caught:
        listed(tmp_path, content, count=2)
    assert str(caught.value).startswith(f"{path}: {message.format(path)}"), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_repeated_id_is_refused(tmp_path: Path) -> None:
    """In another file of the same set, and in lines."""
    with pytest.raises(ConfigError, match=r"1\.json: entry 1: id: 3 is that of .*0\.json: entry 1; ids must"):
        listed(tmp_path, [{"id": 3, "prompt": "x"}], [{"id": 3, "prompt": "y"}], count=2)
    with pytest.raises(ConfigError, match=r"line 2: id: 'a' is that of .*line 1"):
        prompts(tmp_path / "lines", b'{"prompt": "x", "id": "a"}\n{"prompt": "y", "id": "a"}', 2)


def test_another_number_of_prompts_or_another_file_is_refused(tmp_path: Path) -> None:
    content = b'{"prompt": "a dog"}\n'
    with pytest.raises(ConfigError, match=r"prompts\.jsonl: found 1 prompts, .* says 2"):
        prompts(tmp_path, content, 2)
    (tmp_path / "images/prompts.jsonl").write_bytes(content.replace(b"dog", b"cat"))
    record = tmp_path / "assets/mine.json"
    with pytest.raises(ConfigError, match=r"prompts\.jsonl: differs from .*: its sha256 is"):
        read_prompts(PromptSet(asset="mine", files=["prompts.jsonl"], prompts=1), record)
    with pytest.raises(ConfigError, match=r"has no file 'other\.jsonl'"):
        read_prompts(PromptSet(asset="mine", files=["other.jsonl"], prompts=1), record)
