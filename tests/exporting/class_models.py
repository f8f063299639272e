"""Model files of tiny untrained networks, one for each kind of `fewstep.Pipeline`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ldm_reference
import torch
from tiny_sd3 import awake

from fewstep.backbones import build
from fewstep.backbones.model_file import backbone_of, save_model
from fewstep.config import dump
from fewstep.config.assets import Asset
from fewstep.config.backbones import Backbone
from fewstep.config.sampling import Choice, Sampling
from fewstep.config.settings import Guidance, Sampler, Tokenizer, Weights
from fewstep.config.specs import ClassPipelineSpec
from fewstep.data.fetching import fetch_asset
from fewstep.data.manifest import known_normalisation
from fewstep.data.normalisation import Normalisation
from fewstep.data.tokenizers import weights_digest

CLASSES = 4
PIXELS = Tokenizer(kind="pixels", shape=[3, 8, 8])
POINTS = Tokenizer(kind="points", shape=[2, 1, 1])
DIT: dict[str, Any] = {"kind": "lightningdit", "depth": 1, "width": 16, "heads": 2, "patch": 4}
UNET: dict[str, Any] = {
    "kind": "unet",
    "width": 8,
    "multipliers": [1, 2],
    "depth": 1,
    "attention": [4],
    "groups": 4,
}
GET: dict[str, Any] = {
    "kind": "get",
    "width": 16,
    "heads": 2,
    "patch": 4,
    "depth": 1,
    "tied": 1,
    "iterations": 2,
}
SIT = {"norm": "layer", "mlp": "gelu", "rope": False}
IMF: dict[str, Any] = {
    "kind": "imf",
    "depth": 1,
    "width": 16,
    "heads": 2,
    "patch": 4,
    "scale": 2.0,
    "interval": [0.0, 1.0],
}
PYRAMID = {"kind": "pyramid", "pyramid": {"steps": [1, 1]}}
LATENTS = {"patch": 2}
DIFFUSERS_VAE: dict[str, Any] = {
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
}
FLUX_VAE = {
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "shift_factor": 0.1159,
    "scaling_factor": 0.3611,
}


def published(folder: Path) -> Path:
    """The record of the asset ``vae``, of the files below ``folder``/source."""
    record = folder / "assets/vae.json"
    fetch_asset("vae", Asset(kind="local", licence="own", path=str(folder / "source")), record)
    return record


def diffusers_vae(folder: Path, **config: Any) -> Path:
    """A tiny AutoencoderKL in the layout of diffusers, below vae/."""
    from diffusers import AutoencoderKL

    AutoencoderKL(**DIFFUSERS_VAE, **config).save_pretrained(folder / "source/vae")
    return published(folder)


def va_vae(folder: Path) -> Path:
    """A tiny VA-VAE as its authors' training leaves it, with the statistics of its latents."""
    ldm_reference.save_checkpoint(folder / "source/vae.pt", ldm_reference.weights(ldm_reference.TINY, 4))
    moments = {
        "mean": torch.linspace(-1, 1, 4).view(1, 4, 1, 1),
        "std": torch.linspace(1, 2, 4).view(1, 4, 1, 1),
    }
    torch.save(moments, folder / "source/statistics.pt")
    return published(folder)


def trained(spec: dict[str, Any]) -> Callable[[Path], Path]:
    """What writes the model file of a tokenizer that is trained here."""

    def write(folder: Path) -> Path:
        path = folder / "tokenizer.safetensors"
        decoder = backbone_of({"backbone": spec})
        save_model(path, awake(build(decoder)).state_dict(), decoder, {"status": "trained"})
        return path

    return write


SD_VAE: dict[str, Any] = {
    "kind": "sd-vae",
    "shape": [4, 4, 4],
    "weights": Weights(asset="vae", file="vae/diffusion_pytorch_model.safetensors"),
    "multiplier": 0.18215,
}
FLUX: dict[str, Any] = {**SD_VAE, "shape": [16, 4, 4], "multiplier": 1.0, "statistics": "given"}
CONV = {"kind": "conv-autoencoder", "shape": [3, 8, 8], "width": 8, "latent": 4}
KL = {"kind": "kl-autoencoder", "shape": [3, 8, 8], "latent": 4, "widths": [8, 8], "groups": 4}
HERE: dict[str, Any] = {
    "kind": "autoencoder",
    "shape": [4, 4, 4],
    "weights": Weights(method="x"),
    "statistics": "computed",
}


@dataclass(frozen=True)
class Kind:
    """A network, its tokenizer and how it is sampled from."""

    backbone: dict[str, Any]
    tokenizer: Tokenizer = PIXELS
    sampler: dict[str, Any] = field(default_factory=lambda: {"kind": "euler"})
    steps: int = 2
    guidance: float | None = 1.5
    expanded: bool = False
    decoder: dict[str, Any] | None = None
    """Network of a tokenizer that is trained here."""
    weights: Callable[[Path], Path] | None = None
    """Writes the tokenizer's weights."""


KINDS = {
    "lightningdit": Kind(DIT | {"qk_norm": True}, sampler={"kind": "jump"}),
    "two outputs": Kind(DIT | {"outputs": 2}, sampler={"kind": "mix"}),
    "expanded interval": Kind(DIT | {"target_time": False}, sampler={"kind": "cm"}, expanded=True),
    "f2d2, with a scalar": Kind(DIT | {"scalar": True}, sampler={"kind": "jump"}),
    "sit": Kind(DIT | SIT | {"target_time": False}),
    "dit": Kind(DIT | SIT | {"target_time": False, "predicts": "noise"}),
    "pyramid": Kind(DIT | {"target_time": False, "scales": 2}, sampler=PYRAMID),
    "u-net": Kind(UNET | {"target_time": True}, sampler={"kind": "cm"}),
    "u-net without labels": Kind(UNET | {"conditional": False, "target_time": False}, guidance=None),
    "mlp": Kind({"kind": "mlp", "width": 8, "depth": 1}, sampler={"kind": "jump"}),
    "get": Kind(GET, steps=1, guidance=None),
    "improved meanflow": Kind(IMF, sampler={"kind": "jump"}, guidance=None),
    "autoencoder": Kind(DIT | LATENTS, Tokenizer(**HERE), decoder=CONV, weights=trained(CONV)),
    "kl-autoencoder": Kind(DIT | LATENTS, Tokenizer(**HERE), decoder=KL, weights=trained(KL)),
    "va-vae": Kind(
        DIT | LATENTS,
        Tokenizer(
            kind="vavae",
            shape=[4, 4, 4],
            weights=Weights(asset="vae", file="vae.pt"),
            network=ldm_reference.TINY,
            statistics="published",
            statistics_file="statistics.pt",
        ),
        weights=va_vae,
    ),
    "sd-vae": Kind(
        DIT | LATENTS, Tokenizer(**SD_VAE), weights=lambda folder: diffusers_vae(folder, latent_channels=4)
    ),
    "flux-vae": Kind(
        DIT | LATENTS,
        Tokenizer(**FLUX, mean=[0.1159] * 16, std=[2.769316] * 16),
        weights=lambda folder: diffusers_vae(folder, latent_channels=16, **FLUX_VAE),
    ),
}
"""Those that become a folder."""
MOONS = Kind({"kind": "mlp", "width": 8, "depth": 1}, POINTS, guidance=None)
"""Its samples are points of the plane."""


def write_model(folder: Path, kind: Kind) -> tuple[Path, ClassPipelineSpec]:
    """``folder``/model.safetensors, and the spec of its pipeline."""
    folder.mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = kind.weights(folder) if kind.weights else None
        shape = kind.tokenizer.shape
        backbone: Backbone = backbone_of({"backbone": {**kind.backbone, "shape": shape, "classes": CLASSES}})
        net = awake(build(backbone), frozen=True)
    if kind.tokenizer.measured:
        normalisation = Normalisation(mean=[0.1, -0.2, 0.3, 0.0], std=[0.5, 1.5, 2.0, 1.0], multiplier=1.0)
    else:
        normalisation = known_normalisation(kind.tokenizer, weights)
    points = kind.tokenizer.kind == "points"
    guidance = None if kind.guidance is None else Guidance(scale=kind.guidance)
    sampling = Sampling(
        title="A tiny model",
        licence="CC BY 4.0",
        samplers={"default": Choice(sampler=Sampler.model_validate(kind.sampler), guidance=guidance)},
        expanded=kind.expanded,
        image=shape if points else [3, 8, 8],
        uint8="none" if points else "round",
        decoder=kind.decoder and backbone_of({"backbone": kind.decoder}),
        tokenizer_file=weights and os.path.relpath(weights, folder),
    )
    card = {
        "status": "trained",
        "steps": 8,
        "batch": 4,
        "seed": 0,
        "latents": {
            "tokenizer": kind.tokenizer.model_dump(mode="json"),
            "weights": weights_digest(weights),
            "normalisation": normalisation.model_dump(mode="json"),
        },
        "sampling": sampling.model_dump(mode="json"),
    }
    path = folder / "model.safetensors"
    save_model(path, net.state_dict(), backbone, card)
    return path, ClassPipelineSpec(method="tiny", variant="base", sampling=sampling)


def export_words(model: Path, spec: ClassPipelineSpec, out: Path) -> list[str]:
    """Arguments of `python -m fewstep.pipeline` that write the folder ``out``."""
    file = model.with_name("spec.json")
    file.write_text(dump(spec), encoding="utf-8")
    words = ["--spec", str(file), "--model", str(model), "--out", str(out / "model_index.json")]
    if spec.sampling.tokenizer_file is not None:
        words += ["--tokenizer", str(model.parent / spec.sampling.tokenizer_file)]
    return words
