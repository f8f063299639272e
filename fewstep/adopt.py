"""Check published weights against our network and store them as a model file.

    python -m fewstep.adopt --spec SPEC --asset assets/NAME.json --out model.safetensors

``--asset`` is the record that fetch wrote; the files lie in the folder beside it, assets/NAME/.
The card of the result says ``status: released``: these weights were not trained here. Weights of another
convention (backbones/convention.py) are converted, and the card says how.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .backbones import build
from .backbones.convention import ours
from .backbones.state import inherit
from .checkpoint import save_model
from .common.cli import parser, run
from .common.files import sha256
from .config import ConfigError, digest, read_spec
from .config.settings import LightningDiT
from .config.specs import AdoptSpec
from .core.rng import fold_in


def main(argv: list[str] | None = None) -> None:
    """Run the stage.

    Raises:
        ConfigError: a spec or record that cannot be read, or does not name the file.
        ValueError: a file that is damaged, is unsafe to open, or does not fit the backbone.
    """
    arguments = parser(__doc__)
    arguments.add_argument("--asset", type=Path, required=True, help="record of the fetched asset")
    given = arguments.parse_args(argv)
    spec = read_spec(AdoptSpec, given.spec)
    if not isinstance(spec.backbone, LightningDiT):
        raise ConfigError(f"{given.spec}: backbone.kind: only lightningdit weights can be adopted")
    path, checksum = locate(given.asset, spec)
    tensors, place = read(path)
    net, converted = adopt(tensors, spec.backbone, path, spec.reverse)
    card = {
        "status": "released",
        "source": {
            "asset": spec.asset,
            "file": spec.file,
            "sha256": checksum,
            "weights": place,
            "converted": converted,
        },
        "latents": {"tokenizer": spec.tokenizer.model_dump(mode="json")},
        "sampler": spec.sampler and spec.sampler.model_dump(mode="json"),
        "spec": digest(spec),
        "code": None,
    }
    save_model(given.out, net.state_dict(), spec.backbone, card)


def locate(record: Path, spec: AdoptSpec) -> tuple[Path, str]:
    """Path and verified SHA-256 of the file that ``spec`` names in a fetched asset."""
    try:
        content: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        name = content["name"]
        checksums = {file["name"]: file["sha256"] for file in content["files"]}
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ConfigError(f"{record}: not a record of a fetched asset: {error!r}") from None
    if name != spec.asset:
        raise ConfigError(f"{record}: is the record of {name}, but the spec asks for {spec.asset}")
    if spec.file not in checksums:
        raise ConfigError(f"{record}: has no file {spec.file}; it has {', '.join(sorted(checksums))}")
    path = record.with_suffix("") / spec.file
    if not path.is_file():
        raise ConfigError(f"{path}: no such file, though {record} lists it; fetch the asset again")
    found = sha256(path)
    if found != checksums[spec.file]:
        raise ValueError(
            f"{path}: sha256 is {found}, but {record} says {checksums[spec.file]}; fetch the asset again"
        )
    return path, found


def adopt(
    published: dict[str, Tensor], backbone: LightningDiT, path: Path, reverse: bool = False
) -> tuple[nn.Module, list[str]]:
    """The network of ``backbone`` with published weights, in float32, and what was converted.

    ``path`` is for messages; ``reverse``: the weights are those of a flow from data to noise.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    tensors = {name: _widened(tensor, f"{path}: {name}") for name, tensor in published.items()}
    _compare(tensors, backbone, path)
    tensors, converted = ours(tensors, backbone, reverse)
    # The target-time embedding that published teachers lack starts at random, but always the same.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fold_in(0, "adopt"))
        net = build(backbone)
    inherit(net, tensors, str(path))
    _try(net, backbone, path)
    return net, converted


def read(path: Path) -> tuple[dict[str, Tensor], str]:
    """Named weights of a published checkpoint, and the key that they were found under.

    A .safetensors file, or a torch file without pickled objects: that holds a post-hoc EMA under
    ``emas`` (the second profile, sigma_rel 0.20, is taken), an EMA under ``ema``, or the weights
    themselves (key ``""``).
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return _stripped(load_file(path), path), ""
        except SafetensorError as error:
            raise ValueError(f"{path}: not a safetensors file: {error}") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{path}: holds pickled objects, which may run code and are refused ({reason}); keep "
            "only the tensors of its EMA in a file of their own"
        ) from None
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{path}: not a torch checkpoint: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not named weights")
    if "emas" in content:
        prefix = "ema_models.1.ema_model."
        averaged = {
            name.removeprefix(prefix): value
            for name, value in content["emas"].items()
            if name.startswith(prefix)
        }
        if not averaged:
            raise ValueError(f"{path}: emas has no {prefix}*")
        return _stripped(averaged, path), "emas.ema_models.1"
    if "ema" in content:
        return _stripped(content["ema"], path), "ema"
    return _stripped(content, path), ""


def _stripped(tensors: Any, path: Path) -> dict[str, Tensor]:
    """Without the prefixes that DistributedDataParallel and torch.compile add."""
    others = (
        [name for name, value in tensors.items() if not isinstance(value, Tensor)]
        if isinstance(tensors, dict)
        else ["all"]
    )
    if others:
        raise ValueError(
            f"{path}: expected tensors under emas or ema, or nothing but tensors; "
            f"not tensors: {', '.join(map(str, others[:8]))}"
        )
    return {re.sub(r"^(module\.|_orig_mod\.)+", "", name): value for name, value in tensors.items()}


def _widened(tensor: Tensor, where: str) -> Tensor:
    if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"{where}: is {tensor.dtype}; weights must be float32, bfloat16 or float16")
    if not tensor.isfinite().all():
        raise ValueError(f"{where}: has values that are not finite")
    return tensor.float()


TOLD = {
    "norm": ("final_layer.norm_final.weight", "rms", "rms-plain or layer"),
    "qk_norm": ("blocks.0.attn.q_norm.weight", True, "false"),
    "mlp": ("blocks.0.mlp.w12.weight", "swiglu", "gelu"),
    "rope": ("feat_rope.freqs_cos", True, "false"),
}
"""What a tensor's presence tells of the backbone: key, tensor, its value with and without it."""


def _compare(tensors: dict[str, Tensor], backbone: LightningDiT, path: Path) -> None:
    """Name the setting that is wrong, where the weights tell it."""
    for key, (name, present, absent) in TOLD.items():
        if key == "qk_norm" and backbone.norm == "rms-plain":
            continue  # such norms have no weights
        said = getattr(backbone, key)
        if (name in tensors) != (said == present):
            has, remedy = ("a", str(present).lower()) if name in tensors else ("no", absent)
            raise ValueError(
                f"{path}: has {has} {name}, but the backbone says {key}: {str(said).lower()}; "
                f"set {key}: {remedy}"
            )
    labels = tensors.get("y_embedder.embedding_table.weight")
    if labels is not None and len(labels) != backbone.classes + 1:
        raise ValueError(
            f"{path}: has labels for {len(labels) - 1} classes and the unconditional one, but the "
            f"backbone says classes: {backbone.classes}"
        )
    if not backbone.target_time and any(name.startswith("r_embedder.") for name in tensors):
        raise ValueError(f"{path}: has a target-time embedding (r_embedder); set target_time: true")


@torch.no_grad()
def _try(net: nn.Module, backbone: LightningDiT, path: Path) -> None:
    noise = torch.randn(1, *backbone.shape, generator=torch.Generator().manual_seed(0))
    half, end = torch.full((1,), 0.5), torch.ones(1)
    result = net.eval()(noise, half, end, torch.zeros(1, dtype=torch.long))
    outputs = result if isinstance(result, tuple) else (result,)
    if not all(output.isfinite().all() for output in outputs):
        raise ValueError(f"{path}: the network's output on noise is not finite")


if __name__ == "__main__":
    run(main)
