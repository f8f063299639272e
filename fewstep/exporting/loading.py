"""Trained networks, ready to make images: from model files and from folders of `fewstep.Pipeline`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..backbones.model_file import backbone_of, check_tokenizer, load_model, network_of
from ..common.files import first_line, reading
from ..config import ConfigError
from ..config.backbones import ClassNetwork
from ..config.base import parse, read_spec
from ..config.sampling import Sampling
from ..config.settings import Tokenizer
from ..data.manifest import known_normalisation, read_manifest
from ..data.normalisation import Normalisation
from ..data.tokenizers import open_tokenizer, weights_digest
from ..evaluation.generator import Generator
from .class_pipeline import Pipeline


@dataclass(frozen=True)
class Opened:
    """A model file with what its images depend on."""

    net: nn.Module
    backbone: ClassNetwork
    card: dict[str, Any]
    tokenizer: Tokenizer
    weights: Path | None
    """Of the tokenizer, if it has any."""
    normalisation: Normalisation
    sampling: Sampling


def load(
    path: str | Path,
    tokenizer: str | Path | None = None,
    latents: str | Path | None = None,
    sampling: str | Path | None = None,
    device: str | torch.device | None = None,
) -> Generator:
    """A model that makes images: ``load(path)([207, 360], steps=2, seed=3)`` is a list of pictures.

    Args:
        path: model.safetensors, or a folder of `fewstep.Pipeline`.
        tokenizer: its weights, where they are not at the place that the model's card names: a model file, or
            the record of an asset.
        latents: manifest.json with the normalisation, where the card has none.
        sampling: spec of the stage `sampling`, where the card has none.
        device: by default a GPU if there is one.

    Raises:
        ValueError: a file that is damaged or missing, that belongs to something else, or whose card lacks
            something; the message names the option that gives it. Or a device that is not here.
    """
    path = Path(path)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        raise ConfigError(f"device {device}: {first_line(error)}") from None
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise ConfigError(f"{path}: no model_index.json; name a model file or a folder of a pipeline")
        with reading(path, "a folder of fewstep.Pipeline"):
            pipe = Pipeline.from_pretrained(path)
        pipe.to(device)
        return pipe.generator
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; name a model.safetensors or a folder of a pipeline")
    known = None if sampling is None else read_spec(Sampling, Path(sampling))
    weights, manifest = (None if each is None else Path(each) for each in (tokenizer, latents))
    found = open_model(path, weights, manifest, known)
    codec = open_tokenizer(found.tokenizer, found.weights, found.sampling.decoder, device)
    net = found.net.to(device)
    names = found.card["latents"].get("names", [])
    return Generator(net, found.backbone, codec, found.normalisation, found.sampling, str(path), names)


def open_model(
    path: Path,
    tokenizer: Path | None = None,
    latents: Path | None = None,
    known: Sampling | None = None,
) -> Opened:
    """Read a model file; arguments and errors as for `load`.

    Args:
        known: how it is sampled from, instead of what its card says.
    """
    tensors, card = load_model(path)
    backbone = backbone_of(card)
    if not isinstance(backbone, ClassNetwork):
        raise ConfigError(f"{path}: backbone.kind: {backbone.kind} makes no images of classes")
    net = network_of(path, tensors, backbone, card)
    if known is None:
        if "sampling" not in card:
            raise ConfigError(
                f"{path}: sampling: not in its card, which is older; pass --sampling, "
                "<results>/specs/sampling/METHOD/VARIANT.json, which snakemake makes"
            )
        known = parse(Sampling, card["sampling"], str(path), "sampling")
    entry = card.get("latents", {})
    if "tokenizer" not in entry:
        raise ConfigError(f"{path}: latents.tokenizer: not in its card: it is no network of latents")
    own = parse(Tokenizer, entry["tokenizer"], str(path), "latents.tokenizer")
    if own.kind == "points":
        raise ConfigError(f"{path}: its samples are points, not images")
    if tokenizer is None and known.tokenizer_file is not None:
        tokenizer = path.parent / known.tokenizer_file
    weights = None if own.plain else tokenizer
    if not own.plain and (weights is None or not weights.is_file()):
        where = "its card names none" if weights is None else f"{weights} is not there"
        raise ConfigError(f"{path}: the tokenizer's weights: {where}; pass --tokenizer")
    checksum = weights_digest(weights)
    check_tokenizer(card, own, path, checksum)
    if latents is not None:
        manifest = read_manifest(latents)
        if (manifest.tokenizer, manifest.weights) != (own, checksum):
            raise ConfigError(f"{latents}: latents of another tokenizer than that of {path}")
        normalisation = manifest.normalisation
    elif "normalisation" in entry:
        normalisation = parse(Normalisation, entry["normalisation"], str(path), "latents.normalisation")
    elif own.measured:
        raise ConfigError(
            f"{path}: latents.normalisation: not in its card, which is older; pass --latents, the "
            "manifest.json of its latents"
        )
    else:
        normalisation = known_normalisation(own, weights)
    return Opened(net, backbone, card, own, weights, normalisation, known)
