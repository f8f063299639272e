"""Tiny random pipelines of diffusers, one of each class that is sampled from, saved as their authors' are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from tiny_text import write_record
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn

WORDS = ["<pad>", "<unk>", "<s>", "</s>", "a", "red", "cat", "blue", "dog", "two", "birds"]
PROMPTS = ["a red cat", "two blue birds"]
CHAT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def tokenizer(length: int) -> transformers.PreTrainedTokenizerFast:
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(word, WORDS.index(word)) for word in ("<s>", "</s>")]
    made.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=ends)
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, model_max_length=length, chat_template=CHAT, **names
    )


def awake(network: nn.Module, seed: int = 0) -> Any:
    """The network with no weight at zero, or not set at all."""
    torch.manual_seed(seed)
    for parameter in network.parameters():
        with torch.no_grad():
            parameter.copy_(parameter.nan_to_num().clamp(-1, 1) + 0.1 * torch.randn(parameter.shape))
    return network.eval()


def clip(kind: Any, projection: int = 32) -> Any:
    sizes = {"hidden_size": 32, "intermediate_size": 37, "num_attention_heads": 4, "num_hidden_layers": 2}
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "vocab_size": len(WORDS)}
    return awake(kind(transformers.CLIPTextConfig(**sizes, **ids, projection_dim=projection)))


def autoencoder(channels: int, **more: Any) -> Any:
    blocks = {
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "block_out_channels": [8, 8],
        "norm_num_groups": 4,
    }
    return awake(diffusers.AutoencoderKL(latent_channels=channels, **blocks, **more))


def sd3() -> Any:
    t5 = transformers.T5Config(
        d_model=32, num_layers=1, num_heads=2, d_kv=8, d_ff=16, vocab_size=len(WORDS), dropout_rate=0.0
    )
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=32, patch_size=2, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8,
        num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=32, pooled_projection_dim=64,
    )  # fmt: skip
    encoders = {
        f"text_encoder{number}": clip(transformers.CLIPTextModelWithProjection) for number in ("", "_2")
    }
    return diffusers.StableDiffusion3Pipeline(
        transformer=awake(transformer),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(4, shift_factor=0.06, scaling_factor=1.5),
        **encoders,
        tokenizer=tokenizer(77),
        tokenizer_2=tokenizer(77),
        text_encoder_3=awake(transformers.T5EncoderModel(t5)),
        tokenizer_3=tokenizer(256),
    )


def sdxl() -> Any:
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=16, in_channels=4, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), attention_head_dim=(2, 4),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), use_linear_projection=True, norm_num_groups=4,
        addition_embed_type="text_time", addition_time_embed_dim=8, transformer_layers_per_block=(1, 1),
        projection_class_embeddings_input_dim=80, cross_attention_dim=64,
    )  # fmt: skip
    return diffusers.StableDiffusionXLPipeline(
        unet=awake(unet),
        scheduler=diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_end=0.012),
        vae=autoencoder(4, scaling_factor=0.13),
        text_encoder=clip(transformers.CLIPTextModel),
        tokenizer=tokenizer(77),
        text_encoder_2=clip(transformers.CLIPTextModelWithProjection),
        tokenizer_2=tokenizer(77),
        add_watermarker=False,
    )


def sana() -> Any:
    transformer = diffusers.SanaTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2,
        attention_head_dim=4, num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8,
        caption_channels=8, sample_size=32, qk_norm="rms_norm_across_heads", guidance_embeds=True,
    )  # fmt: skip
    blocks = ("ResBlock", "EfficientViTBlock")
    vae = diffusers.AutoencoderDC(
        in_channels=3, latent_channels=4, attention_head_dim=2, encoder_block_types=blocks,
        decoder_block_types=blocks, encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1), downsample_block_type="conv",
        upsample_block_type="interpolate", decoder_norm_types="rms_norm", decoder_act_fns="silu",
        scaling_factor=0.4,
    )  # fmt: skip
    gemma = transformers.Gemma2Config(
        head_dim=8, hidden_size=8, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1,
        num_key_value_heads=1, vocab_size=len(WORDS),
    )  # fmt: skip
    return diffusers.SanaSprintPipeline(
        transformer=awake(transformer),
        vae=awake(vae),
        scheduler=diffusers.SCMScheduler(),
        text_encoder=awake(transformers.Gemma2Model(gemma)),
        tokenizer=tokenizer(300),
    )


def qwen() -> Any:
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=16, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[0.1, 0.0, 0.2, 0.0], latents_std=[1.0, 0.5, 2.0, 1.0],
    )  # fmt: skip
    text = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "vocab_size": len(WORDS),
        "rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": [1, 1, 2]},
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16,
    }  # fmt: skip
    encoder = transformers.Qwen2_5_VLForConditionalGeneration(
        transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    )
    return diffusers.QwenImagePipeline(
        transformer=awake(transformer),
        vae=awake(vae),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        text_encoder=awake(encoder),
        tokenizer=tokenizer(1024),
    )


def z_image() -> Any:
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
        axes_dims=[8, 4, 4], axes_lens=[256, 32, 32],
    )  # fmt: skip
    encoder = transformers.Qwen3Config(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, vocab_size=len(WORDS),
    )  # fmt: skip
    return diffusers.ZImagePipeline(
        transformer=awake(transformer),
        vae=autoencoder(4, shift_factor=0.1, scaling_factor=0.36),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=awake(transformers.Qwen3Model(encoder)),
        tokenizer=tokenizer(512),
    )


MAKERS = {
    "StableDiffusion3Pipeline": sd3,
    "StableDiffusionXLPipeline": sdxl,
    "SanaSprintPipeline": sana,
    "QwenImagePipeline": qwen,
    "ZImagePipeline": z_image,
}


def save_prompts(folder: Path) -> Path:
    (folder / "prompts").mkdir(parents=True)
    lines = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS)
    (folder / "prompts/prompts.jsonl").write_text(lines, encoding="utf-8")
    return write_record(folder / "prompts")
