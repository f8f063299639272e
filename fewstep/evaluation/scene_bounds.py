"""Scores of real scenes, which bound those of sampled ones: with their own captions, and with others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..common.files import write_text
from ..common.provenance import bounds_digest
from ..config import ConfigError, digest
from ..config.assets import Scenes
from ..config.base import sealed
from ..config.specs import BoundsSpec
from ..data.asset_files import read_record
from ..data.captions import read_prompts
from ..data.scenes import captions, draw
from ..data.tokenizers import Codec, open_tokenizer, weights_digest
from .distributed_map import join_processes
from .prompt_scoring import check_prompts, compute_metrics, failed, not_refused, open_scorers
from .quantization import quantize, refuse_nan
from .scorers.geneval import Prompt
from .scorers.interface import Scorer
from .scorers.real_scenes import self_test

CHUNK = 250
"""Images that go through the tokenizer at once."""


@dataclass(frozen=True)
class DrawnScenes:
    """Scenes with captions, drawn as those of the data set are; captions that training did not have, too."""

    images: Tensor
    """uint8 (n, 3, 32, 32)."""
    own: list[Prompt]
    """The prompt of each image."""
    others: list[Prompt]
    """For each image the prompt of another one."""
    swapped: dict[int, Prompt]
    """Image -> a caption that differs from its own only in what its kind is about, if there is one."""


def draw_scenes(scenes: Scenes, prompts: Sequence[Prompt], of_each: int, where: str) -> DrawnScenes:
    """``of_each`` scenes of every prompt; image i shows prompt i modulo their number.

    Args:
        where: file of the prompts, for the message.

    Raises:
        ConfigError: a prompt that is no caption of scenes.
        ValueError: as for `data.scenes.draw`.
    """
    by_text = {caption.text: caption for caption in captions()}
    for number, prompt in enumerate(prompts, start=1):
        if prompt["prompt"] not in by_text:
            raise ConfigError(f"{where}: line {number}: prompt: {prompt['prompt']!r} is no caption of scenes")
    shown = [by_text[prompt["prompt"]] for prompt in prompts]
    choices = [(list(caption.arrangements()), caption.swaps()) for caption in shown]
    random = np.random.default_rng([scenes.seed, *b"bounds"])
    cells: list[tuple[int, ...]] = []
    swapped: dict[int, Prompt] = {}
    for image, (arrangements, swaps) in enumerate(choices * of_each):
        cells.append(arrangements[random.integers(len(arrangements))])
        if swaps:
            swapped[image] = swaps[random.integers(len(swaps))].metadata()
    images = torch.from_numpy(draw(scenes, np.array(cells))).permute(0, 3, 1, 2).contiguous()
    count = len(prompts)
    # Each turn through the prompts has other ones for the same captions.
    shifts = [count * (turn + 1) // (of_each + 1) for turn in range(of_each)]
    others = [prompts[(place + shift) % count] for shift in shifts for place in range(count)]
    return DrawnScenes(images, [*prompts] * of_each, others, swapped)


def shares_above_swapped(scorer: Scorer, scenes: DrawnScenes) -> dict[str, float]:
    """Kind of prompt -> share of its scenes whose own caption scores higher than the swapped one.

    Scenes without a swapped caption are left out.
    """
    places = list(scenes.swapped)
    images = scenes.images[places]
    own = scorer(images, [scenes.own[place] for place in places])
    swapped = scorer(images, [scenes.swapped[place] for place in places])
    found = defaultdict(list)
    for place, above in zip(places, (own > swapped).tolist(), strict=True):
        found[scenes.own[place]["tag"]].append(above)
    return {tag: sum(above) / len(above) for tag, above in found.items()}


@torch.no_grad()
def reconstructed(images: Tensor, codec: Codec, channels: int, rule: str) -> Tensor:
    """Images uint8 (n, C, H, W) after a tokenizer.

    Args:
        channels: of its latents; an encoding may hold more.
        rule: by which images become bytes again.

    Raises:
        ValueError: one holds NaN.
    """
    parts = []
    for indices in torch.arange(len(images)).split(CHUNK):
        encoded = codec.encode(images[indices].float() / 127.5 - 1, indices.tolist())
        decoded = codec.decode(encoded[:, :channels]).cpu()
        refuse_nan(decoded.isnan().any())
        parts.append(quantize(decoded, rule))
    return torch.cat(parts)


def write_bounds(
    spec: BoundsSpec, weights: Sequence[Path], record: Path, tokenizer: Path | None, out: Path
) -> None:
    """Write the bounds as JSON.

    Under `metrics` stand those of the protocol, for real scenes with their own captions (`real`), the same
    after the tokenizer (`reconstructed`), and real scenes with the captions of `others`; under
    `above_swapped`, for each scorer, what `shares_above_swapped` finds.

    A scorer that cannot be opened, or fails its self-test, gives no numbers; the file says why.

    Args:
        weights: of each scorer, in the order of their names.
        record: of the asset of the prompts.
        tokenizer: its weights, if it has any.

    Raises:
        ValueError: prompts, tokenizer and protocol that do not belong together, or every scorer is refused.
    """
    protocol = spec.protocol
    lines = read_prompts(spec.prompts, record)
    check_prompts(spec, lines, record)
    where = f"{record}: {', '.join(spec.prompts.files)}"
    scenes = draw_scenes(spec.scenes, lines, spec.scenes_of_each, where)
    device = join_processes()
    scorers, refused = open_scorers(spec, weights, record, device)
    test = self_test(record, lines)
    assert test is not None
    refused |= failed(scorers, test)
    passed = not_refused(scorers, refused, out)
    codec = open_tokenizer(spec.tokenizer, tokenizer, spec.decoder, device)
    decoded = reconstructed(scenes.images, codec, spec.tokenizer.shape[0], protocol.uint8)

    def metrics(images: Tensor, prompts: Sequence[Prompt]) -> Mapping[str, float]:
        values = {name: scorer(images, prompts).tolist() for name, scorer in passed.items()}
        return compute_metrics(protocol, passed, values, prompts)

    opened = read_record(record)
    content = {
        "metrics": {
            "real": metrics(scenes.images, scenes.own),
            "reconstructed": metrics(decoded, scenes.own),
            "others": metrics(scenes.images, scenes.others),
        },
        "above_swapped": {name: shares_above_swapped(scorer, scenes) for name, scorer in passed.items()},
        "images": len(scenes.images),
        "protocol": protocol.model_dump(mode="json"),
        "prompts_sha256": {name: opened.verified(name)[1] for name in spec.prompts.files},
        "scorers": {name: scorer.card for name, scorer in scorers.items()},
        "refused": refused,
        "tokenizer": weights_digest(tokenizer),
        "spec": digest(spec),
        "code": bounds_digest(),
    }
    write_text(out, sealed(content))
