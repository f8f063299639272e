"""Samples of a training while it runs, always of the same noise and labels, and their Fréchet distance."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..backbones import build
from ..common.files import atomic
from ..config.settings import Protocol
from ..config.specs import ScoreSpec
from .features import Extractor, FeatureCollector
from .generation import PLAIN, image_labels, open_sampler, read_normalisation
from .generator import CHUNK
from .reference_statistics import published_file, read_reference
from .scoring import compute_metrics

SIDE = 8
"""Images in a row of a grid, and rows."""


@dataclass(frozen=True)
class Watching:
    """Samples the weights of one step of a training: a grid as a PNG, and a Fréchet distance of few images.

    Such a distance is larger than that of a table, and tells only whether a training gets better.

    Args:
        spec: a score of the network that is trained, which says sampler, steps, labels and features.
        folder: where ``STEP.png`` goes.
        manifest: of the latents.
        tokenizer: weights of the decoder, if it has any.
        extractor: weights of the protocol's extractor, if it has any.
        reference: npz that fewstep.reference made, or the record of a fetched asset that holds mu and sigma;
            without it only the grid is made.
    """

    spec: ScoreSpec
    folder: Path
    manifest: Path
    tokenizer: Path | None
    extractor: Path | None
    reference: Path | None

    @torch.no_grad()
    def __call__(self, step: int, weights: dict[str, Tensor], device: torch.device) -> dict[str, float]:
        """Write the grid; the Fréchet distance of up to `CHUNK` images, by its name, if there is a reference.

        Raises:
            ValueError: files that do not belong together, or an image with NaN.
        """
        images = self._images(weights, device)
        self._write_grid(images, self.folder / f"{step}.png")
        if self.reference is None:
            return {}
        protocol: Protocol = self.spec.protocol.model_copy(update={"metrics": ["fid"]})
        extract = Extractor(protocol, self.extractor, self.spec.extractor, device)
        # Of the protocol itself: one of fewer metrics may take another file.
        stored = self.spec.protocol.stored
        path = published_file(self.reference, protocol) if stored else self.reference
        real = read_reference(path, protocol, self.spec.sample.image, extract.sha256)
        collector = FeatureCollector(protocol, device)
        collector.add(extract(images))
        return {f"fid_of_{len(images)}": compute_metrics(protocol, collector, real)["fid"]}

    def _images(self, weights: dict[str, Tensor], device: torch.device) -> Tensor:
        """Images (n, C, H, W), uint8, on the CPU."""
        spec = self.spec.sample
        with torch.random.fork_rng(devices=[]):  # initial weights are drawn, which a training must not notice
            net = build(spec.backbone)
        net.load_state_dict(weights)
        normalisation = read_normalisation(spec, self.manifest, self.tokenizer)
        sampler = open_sampler(spec, net.eval(), normalisation, self.tokenizer, PLAIN, device, "the network")
        # Few at once: the training fills a GPU's memory.
        return sampler.on_host(image_labels(spec)[:CHUNK], SIDE**2)

    @staticmethod
    def _write_grid(images: Tensor, path: Path) -> None:
        """The first images as rows of `SIDE`, atomically."""
        side = min(SIDE, len(images))
        shown = images[: len(images) // side * side][: SIDE**2]
        rows = shown.unflatten(0, (-1, side)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary:
            Image.fromarray(rows.squeeze(-1).numpy()).save(temporary)
