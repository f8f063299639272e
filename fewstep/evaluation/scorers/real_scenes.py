"""Real scenes with their prompts: what scorers are tested on before use."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...common.array_files import open_npz
from ...config import ConfigError
from ...data.asset_files import Record, read_record
from .cell_detector import Picture
from .geneval import Prompt
from .interface import SelfTest

SCENES = "scenes.npz"
PICTURES = 32
"""Pictures of a self-test."""
EMPTY = "empty"
"""What the list of pictures calls a cell without one."""


class RealScenes(NamedTuple):
    """Real scenes whose captions are among a set of prompts."""

    images: Tensor
    """uint8 (n, C, H, W)."""
    prompts: list[Prompt]
    """Of each scene."""


def read_pictures(record: Path) -> list[Picture]:
    """Object and colour of each class of cells, in the asset of the prompts.

    Raises:
        ConfigError: the asset has no scenes, or its file is damaged.
    """
    pictures = json.loads(_scenes(record).verified("captions.json")[0].read_bytes())["pictures"]
    return [None if name == EMPTY else (name, colour) for name, colour in pictures]


def read_scenes(record: Path, prompts: Sequence[Prompt], of_each: int) -> RealScenes:
    """The first scenes of each of the prompts in their asset, prompt by prompt; of some there are none.

    Args:
        prompts: the lines of the set.
        of_each: the most scenes of a prompt.

    Raises:
        ConfigError: the asset has no scenes, or a file of it is damaged.
    """
    opened = _scenes(record)
    captions = json.loads(opened.verified("captions.json")[0].read_bytes())["captions"]
    numbers = {caption: number for number, caption in enumerate(captions)}
    by_label = {numbers[line["prompt"]]: line for line in reversed(prompts) if line["prompt"] in numbers}
    with open_npz(opened.verified(SCENES)[0]) as content:
        labels = content["labels"]
        chosen = np.concatenate([np.flatnonzero(labels == label)[:of_each] for label in by_label])
        images = torch.from_numpy(content["images"][chosen]).permute(0, 3, 1, 2).contiguous()
    return RealScenes(images, [by_label[label] for label in labels[chosen].tolist()])


def self_test(record: Path, prompts: Sequence[Prompt]) -> SelfTest | None:
    """Scenes of prompts of all kinds, each with its own prompt and with one of other objects.

    None if the asset of the prompts has no scenes.

    Raises:
        ConfigError: as for `read_scenes`; no two prompts without a common object have scenes.
    """
    if SCENES not in read_record(record).names(""):
        return None
    scenes = read_scenes(record, prompts, of_each=1)
    there = len(scenes.prompts)
    asked = min(there, PICTURES)
    places, others = [], []
    for place in (there * number // asked for number in range(asked)):
        own = scenes.prompts[place]
        following = scenes.prompts[place + 1 :] + scenes.prompts[:place]
        other = next((one for one in following if _objects(one).isdisjoint(_objects(own))), None)
        if other is not None:
            places.append(place)
            others.append(other)
    if not places:
        raise ConfigError(f"{record}: has no scenes of two prompts without a common object, to test scorers")
    return SelfTest(scenes.images[places], [scenes.prompts[place] for place in places], others)


def _objects(prompt: Prompt) -> set[str]:
    return {group["class"] for group in prompt.get("include") or []}


def _scenes(record: Path) -> Record:
    opened = read_record(record)
    if SCENES not in opened.names(""):
        raise ConfigError(f"{record}: has no {SCENES}: the asset of the prompts has no real scenes")
    return opened
