"""Weights of open_clip's vision transformers as transformers' CLIPModel names them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .published import renamed

RULES = {
    r"^positional_embedding$": "text_model.embeddings.position_embedding.weight",
    r"^token_embedding\.": "text_model.embeddings.token_embedding.",
    r"^transformer\.resblocks\.": "text_model.encoder.layers.",
    r"^ln_final\.": "text_model.final_layer_norm.",
    r"^text_projection$": "text_projection.weight",
    r"^visual\.class_embedding$": "vision_model.embeddings.class_embedding",
    r"^visual\.positional_embedding$": "vision_model.embeddings.position_embedding.weight",
    r"^visual\.conv1\.": "vision_model.embeddings.patch_embedding.",
    r"^visual\.transformer\.resblocks\.": "vision_model.encoder.layers.",
    r"^visual\.ln_pre\.": "vision_model.pre_layrnorm.",
    r"^visual\.ln_post\.": "vision_model.post_layernorm.",
    r"^visual\.proj$": "visual_projection.weight",
    r"\.ln_([12])\.": r".layer_norm\1.",
    r"\.attn\.": ".self_attn.",
    r"\.mlp\.c_fc\.": ".mlp.fc1.",
    r"\.mlp\.c_proj\.": ".mlp.fc2.",
}
TRANSPOSED = ("text_projection.weight", "visual_projection.weight")
"""They multiply from the right there."""
FUSED = ".self_attn.in_proj_"
"""Part of the name of queries, keys and values, which are one tensor there, one below the other."""


def from_open_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights by the names, and in the shapes, of CLIPModel; names without a rule stay."""
    found = {}
    for name, tensor in renamed(tensors, RULES).items():
        if name in TRANSPOSED:
            found[name] = tensor.T.contiguous()
        elif FUSED in name:
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                found[name.replace(FUSED, f".self_attn.{part}_proj.")] = rows.clone()
        else:
            found[name] = tensor
    return found
