"""A class-conditional model as a folder that `fewstep.Pipeline`, or diffusers with its pipeline.py, loads."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import diffusers

from .. import __version__
from ..common.cli import first_few
from ..common.files import atomic_folder
from ..common.provenance import PACKAGE, backbone_module
from ..config import ConfigError, digest
from ..config.base import read_sealed
from ..config.specs import ClassPipelineSpec
from ..data.asset_files import read_record
from ..data.tokenizers import KlCodec, open_tokenizer, weights_digest
from .bundle import bundle
from .class_pipeline import Model
from .loading import Opened, open_model
from .replaced_folder import CARD, as_json, checked_folder, write_about

SHOWN = ("fid", "fdd", "frechet", "is", "kid", "precision", "recall", "mmd")
"""Metrics that a model card lists."""


def export_class_pipeline(
    spec: ClassPipelineSpec, model: Path, tokenizer: Path | None, latents: Path | None, out: Path
) -> None:
    """Write the folder; it replaces an older one.

    Args:
        model: the network.
        tokenizer: its weights, if it has any.
        latents: manifest with the normalisation, where the model file has none.
        out: model_index.json of the folder.

    Raises:
        ValueError: files that do not belong together, or another folder where this one would be.
    """
    folder = checked_folder(out)
    opened = open_model(model, tokenizer, latents, known=spec.sampling)
    made = _model(opened)
    kinds = [
        opened.card["backbone"]["kind"],
        *([spec.sampling.decoder.kind] if spec.sampling.decoder else []),
    ]
    modules = [backbone_module(PACKAGE, kind) for kind in kinds]
    text, package = bundle("exporting.class_pipeline", "Pipeline", modules, __version__)
    index = {
        "_class_name": "Pipeline",
        "_diffusers_version": diffusers.__version__,
        "model": ["model", "Model"],
    }
    about = {
        "method": spec.method,
        "variant": spec.variant,
        "model": opened.card["sha256"],
        "status": opened.card["status"],
        "tokenizer": weights_digest(opened.weights),
        "spec": digest(spec),
    }
    with atomic_folder(folder) as temporary:
        made.save_pretrained(temporary / "model")
        part = f"from {package}.exporting.class_pipeline import Model\n"
        for name, content in (
            ("model_index.json", as_json(index)),
            ("pipeline.py", text),
            ("model/model.py", part),
            (CARD, model_card(spec, opened, model)),
        ):
            (temporary / name).write_text(content, encoding="utf-8")
        write_about(temporary, about)


def _model(opened: Opened) -> Model:
    """Network and decoder as one module of diffusers."""
    codec = open_tokenizer(opened.tokenizer, opened.weights, opened.sampling.decoder)
    decoder: Any = getattr(codec, "network", None)
    vae = None
    if isinstance(codec, KlCodec):
        vae = {key: value for key, value in decoder.config.items() if not key.startswith("_")}
    sampling = opened.sampling.model_copy(update={"tokenizer_file": None})
    made: Model = Model(
        backbone=opened.backbone.model_dump(mode="json"),
        tokenizer=opened.tokenizer.model_dump(mode="json"),
        normalisation=opened.normalisation.model_dump(mode="json"),
        sampling=sampling.model_dump(mode="json"),
        vae=vae,
        card={key: value for key, value in opened.card.items() if key not in ("backbone", "sampling")},
    )
    made.net.load_state_dict(opened.net.state_dict())
    if made.decoder is not None:
        made.decoder.load_state_dict(decoder.state_dict())
    return made


def model_card(spec: ClassPipelineSpec, opened: Opened, model: Path) -> str:
    """README.md of the folder: what the model is, its measured metrics, its licence, and how it is called."""
    card, sampling = opened.card, opened.sampling
    few = sampling.samplers.get("default")
    many = next((name for name in sampling.samplers if name != "default"), "1")
    steps = many if few is None or few.sampler.kind == "euler" else "2"
    classes = list(range(min(2, opened.backbone.classes)))
    trained = (
        f"Trained for {card['steps']} steps with a global batch of {card['batch']}, seed {card['seed']}."
        if card["status"] == "trained"
        else "Published weights, which were not trained here."
    )
    paper = f" ({sampling.paper})" if sampling.paper else ""
    names = card["latents"].get("names", [])
    named = f" ({first_few(names)})" if names else ""
    rows = [
        f"| {cell} | {name} | {value:.4g} | {protocol} |"
        for cell, protocol, metrics in measured(model, card["sha256"])
        for name, value in metrics.items()
    ]
    table = ["| sampler and steps | metric | value | protocol |", "| --- | --- | --- | --- |", *rows]
    return "\n".join(
        [
            "---",
            f"license: {json.dumps('other')}",
            f"license_name: {json.dumps(_identifier(sampling.licence))}",
            "library_name: diffusers",
            "tags: [few-step-generation, class-conditional]",
            "---",
            f"# {sampling.title}",
            "",
            f"{sampling.title}{paper}, row `{spec.method}/{spec.variant}` of fewstep {__version__}; "
            f"{opened.card['backbone']['kind']}, {opened.backbone.classes} classes{named}, images of "
            f"{sampling.image[1]}x{sampling.image[2]}. {trained}",
            "",
            "```python",
            "from diffusers import DiffusionPipeline",
            "",
            'folder = "."  # this folder',
            "own = {'custom_pipeline': folder, 'trust_remote_code': True}",
            "pipe = DiffusionPipeline.from_pretrained(folder, **own)",
            f"images = pipe({classes}, steps={steps}, seed=0).images",
            "```",
            "",
            "With fewstep installed `fewstep.Pipeline.from_pretrained(folder)` gives the same images, and "
            "runs no code from the folder.",
            "",
            "## Measured",
            "",
            *(table if rows else ["Nothing yet."]),
            "",
            "## Licence",
            "",
            f"Weights: {sampling.licence}, of what they were made from.{_decoder_licence(opened)} Code in "
            "pipeline.py: Apache-2.0.",
            "",
        ]
    )


def _decoder_licence(opened: Opened) -> str:
    """That of a published autoencoder, whose weights are in the folder too."""
    if opened.tokenizer.weights is None or opened.tokenizer.weights.asset is None or opened.weights is None:
        return ""
    body = read_record(opened.weights).body
    return f" The decoder's: {body.licence} ({body.title or body.name})."


def _identifier(licence: str) -> str:
    """A licence's name as the hub wants it: small letters, digits, dots and hyphens."""
    return re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-.")


def measured(model: Path, checksum: str) -> list[tuple[str, str, dict[str, float]]]:
    """Cell, protocol and metrics of the scores beside a model file that are of it.

    Args:
        checksum: sha256 in its card.
    """
    found = []
    for path in sorted(model.parent.glob("*-*/*.json")):
        try:
            metrics = read_sealed(path, "metrics")
        except (ConfigError, OSError):
            continue
        if metrics.get("model", {}).get("sha256") == checksum:
            values = {name: metrics[name] for name in SHOWN if name in metrics}
            found.append((path.parent.name, path.stem, values))
    return found
