"""The metrics of one cell's images under a protocol of prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import ConfigError
from ..config.specs import ForeignPromptScoreSpec, PromptScorers, PromptScoreSpec
from ..config.text import PromptProtocol, ScorerKind, split_metric
from ..data.asset_files import read_record
from ..data.captions import read_prompts
from ..data.text_store import captions_sha256
from .distributed_map import distributed_map, from_main, is_main, join_processes
from .foreign_images import ForeignImages
from .image_archive import ImageArchive
from .metrics_file import opened, write_metrics
from .scorers import coco_detector, colour_names, geneval
from .scorers.blip_score import open_blip, open_image_reward
from .scorers.cosine_score import open_clip, open_hps, open_pickscore
from .scorers.drawn_shapes import drawn_shapes
from .scorers.geneval import Prompt
from .scorers.geneval_score import open_cells, open_mask2former
from .scorers.interface import Opener, Parts, Scorer, SelfTest
from .scorers.question_score import check_dpg, check_soft_tifa, open_questions
from .scorers.real_scenes import self_test

OPENERS: dict[ScorerKind, Opener] = {
    "clip": open_clip,
    "pickscore": open_pickscore,
    "hps": open_hps,
    "blip": open_blip,
    "image-reward": open_image_reward,
    "cells": open_cells,
    "mask2former": open_mask2former,
    "questions": open_questions,
}
"""Kind of a scorer -> what opens it."""

HELD_OUT = {"seen": False, "held_out": True}
"""End of a metric's name -> whether training did without the captions that it is over."""


def score_prompt_images(
    spec: PromptScoreSpec | ForeignPromptScoreSpec,
    images: Path,
    weights: Sequence[Path],
    prompts: Path,
    out: Path,
) -> None:
    """Write the metrics as JSON. They do not depend on how many processes score.

    A scorer that cannot be opened, or fails its self-test, gives no metrics; the file says why.

    Args:
        weights: of each scorer, in the order of their names.
        prompts: record of the asset of the prompts.

    Raises:
        ValueError: images, prompts, scorers and protocol that do not belong together, or every scorer is
            refused.
    """
    protocol = spec.protocol
    device = join_processes()
    archive = opened(images, spec)
    lines = read_prompts(spec.prompts, prompts)
    check_prompts(spec, lines, prompts)
    check_captions(archive, lines, prompts)
    shown = [lines[image % len(lines)] for image in range(protocol.images)]
    scorers, unopened = open_scorers(spec, weights, prompts, device)
    refused = from_main(
        unopened | failed(scorers, self_test(prompts, lines) or drawn_shapes(spec.image)) if is_main() else {}
    )
    for name, reason in refused.items():
        print(f"scorer {name} is refused: {reason}")
    passed = not_refused(scorers, refused, out)
    starts = [0, *accumulate(archive.sizes)]

    def read(batch: int) -> tuple[Tensor, Sequence[Prompt]]:
        _check_labels(archive, batch, starts[batch], len(lines))
        return torch.from_numpy(archive.images(batch)), shown[starts[batch] : starts[batch + 1]]

    def score(given: tuple[Tensor, Sequence[Prompt]]) -> dict[str, Tensor]:
        return {name: scorer(*given) for name, scorer in passed.items()}

    results = list(distributed_map(read, score, range(len(archive.sizes))))
    if not is_main():
        return
    values = {name: torch.cat([result[name] for result in results]).tolist() for name in passed}
    write_metrics(
        out,
        spec,
        archive,
        compute_metrics(protocol, passed, values, shown),
        prompts_sha256={name: read_record(prompts).verified(name)[1] for name in spec.prompts.files},
        scorers={
            name: {**scorer.card, **(scorer.remarks(values[name]) if name in passed else {})}
            for name, scorer in scorers.items()
        },
        refused=refused,
    )


def check_prompts(spec: PromptScorers, lines: Sequence[Prompt], record: Path) -> None:
    """Refuse prompts that the protocol cannot use.

    Raises:
        ValueError: naming the file and the key: images that are not a multiple of the prompts, a metric over
            prompts of which there are none, or a line that a scorer cannot judge.
    """
    protocol = spec.protocol
    where = f"{record}: {', '.join(spec.prompts.files)}"
    if protocol.images % len(lines):
        raise ValueError(
            f"{where}: {len(lines)} prompts, but the protocol has images: {protocol.images}; give a "
            "multiple of the prompts"
        )
    checks = [_CHECKS.get((name, entry.kind)) for name, entry in protocol.scorers.items()]
    for check in filter(None, checks):
        for number, line in enumerate(lines, start=1):
            check(line, f"{where}: line {number}")
    for metric in protocol.metrics:
        part = split_metric(metric)[1]
        if part and part != "atoms" and not places_of(part, lines):
            raise ValueError(f"{where}: no prompt is of {part}, which the protocol's metric {metric} is over")


_CHECKS: dict[tuple[str, ScorerKind], Callable[[Prompt, str], None]] = {
    ("geneval", "cells"): geneval.check_prompt,
    ("geneval", "mask2former"): partial(
        geneval.check_prompt, classes=coco_detector.CLASSES, colours=colour_names.COLOURS
    ),
    ("dpg", "questions"): check_dpg,
    ("geneval2", "questions"): check_soft_tifa,
}
"""Name and kind of a scorer -> what refuses a prompt that it cannot judge, given where it stands."""


def check_captions(archive: ImageArchive | ForeignImages, lines: Sequence[Prompt], record: Path) -> None:
    """Refuse images that were sampled from other captions than the prompts.

    Raises:
        ValueError: naming both files.
    """
    store = archive.card.get("text_store")
    if store is None:  # of a network that was given no captions
        return
    asked = captions_sha256([line["prompt"] for line in lines])
    if store["caption_list"] != asked:
        raise ValueError(
            f"{archive.path}: text_store.caption_list: these images show captions of sha256 "
            f"{store['caption_list']}, but the prompts of {record} have {asked}; sample again"
        )


def places_of(part: str, prompts: Sequence[Prompt]) -> list[int]:
    """Which prompts are of a task of GenEval, have a question of a category, or were seen or held out.

    The latter two are of the tasks of which there are both, so that their scores can be compared.
    """
    if part not in HELD_OUT:
        return [place for place, prompt in enumerate(prompts) if part in _parts(prompt)]
    kinds = [(prompt.get("tag"), bool(prompt.get("held_out", False))) for prompt in prompts]
    there = set(kinds)
    return [
        place
        for place, (tag, held_out) in enumerate(kinds)
        if held_out == HELD_OUT[part] and (tag, not held_out) in there
    ]


def _parts(prompt: Prompt) -> set[str | None]:
    return {prompt.get("tag"), *(one["category"] for one in prompt.get("questions") or [])}


def _check_labels(archive: ImageArchive | ForeignImages, batch: int, first: int, prompts: int) -> None:
    labels = archive.labels(batch)
    wrong = [place for place, label in enumerate(labels.tolist()) if label != (first + place) % prompts]
    if wrong:
        image = first + wrong[0]
        raise ValueError(
            f"{archive.path}: image {image} shows prompt {labels[wrong[0]]}, not {image % prompts}; "
            f"sample again"
        )


def open_scorers(
    spec: PromptScorers, weights: Sequence[Path], prompts: Path, device: torch.device
) -> tuple[dict[str, Scorer], dict[str, str]]:
    """The scorers of the protocol by their names, and of those that cannot be opened the reasons.

    Args:
        weights: of each, in the order of the names, all it is made of: model files, or records of fetched
            assets.
        prompts: record of the asset of the prompts, which says what cells of scenes show.

    Raises:
        ConfigError: another number of files than scorers are made of.
    """
    entries = dict(sorted(spec.protocol.scorers.items()))
    needed = sum(len(entry.files) for entry in entries.values())
    if len(weights) != needed:
        raise ConfigError(
            f"--scorers: {len(weights)} files for the scorers {', '.join(entries)}, made of {needed}"
        )
    given = iter(weights)
    opened: dict[str, Scorer] = {}
    unopened: dict[str, str] = {}
    for name, entry in entries.items():
        paths = dict(zip(entry.files, given, strict=False))
        parts = Parts(name, entry, paths, spec.scorers.get(name), prompts, device)
        try:
            opened[name] = OPENERS[entry.kind](parts)
        except (ConfigError, ValueError) as error:
            unopened[name] = str(error)
    return opened, unopened


def failed(scorers: Mapping[str, Scorer], test: SelfTest) -> dict[str, str]:
    """Scorers that fail a self-test, and why."""
    found = {name: scorer.faults(test) for name, scorer in scorers.items()}
    return {name: reason for name, reason in found.items() if reason}


def not_refused(scorers: Mapping[str, Scorer], refused: Mapping[str, str], out: Path) -> dict[str, Scorer]:
    """The scorers that give numbers.

    Raises:
        ValueError: there is none; for each the reason.
    """
    passed = {name: scorer for name, scorer in scorers.items() if name not in refused}
    if not passed:
        raise ValueError("; ".join(f"{out}: scorer {name}: {reason}" for name, reason in refused.items()))
    return passed


def compute_metrics(
    protocol: PromptProtocol,
    scorers: Mapping[str, Scorer],
    values: Mapping[str, Sequence[Any]],
    prompts: Sequence[Prompt],
) -> dict[str, float]:
    """The metrics that a protocol asks for, by name, of the scorers that there are.

    Args:
        values: scorer -> its number, or row of numbers, of each image.
        prompts: of each image.
    """
    found: dict[str, float] = {}
    for metric in protocol.metrics:
        name, part = split_metric(metric)
        if name not in scorers:
            continue
        chosen = list(range(len(prompts)))
        if part in HELD_OUT:
            chosen, part = places_of(part, prompts), ""
        of_part = [values[name][place] for place in chosen]
        found[metric] = scorers[name].overall(of_part, [prompts[place] for place in chosen])[part]
    return found
