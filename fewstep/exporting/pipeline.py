"""A text-to-image model that is trained here as a folder of diffusers' StableDiffusion3Pipeline.

It is the base of the students that export writes, and needs no code of ours. What SD3's pipeline does not
know is turned into what it does:

* Latents are normalised channel by channel, where the pipeline has one factor and one shift. The autoencoder
  is given the two 1x1 convolutions that diffusers has behind the encoder and before the decoder, which do it
  exactly. (The decoder's first convolution could not: it pads with zeros, which a shift would move.)
* A pipeline may be made without T5, but not loaded by its path alone. The folder has a T5 of one layer whose
  output is zero, which is what the pipeline puts in the place of none.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler

from ..backbones.kl_autoencoder import KlAutoencoder
from ..backbones.model_file import check_text, check_tokenizer, load_network
from ..backbones.sd3 import Sd3
from ..common.files import atomic_folder
from ..config import digest
from ..config.backbones import SD3_TIMESTEPS
from ..config.specs import PipelineSpec
from ..data.manifest import read_manifest
from ..data.normalisation import Normalisation
from ..data.text_encoders import sd3_text_parts
from ..data.tokenizers import weights_digest
from .replaced_folder import checked_folder, write_about

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, T5EncoderModel


def export_pipeline(
    spec: PipelineSpec, model: Path, tokenizer: Path, manifest: Path, encoder: Path, out: Path
) -> None:
    """Write a folder that ``StableDiffusion3Pipeline.from_pretrained`` loads; it replaces an older one.

    Args:
        model: the network, with SD3's own time embedding and one time.
        tokenizer: model file of the autoencoder.
        manifest: of the latents that the network was trained on.
        encoder: model file of the CLIP.
        out: model_index.json of the folder.

    Raises:
        ValueError: files that do not belong together, a network that SD3's pipeline does not know, or another
            folder where this one would be.
    """
    folder = checked_folder(out)
    backbone = spec.backbone
    for key, found, wanted in (
        ("lora", backbone.lora is not None, False),
        ("target_time", backbone.target_time, False),
        ("time_scale", backbone.time_scale, SD3_TIMESTEPS),
    ):
        if found != wanted:
            raise ValueError(f"{model}: backbone.{key}: {found}; the base of a pipeline has {wanted}")
    net, card = load_network(model, backbone)
    latents = read_manifest(manifest)
    latents.check(spec.latents, manifest)
    checksum = weights_digest(tokenizer)
    if latents.weights != checksum:
        raise ValueError(f"{manifest}: was encoded with other tokenizer weights than {tokenizer}")
    check_tokenizer(card, spec.latents.tokenizer, model, checksum)
    given = {"encoder": spec.text.model_dump(mode="json"), "weights": {"clip": weights_digest(encoder)}}
    check_text(card, given, model)
    autoencoder, _ = load_network(tokenizer, spec.decoder)
    assert isinstance(net, Sd3)
    if not isinstance(autoencoder, KlAutoencoder):
        raise ValueError(f"{tokenizer}: backbone.kind: {spec.decoder.kind}, not kl-autoencoder")
    parts = sd3_text_parts(spec.text, encoder, spec.encoder)
    clips = [parts["text_encoder"].config, parts["text_encoder_2"].config]
    for key, found, wanted in (
        ("context", backbone.context, sum(clip.hidden_size for clip in clips)),
        ("pooled", backbone.pooled, sum(clip.projection_dim for clip in clips)),
    ):
        if found != wanted:
            raise ValueError(f"{model}: backbone.{key}: {found}, but {encoder} gives {wanted}")
    if parts["text_encoder_3"] is None:
        t5, padding = zero_t5(backbone.context)
        parts |= {"text_encoder_3": t5.to(parts["text_encoder"].dtype), "tokenizer_3": padding}

    from diffusers import StableDiffusion3Pipeline  # seconds to import

    pipe = StableDiffusion3Pipeline(
        transformer=net.transformer,
        vae=normalising(autoencoder.vae, latents.normalisation),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        **parts,
    )
    about = {
        "method": spec.method,
        "model": card["sha256"],
        "status": card["status"],
        "tokenizer": checksum,
        "encoder": weights_digest(encoder),
        "spec": digest(spec),
        "call": {"max_sequence_length": spec.text.t5_length},
    }
    with atomic_folder(folder) as temporary:
        pipe.save_pretrained(temporary)
        write_about(temporary, about)
    print(f"{folder}: call the pipeline with max_sequence_length={spec.text.t5_length}, as it was trained")


def normalising(vae: AutoencoderKL, normalisation: Normalisation) -> AutoencoderKL:
    """An autoencoder whose latents are normalised, so that scaling_factor 1 and shift_factor 0 are right.

    Args:
        vae: without convolutions behind the encoder and before the decoder.
    """
    sizes = {key: value for key, value in vae.config.items() if not key.startswith("_")}
    own = {"use_quant_conv": True, "use_post_quant_conv": True, "scaling_factor": 1.0, "shift_factor": 0.0}
    made = AutoencoderKL(**sizes | own)
    made.load_state_dict(vae.state_dict(), strict=False)
    mean, std = (torch.tensor(values) for values in (normalisation.mean, normalisation.std))
    gain = normalisation.multiplier / std
    ones = torch.ones_like(gain)
    with torch.no_grad():
        # The encoder gives means, and logarithms of variances.
        made.quant_conv.weight.copy_(torch.cat([gain, ones]).diag()[..., None, None])
        made.quant_conv.bias.copy_(torch.cat([-mean * gain, 2 * gain.log()]))
        made.post_quant_conv.weight.copy_((1 / gain).diag()[..., None, None])
        made.post_quant_conv.bias.copy_(mean)
    return made.eval().requires_grad_(False)


def zero_t5(width: int) -> tuple[T5EncoderModel, PreTrainedTokenizerFast]:
    """A T5 encoder whose output (n, tokens, width) is zero, with a tokenizer that makes but padding."""
    from tokenizers import Regex, Tokenizer, models, normalizers
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    pad = "<pad>"
    tokenizer = Tokenizer(models.WordLevel({pad: 0}, unk_token=pad))
    tokenizer.normalizer = normalizers.Replace(Regex(r"[\s\S]+"), "")
    sizes = {"num_layers": 1, "num_heads": 1, "d_kv": 1, "d_ff": 1, "vocab_size": 1}
    network = T5EncoderModel(T5Config(d_model=width, dropout_rate=0.0, **sizes))
    for weight in network.parameters():
        torch.nn.init.zeros_(weight)
    return network.eval().requires_grad_(False), PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad
    )
