"""A tiny text-to-image model as a folder of diffusers: teacher, autoencoder, CLIP, manifest of latents."""

from __future__ import annotations

from pathlib import Path

import tiny_text
import torch
from sd3_files import SD3, save_teacher, write_spec
from tiny_sd3 import awake

from fewstep import pipeline
from fewstep.backbones import build
from fewstep.backbones.model_file import save_model
from fewstep.common.files import sha256
from fewstep.config import dump
from fewstep.config.backbones import KlAutoencoder
from fewstep.config.settings import Dataset, Tokenizer, Weights
from fewstep.config.specs import LatentCard, PipelineSpec
from fewstep.config.text import TextEncoder
from fewstep.data.manifest import IndexEntry, Manifest, Normalisation, ShardEntry

WORDS = ["<pad>", "<unk>", "<s>", "</s>", "a", "blue", "cat", "dog", "red"]
VAE = KlAutoencoder(kind="kl-autoencoder", shape=[3, 16, 16], latent=4, widths=[8, 8], groups=4)
CLIP = tiny_text.CLIP.model_copy(update={"length": 10, "vocabulary": len(WORDS)})
TEXT = TextEncoder(kind="clip", weights=Weights(method="clip"), length=10, t5_length=6, dtype="float32")
TOKENIZER = Tokenizer(
    kind="autoencoder", shape=SD3.shape, weights=Weights(method="vae"), statistics="computed"
)
NORMALISATION = Normalisation(mean=[0.4, -1.0, 2.0, 0.1], std=[0.5, 1.5, 3.0, 0.02], multiplier=1.0)


def manifest_of(weights: Path) -> Manifest:
    dataset = Dataset(asset="x", format="scenes", resolution=16, classes=2, images=4)
    return Manifest(
        name="scenes",
        dataset=dataset,
        tokenizer=TOKENIZER,
        images=4,
        shape=SD3.shape,
        views=1,
        dtype="float32",
        mean=NORMALISATION.mean,
        std=NORMALISATION.std,
        normalisation=NORMALISATION,
        histogram=[2, 2],
        shards=[ShardEntry(name="shard-00000.tar", bytes=1, sha256="0" * 64, images=4)],
        index=IndexEntry(name="manifest.index.npz", sha256="0" * 64),
        weights=sha256(weights),
        source="0" * 64,
        spec="0",
    )


def save_pipeline(folder: Path, **changes: object) -> tuple[Path, Path]:
    """The folder, and the model file of the teacher in it."""
    folder.mkdir(parents=True, exist_ok=True)
    vae, clip, manifest = folder / "vae.safetensors", folder / "clip.safetensors", folder / "manifest.json"
    torch.manual_seed(0)
    save_model(vae, awake(build(VAE)).state_dict(), VAE, {"status": "trained"})
    save_model(
        clip, awake(build(CLIP)).state_dict(), CLIP, {"status": "trained", "text": {"vocabulary": WORDS}}
    )
    manifest.write_text(dump(manifest_of(vae)), encoding="utf-8")
    latents = {"tokenizer": TOKENIZER.model_dump(mode="json"), "weights": sha256(vae)}
    text = {"encoder": TEXT.model_dump(mode="json"), "weights": {"clip": sha256(clip)}}
    teacher = save_teacher(folder / "teacher.safetensors", {"latents": latents, "text": text})
    card = LatentCard(name="scenes", shape=SD3.shape, classes=2, images=4, tokenizer=TOKENIZER)
    spec = PipelineSpec(method="teacher", backbone=SD3, latents=card, decoder=VAE, text=TEXT, encoder=CLIP)
    spec = spec.model_copy(update=changes)
    out = folder / "pipeline/model_index.json"
    words = ["--spec", write_spec(folder / "pipeline.json", spec), "--model", str(teacher)]
    words += ["--tokenizer", str(vae), "--latents", str(manifest), "--encoder", str(clip), "--out", str(out)]
    pipeline.main(words)
    return out.parent, teacher
