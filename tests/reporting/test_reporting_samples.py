"""Samples by number of steps: which image stands where, under which caption, and the numbers beside it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from fewstep import figure as stage
from fewstep.common.csv_files import read_csv
from fewstep.config import dump
from fewstep.config.specs import CellKey, RowCells, TableSpec
from fewstep.config.tables import Table
from fewstep.evaluation.image_archive import write_images
from fewstep.reporting.figures import samples
from fewstep.reporting.figures.grid import GAP, label_font
from fewstep.reporting.figures.samples import BREAK

SIDE = 32
CAPTIONS = ["a dog", "a cat and a pizza", "three apples", "a red book and a blue circle left of it"]
LINES = [("teacher", 1), ("teacher", 8), ("student", 1), ("student", 4)]
STEPS = {"teacher": [1, 8], "student": [1, 4]}


def spec_of(**changes) -> TableSpec:
    table = {"kind": "samples", "title": "Samples", "paper": "none", "classes": [2, 0, 3]}
    rows = [{"id": name, "label": name.title(), "method": name, "steps": STEPS[name]} for name in STEPS]
    cells = [
        RowCells(
            id=name,
            cells={"scenes": [[cell(name, count, seed) for seed in (0, 1)] for count in steps]},
        )
        for name, steps in STEPS.items()
    ]
    chosen = Table.model_validate(table | {"rows": rows} | changes)
    return TableSpec(name="mine", scale="demo", protocols=["scenes"], table=chosen, rows=cells)


def cell(method: str, steps: int, seed: int) -> CellKey:
    return CellKey(method=method, variant="base", seed=seed, sampler="euler", steps=steps, protocol="scenes")


def tone(line: int, image: int) -> int:
    """The grey value of an image."""
    return 40 * line + image


def write(path, line: int, side: int = SIDE, channels: int = 3, captions: bool = True):
    """Eight images of four prompts in two batches, each of one grey value."""
    shape = (channels, side, side)
    images = np.stack([np.full(shape, tone(line, image), np.uint8) for image in range(8)])
    labels = np.arange(8) % 4
    card = {"captions": {str(label): CAPTIONS[label] for label in range(4)}} if captions else {}
    write_images(path, card, [(images[:5], labels[:5]), (images[5:], labels[5:])])
    return path


@pytest.fixture
def files(tmp_path):
    return [write(tmp_path / f"{line}.tar", line) for line in range(len(LINES))]


def places(picture: Image.Image, lines: int, columns: int, side: int) -> list[list[tuple[int, int]]]:
    """Upper left corners of the tiles, reckoned from the lower right.

    The last two lines are the student's, above them the teacher's, and real images if there are five lines.
    """
    right, low = picture.size
    breaks = [BREAK * (y < lines - 2) + BREAK * (y < lines - 4) for y in range(lines)]
    downs = [low - (lines - y) * (side + GAP) - breaks[y] for y in range(lines)]
    return [[(right - (columns - x) * (side + GAP), down) for x in range(columns)] for down in downs]


def ink(picture: Image.Image, box: tuple[int, int, int, int]) -> int:
    """Pixels that are not white."""
    return int((np.asarray(picture.crop(box).convert("L")) < 250).sum())


def test_lines_and_columns(files):
    """A line for each number of steps of each row, a column for each prompt, in the order asked for."""
    picture, text = samples.draw(spec_of(), files)
    found = [line.split(",") for line in text.splitlines()]
    assert len(found) == 1 + 4 * 3
    corners = places(picture, 4, 3, 96)
    for line in range(4):
        for column, label in enumerate([2, 0, 3]):
            x, y = corners[line][column]
            # The first image of a prompt; the second, 4 further on, is not shown.
            for inside in ((x, y), (x + 95, y + 95)):
                assert picture.getpixel(inside) == (tone(line, label),) * 3
            assert picture.getpixel((x + 96, y + 96)) == (255, 255, 255)


def test_numbers_beside_it(files, tmp_path):
    """By the command: which image of which file stands where."""
    path, out, numbers = tmp_path / "spec.json", tmp_path / "mine.png", tmp_path / "mine.csv"
    path.write_text(dump(spec_of()))
    words = ["--spec", path, "--images", *files, "--real", "--out", out, "--csv", numbers]
    stage.main([str(word) for word in words])
    Image.open(out).verify()
    header, lines = read_csv(numbers)
    assert list(header) == ["line", "steps", "column", "label", "caption", "image"]
    assert [line["line"] for line in lines[::3]] == [
        "Teacher, 1 step",
        "Teacher, 8 steps",
        "Student, 1 step",
        "Student, 4 steps",
    ]
    assert [line["steps"] for line in lines[::3]] == ["1", "8", "1", "4"]
    for first in range(0, 12, 3):
        part = lines[first : first + 3]
        assert [line["column"] for line in part] == ["0", "1", "2"]
        assert [line["label"] for line in part] == [line["image"] for line in part] == ["2", "0", "3"]
        assert [line["caption"] for line in part] == [CAPTIONS[label] for label in (2, 0, 3)]


def test_captions_stand_above_their_columns(files, tmp_path):
    picture, _ = samples.draw(spec_of(), files)
    (x, top), *_ = places(picture, 4, 3, 96)[0]
    assert top >= 10 + 17 * 2  # the longest has several lines
    for column in range(3):
        left = x + column * (96 + GAP)
        assert ink(picture, (left, 0, left + 96, top)) > 50
    # Nothing runs over the edge of the sheet, or into the lines' names.
    assert ink(picture, (0, 0, picture.width, 1)) == 0 and ink(picture, (0, 0, x - GAP, top)) == 0
    # Names of lines stand to the left.
    for line in range(4):
        down = top + line * (96 + GAP) + BREAK * (line >= 2)
        assert ink(picture, (0, down, x - 1, down + 96)) > 50 and ink(picture, (0, down, 1, down + 96)) == 0


def test_real_images_stand_above(files, tmp_path):
    """Under the same captions; where there is none, the place is white."""
    real = tmp_path / "real.tar"
    tones = np.array([200, 210], np.uint8)[:, None, None, None]
    write_images(real, {}, [(np.tile(tones, (1, 3, SIDE, SIDE)), np.array([3, 2]))])
    picture, text = samples.draw(spec_of(), files, real)
    lines = [line.split(",") for line in text.splitlines()[1:]]
    assert [[line[0], line[1], *line[2:4], line[-1]] for line in lines[:2]] == [
        ["Real images", "", "0", "2", "1"],
        ["Real images", "", "2", "3", "0"],
    ]
    assert len(lines) == 2 + 4 * 3
    corners = places(picture, 5, 3, 96)
    assert [picture.getpixel(place)[0] for place in corners[0]] == [210, 255, 200]
    assert picture.getpixel(corners[1][1]) == (tone(0, 0),) * 3
    x, down = corners[0][0]
    assert ink(picture, (0, down, x - 1, down + 96)) > 50
    none = tmp_path / "none.tar"
    write_images(none, {}, [(np.empty((0, 3, SIDE, SIDE), np.uint8), np.empty(0, np.int64))])
    picture, _ = samples.draw(spec_of(), files, none)
    assert {picture.getpixel(place)[0] for place in places(picture, 5, 3, 96)[0]} == {255}


def test_real_images_of_another_size_are_refused(files, tmp_path):
    real = write(tmp_path / "real.tar", 0, SIDE // 2)
    with pytest.raises(ValueError, match=r"real\.tar: real images are uint8 \(3, 16, 16\), samples uint8"):
        samples.draw(spec_of(), files, real)


def test_class_labels_without_captions(tmp_path):
    """Their numbers stand above; grey images of one channel too."""
    files = [write(tmp_path / f"{line}.tar", line, 8, 1, captions=False) for line in range(4)]
    picture, text = samples.draw(spec_of(), files)
    assert picture.mode == "RGB"
    lines = [line.split(",")[-4:] for line in text.splitlines()[1:]]
    assert [line[1:3] for line in lines[:3]] == [["2", "2"], ["0", "0"], ["3", "3"]]
    # 8 pixels become 96.
    corners = places(picture, 4, 3, 96)
    assert picture.getpixel(corners[3][1]) == (tone(3, 0),) * 3
    assert corners[0][0][1] == 10 + 17
    assert ink(picture, (*corners[0][0][:1], 0, corners[0][0][0] + 96, corners[0][0][1])) > 5


@pytest.mark.parametrize(("side", "shown"), [(8, 96), (32, 96), (64, 128), (96, 96), (128, 128)])
def test_small_images_are_enlarged_by_a_whole_factor(side, shown, tmp_path):
    picture, _ = samples.draw(spec_of(), [write(tmp_path / f"{line}.tar", line, side) for line in range(4)])
    first, second = places(picture, 4, 3, shown)[0][:2]
    assert picture.getpixel(first) == picture.getpixel((second[0] - GAP - 1, first[1])) == (2, 2, 2)
    assert picture.getpixel((second[0] - GAP, first[1])) == (255, 255, 255)


def test_without_a_choice_the_first_ten(tmp_path):
    picture, text = samples.draw(
        spec_of(classes=None), [write(tmp_path / f"{line}.tar", line) for line in range(4)]
    )
    assert len(text.splitlines()) == 1 + 4 * 4
    assert picture.getpixel(places(picture, 4, 4, 96)[2][3]) == (tone(2, 3),) * 3


@pytest.mark.parametrize("count", [0, 3, 5])
def test_another_number_of_files_is_refused(count, files):
    given = [*files, files[0]][:count]
    with pytest.raises(ValueError) as error:
        samples.draw(spec_of(), given)
    assert str(error.value) == f"mine: {count} --images for 4 lines; give one for each"


def test_a_prompt_that_no_file_has_is_refused(files):
    with pytest.raises(ValueError, match=r"0\.tar: no images of the classes \[7\]"):
        samples.draw(spec_of(classes=[7]), files)


def test_files_of_other_prompts_are_refused(files, tmp_path):
    """A column shows one prompt: what the first file has, the others must have."""
    path = tmp_path / "others.tar"
    images = np.zeros((2, 3, SIDE, SIDE), np.uint8)
    write_images(path, {"captions": {"0": CAPTIONS[0], "2": CAPTIONS[2]}}, [(images, np.array([0, 2]))])
    with pytest.raises(ValueError) as error:
        samples.draw(spec_of(), [*files[:3], path])
    assert str(error.value) == f"{path}: no images of the classes [3], which {files[0]} has"
    images, labels = np.zeros((4, 3, SIDE, SIDE), np.uint8), np.arange(4)
    captions = {str(label): CAPTIONS[label] for label in range(4)}
    write_images(path, {"captions": captions | {"3": "a bus"}}, [(images, labels)])
    with pytest.raises(ValueError) as error:
        samples.draw(spec_of(), [*files[:3], path])
    assert str(error.value) == f"{path}: caption 3 is 'a bus', but {CAPTIONS[3]!r} in {files[0]}"


def test_names_that_are_not_latin_are_not_boxes():
    """A font shows characters that it lacks as the same box."""
    for words in ("dog", "été", "Кошки", "γάτα"):
        font = label_font(["a dog", words], 14)
        assert len({bytes(font.getmask(letter)) for letter in words}) == len(set(words))
