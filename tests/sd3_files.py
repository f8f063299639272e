"""Tiny SD3s as files: a teacher, a teacher with a smooth time, students of both, their exports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from tiny_sd3 import awake, calm_time, sd3

from fewstep import export, reembed
from fewstep.backbones import build
from fewstep.backbones.model_file import load_base, load_model, save_model
from fewstep.common.files import sha256
from fewstep.config import dump
from fewstep.config.backbones import Lora, Sd3
from fewstep.config.base import Strict
from fewstep.config.methods import Reembed
from fewstep.config.settings import Guidance
from fewstep.config.specs import ExportSpec, ReembedSpec

SD3 = sd3(
    shape=[4, 8, 8], layers=2, heads=4, head_width=16, positions=8, context=32, pooled=24,
    target_time=False, time_scale=1000.0,
)  # fmt: skip
LORA = Lora(rank=8, alpha=32.0)
SMOOTH = {"time_scale": 20.0}


def write_spec(path: Path, spec: Strict) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dump(spec), encoding="utf-8")
    return str(path)


def save_teacher(path: Path, card: dict[str, object] | None = None) -> Path:
    """A teacher whose embedding of time is as smooth as a trained one's."""
    torch.manual_seed(1)
    net = awake(build(SD3))
    calm_time(net.state_dict())
    about = {"status": "trained", "latents": {}, "text": {}, "loss": "l", "code": "c"}
    save_model(path, net.state_dict(), SD3, about | (card or {}))
    return path


def save_student(path: Path, base: Path, lora: Lora = LORA, seed: int = 2) -> tuple[Path, Sd3]:
    """A student of the network in ``base``, as training writes one."""
    time_scale = load_model(base)[1]["backbone"]["time_scale"]
    spec = SD3.model_copy(update={"time_scale": time_scale, "target_time": True, "lora": lora})
    torch.manual_seed(seed)
    net = build(spec)
    load_base(net, spec, base)
    awake(net)
    trained = {name: value for name, value in net.state_dict().items() if name in net.trained}
    save_model(path, trained, spec, {"status": "trained", "base": sha256(base), "seed": 0, "spec": "5"})
    return path, spec


def reembedded(folder: Path, teacher: Path, **options: object) -> Path:
    entry = Reembed.model_validate({"of": "teacher", "steps": 300} | options)
    spec = ReembedSpec(method="smooth", backbone=SD3.model_copy(update=SMOOTH), reembed=entry)
    out = folder / "smooth.safetensors"
    reembed.main(
        ["--spec", write_spec(folder / "reembed.json", spec), "--model", str(teacher), "--out", str(out)]
    )
    return out


@dataclass(frozen=True)
class Exported:
    lora: Path
    target: Path
    one: Path


def exported(
    folder: Path, student: Path, spec: Sd3, base: Path, origin: Path | None = None, limit: float = 0.01
) -> Exported:
    asked = ExportSpec(
        method="decm",
        variant="base",
        backbone=spec,
        guidance=Guidance(scale=4.0),
        licence="CC BY-SA",
        limit=limit,
    )
    files = Exported(
        folder / "pytorch_lora_weights.safetensors",
        folder / "target_embedder.safetensors",
        folder / "one-file/pytorch_lora_weights.safetensors",
    )
    words = ["--spec", write_spec(folder / "export.json", asked), "--model", student, "--base", base]
    words += ["--origin", *([origin] if origin else []), "--target-embedder", files.target]
    words += ["--one-file", files.one, "--out", files.lora]
    export.main([str(word) for word in words])
    return files
