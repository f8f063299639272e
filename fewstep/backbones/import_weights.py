"""Published weights for our networks: read, checked against a backbone, and converted to our convention.

Each conversion is an exact change of a few linear layers, so that nothing of it is left at run time.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..common.tensor_files import load_tensors
from ..config.backbones import Imf, LightningDiT, Sd3
from ..core.rng import fold_in
from . import build, use_text
from .model_file import load_compatible

TELLING = {
    "norm": ("final_layer.norm_final.weight", "rms", "rms-plain or layer"),
    "qk_norm": ("blocks.0.attn.q_norm.weight", True, "false"),
    "mlp": ("blocks.0.mlp.w12.weight", "swiglu", "gelu"),
    "rope": ("feat_rope.freqs_cos", True, "false"),
}
"""What a tensor's presence tells of the backbone: key, tensor, its value with and without it."""
HEADS = ("final_layer", "final_layer_u")
OUTPUTS = [f"{head}.linear.{part}" for head in HEADS for part in ("weight", "bias")]
LABELS = "y_embedder.embedding_table.weight"
LOSS_WEIGHT = ("logvar_linear.weight", "logvar_linear.bias")
"""Of Decoupled MeanFlow's release: a layer that weights its loss."""
IMF_LAYERS = {
    "attn.qkv": ("attn.q_proj", "attn.k_proj", "attn.v_proj"),
    "attn.proj": ("attn.out_proj",),
    "mlp.w12": ("mlp.w1", "mlp.w3"),
    "mlp.w3": ("mlp.w2",),
}
"""The linear layers of a block, and those of improved MeanFlow's release that are joined in each."""
EMA_PREFIX = "ema_models.1.ema_model."


def import_weights(
    published: dict[str, Tensor],
    backbone: LightningDiT | Sd3 | Imf,
    path: Path,
    reverse: bool = False,
    new_labels: bool = False,
) -> tuple[nn.Module, list[str]]:
    """The network of ``backbone`` with published weights, in float32, and what was converted.

    SD3's are those of diffusers' transformer, whose clock its own module converts; improved MeanFlow's are
    those of its release for PyTorch.

    ``path`` is for messages; ``reverse``: the weights are those of a flow from data to noise; ``new_labels``:
    they know other classes, whose embeddings ours do not take over.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    tensors = {name: _to_float32(tensor, f"{path}: {name}") for name, tensor in published.items()}
    converted: list[str] = []
    if isinstance(backbone, Imf):
        tensors = convert_imf(tensors, path, reverse)
        converted.append("velocity reversed; layers that are one here joined; the second head dropped")
    theirs = _taken_labels(tensors, backbone, path) if new_labels else None
    if isinstance(backbone, Sd3):
        _compare_sd3(tensors, backbone, path, reverse)
        tensors = {f"transformer.{name}": tensor for name, tensor in tensors.items()}
    elif isinstance(backbone, LightningDiT):
        _compare(tensors, backbone, path)
        tensors, changes = convert_state_dict(tensors, backbone, reverse)
        converted += changes
    # The target-time embedding that published teachers lack starts at random, but always the same.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fold_in(0, "adopt"))
        net = build(backbone)
    if theirs is not None:
        table = net.state_dict()[LABELS].clone()
        table[-1] = theirs[-1]
        tensors[LABELS] = table
        converted.append(
            f"embeddings of {len(table) - 1} classes drawn anew, in place of {len(theirs) - 1}; the "
            "unconditional one kept"
        )
    load_compatible(net, tensors, str(path))
    if isinstance(backbone, Sd3):
        use_text(net, lambda _: (torch.ones(1, 1, backbone.context), torch.ones(1, backbone.pooled)))
    noise = torch.randn(1, *backbone.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        result = net.eval()(noise, torch.full((1,), 0.5), torch.ones(1), torch.zeros(1, dtype=torch.long))
    if not all(output.isfinite().all() for output in (result if isinstance(result, tuple) else [result])):
        raise ValueError(f"{path}: the network's output on noise is not finite")
    return net, converted


def read_weights(path: Path, key: str = "ema") -> tuple[dict[str, Tensor], str]:
    """Named weights of a published checkpoint, and the key that they were found under.

    A .safetensors file, or a torch file without pickled objects: that holds a post-hoc EMA under
    ``emas`` (the second profile, sigma_rel 0.20, is taken), weights under ``key``, or the weights themselves
    (key ``""``).

    Raises:
        ValueError: naming the file: it is damaged, is unsafe to open, or holds no such weights.
    """
    content = load_tensors(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not named weights")
    if "emas" in content:
        named = [(name, value) for name, value in content["emas"].items() if name.startswith(EMA_PREFIX)]
        if not named:
            raise ValueError(f"{path}: emas has no {EMA_PREFIX}*")
        tensors: Any = {name.removeprefix(EMA_PREFIX): value for name, value in named}
        found_under = "emas.ema_models.1"
    else:
        found_under = key if key in content else ""
        tensors = content[found_under] if found_under else content
    others = ["all"]
    if isinstance(tensors, dict):
        others = [str(name) for name, value in tensors.items() if not isinstance(value, Tensor)]
    if others:
        raise ValueError(
            f"{path}: expected tensors under emas or {key}, or nothing but tensors; "
            f"not tensors: {', '.join(others[:8])}"
        )
    # DistributedDataParallel and torch.compile add prefixes.
    prefixes = r"^(module\.|_orig_mod\.)+"
    return {re.sub(prefixes, "", name): value for name, value in tensors.items()}, found_under


def _to_float32(tensor: Tensor, where: str) -> Tensor:
    if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"{where}: is {tensor.dtype}; weights must be float32, bfloat16 or float16")
    if not tensor.isfinite().all():
        raise ValueError(f"{where}: has values that are not finite")
    return tensor.float()


def _taken_labels(tensors: dict[str, Tensor], backbone: LightningDiT | Sd3 | Imf, path: Path) -> Tensor:
    """Take the embeddings of other classes out of the tensors."""
    table = tensors.pop(LABELS, None)
    if isinstance(backbone, Sd3) or table is None or table.ndim != 2 or table.shape[1] != backbone.width:
        width = "" if isinstance(backbone, Sd3) else f" of width {backbone.width}"
        raise ValueError(f"{path}: new_labels: there are no embeddings of classes{width}; set it to false")
    return table


def _compare(tensors: dict[str, Tensor], backbone: LightningDiT, path: Path) -> None:
    """Name the key of the backbone that is wrong, where the weights tell it."""
    for key, (name, present, absent) in TELLING.items():
        if key == "qk_norm" and backbone.norm == "rms-plain":
            continue  # such norms have no weights
        said = getattr(backbone, key)
        if (name in tensors) != (said == present):
            has, remedy = ("a", str(present).lower()) if name in tensors else ("no", absent)
            raise ValueError(
                f"{path}: has {has} {name}, but the backbone says {key}: {str(said).lower()}; "
                f"set {key}: {remedy}"
            )
    labels = tensors.get(LABELS)
    if labels is not None and len(labels) != backbone.classes + 1:
        raise ValueError(
            f"{path}: has labels for {len(labels) - 1} classes and the unconditional one, but the "
            f"backbone says classes: {backbone.classes}; of your own classes, set weights.new_labels: true"
        )
    second_time = any(name.startswith("r_embedder.") for name in tensors)
    if second_time and not backbone.embeds_target_time:
        raise ValueError(
            f"{path}: has a target-time embedding (r_embedder); set target_time: true, and decoupled: null"
        )


def _compare_sd3(tensors: dict[str, Tensor], backbone: Sd3, path: Path, reverse: bool) -> None:
    """Name the key of the backbone that is wrong, where names and shapes of the weights tell it."""
    if reverse:
        raise ValueError(f"{path}: reverse: the network of kind sd3 converts SD3's clock; set reverse: false")
    found: dict[str, Any] = {"lora": None, "time_scale": 1000.0}
    blocks = [name.split(".")[1:] for name in tensors if name.startswith("transformer_blocks.")]
    if blocks:
        found["layers"] = len({number for number, *_ in blocks})
        found["dual_attention"] = len({number for number, part, *_ in blocks if part == "attn2"})
        found["qk_norm"] = any(inner[1:3] == ["attn", "norm_q"] for inner in blocks)
    for key, name in {
        "positions": "pos_embed.pos_embed",
        "context": "context_embedder.weight",
        "pooled": "time_text_embed.text_embedder.linear_1.weight",
    }.items():
        if name in tensors and tensors[name].ndim > 1:
            size = tensors[name].shape[1]
            found[key] = math.isqrt(size) if key == "positions" else size
    for key, right in found.items():
        if (said := getattr(backbone, key)) != right:
            raise ValueError(
                f"{path}: backbone.{key} is {json.dumps(said, default=str)}; for these weights it must be "
                f"{json.dumps(right)}"
            )


def convert_state_dict(
    tensors: dict[str, Tensor], backbone: LightningDiT, reverse: bool
) -> tuple[dict[str, Tensor], list[str]]:
    """Weights for our convention (noise at t = 0, velocity data - noise), and in words what was done.

    Channels of a learned variance (DiT, SiT: ``learn_sigma``), which samplers of flows do not use,
    are recognised by twice as many outputs and dropped; so is a layer that weights the loss of training.
    ``reverse``: the published network has its noise at t = 1 and predicts noise - data.
    """
    tensors, done = {name: tensor for name, tensor in tensors.items() if name not in LOSS_WEIGHT}, []
    channels = backbone.shape[0]
    for name in OUTPUTS:
        value = tensors.get(name)
        if value is not None and value.ndim and len(value) == 2 * channels * backbone.patch**2:
            # The outputs of a patch are channels last.
            tensors[name] = value.unflatten(0, (-1, 2 * channels))[:, :channels].flatten(0, 1).contiguous()
            done = ["outputs of a learned variance dropped"]
    if backbone.decoupled is not None:
        done.append(f"blocks from {backbone.decoupled} on told the target time")
    if reverse:
        _reverse_time(tensors, backbone)
        done.append("time and velocity reversed")
    return tensors, done


def _reverse_time(tensors: dict[str, Tensor], backbone: LightningDiT) -> None:
    """Negate the outputs, and give the times' first layers weights that expect 1 - t.

    With angular frequency w: cos w(1 - t) = cos w cos wt + sin w sin wt, and
    sin w(1 - t) = sin w cos wt - cos w sin wt.
    """
    half = backbone.time_features // 2
    j = torch.arange(half, dtype=torch.float64)
    w = backbone.time_scale * backbone.time_period ** (-j / half)
    for name in ("t_embedder.mlp.0.weight", "r_embedder.mlp.0.weight"):
        value = tensors.get(name)
        if value is not None and value.ndim == 2 and value.shape[1] == 2 * half:
            cos, sin = value.double().chunk(2, dim=1)
            turned = torch.cat([cos * w.cos() + sin * w.sin(), cos * w.sin() - sin * w.cos()], dim=1)
            tensors[name] = turned.to(value.dtype)
    tensors.update({name: -tensors[name] for name in OUTPUTS if name in tensors})


def convert_imf(tensors: dict[str, Tensor], path: Path, reverse: bool) -> dict[str, Tensor]:
    """The weights of improved MeanFlow's release for PyTorch, named and joined as ours, for our velocity.

    Its blocks are counted in two parts, those that both heads share and those of the average velocity's.

    Raises:
        ValueError: ``reverse`` is false, or a layer to be joined is missing or does not fit the others.
    """
    if not reverse:
        raise ValueError(f"{path}: reverse: improved MeanFlow has its noise at t = 1; set reverse: true")
    plain = {re.sub(r"^net\.|_flax_(linear|embedding)\.", "", name): value for name, value in tensors.items()}
    shared = len({name.split(".")[1] for name in plain if name.startswith("shared_blocks.")})
    ours: dict[str, Tensor] = {}
    blocks: dict[tuple[str, str], dict[str, Tensor]] = {}
    """Layers by name, of each block by its name in the release and here."""
    for name, value in plain.items():
        part, _, rest = name.partition(".")
        if part in ("shared_blocks", "u_heads"):
            number, _, inner = rest.partition(".")
            place = int(number) + (shared if part == "u_heads" else 0)
            blocks.setdefault((f"{part}.{number}", f"blocks.{place}"), {})[inner] = value
        elif part == "u_final_layer":
            ours[f"final_layer.{rest}"] = -value if rest.startswith("linear.") else value
        elif part not in ("v_heads", "v_final_layer"):
            ours[name] = value
    for (published, block), layers in blocks.items():
        for joined, parts in IMF_LAYERS.items():
            found: list[Tensor] = []
            for part in parts:
                name = f"net.{published}.{part}._flax_linear.weight"
                value = layers.pop(f"{part}.weight", None)
                if value is None:
                    raise ValueError(f"{path}: has no {name}")
                if value.ndim != 2 or (found and value.shape != found[0].shape):
                    like = f" of the shape of {parts[0]}, {list(found[0].shape)}" if found else ""
                    raise ValueError(f"{path}: {name} is {list(value.shape)}; it must be a matrix{like}")
                found.append(value)
            ours[f"{block}.{joined}.weight"] = torch.cat(found)
        ours |= {f"{block}.{name}": value for name, value in layers.items()}
    return ours
