"""A class-conditional model as a pipeline of diffusers.

The folder's own pipeline.py is made of this module and what it imports (exporting/bundle.py), so that it is
loaded without this package too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ConfigMixin, DiffusionPipeline, ImagePipelineOutput, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from ..backbones import build
from ..backbones.model_file import backbone_of
from ..config.backbones import ClassNetwork
from ..config.base import parse
from ..config.sampling import Choice, Sampling
from ..config.settings import Tokenizer
from ..data.normalisation import Normalisation
from ..data.tokenizers import Codec, ConvCodec, IdentityCodec, KlCodec
from ..evaluation.generator import Generator


class Model(ModelMixin, ConfigMixin):
    """Network and decoder in one file, with all that images depend on in its config.json.

    Args:
        backbone: the network, as JSON.
        tokenizer: `config.settings.Tokenizer`, as JSON.
        normalisation: `data.normalisation.Normalisation`, as JSON.
        sampling: `config.sampling.Sampling`, as JSON.
        vae: configuration of an AutoencoderKL, if the tokenizer is one that is published.
        card: what the model file says of its weights.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        backbone: dict[str, Any],
        tokenizer: dict[str, Any],
        normalisation: dict[str, Any],
        sampling: dict[str, Any],
        vae: dict[str, Any] | None = None,
        card: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.spec = backbone_of({"backbone": backbone})
        self.net = build(self.spec)
        self.tokenizer = parse(Tokenizer, tokenizer, "config.json", "tokenizer")
        self.normalisation = parse(Normalisation, normalisation, "config.json", "normalisation")
        self.sampling = parse(Sampling, sampling, "config.json", "sampling")
        self.decoder: nn.Module | None = None
        if vae is not None:
            self.decoder = AutoencoderKL(**vae)
        elif self.sampling.decoder is not None:
            self.decoder = build(self.sampling.decoder)

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> Model:
        """As in diffusers, but from safetensors only, and with the constants that networks have."""
        own = {"low_cpu_mem_usage": False, "use_safetensors": True}
        model: Model = super().from_pretrained(*arguments, **options | own)
        model.eval().requires_grad_(False)
        return model

    @property
    def generator(self) -> Generator:
        """Network, decoder and all else, ready to make images."""
        codec: Codec = IdentityCodec(bounds=self.tokenizer.kind == "pixels")
        if isinstance(self.decoder, AutoencoderKL):
            codec = KlCodec(self.decoder, self.tokenizer.posterior, self.device)
        elif self.decoder is not None:
            codec = ConvCodec(self.decoder, self.device)
        assert isinstance(self.spec, ClassNetwork)
        name = str(self.config.get("_name_or_path", "model"))
        names = (self.config.get("card") or {}).get("latents", {}).get("names", [])
        return Generator(self.net, self.spec, codec, self.normalisation, self.sampling, name, names)


class Pipeline(DiffusionPipeline):
    """Few-step images of classes: ``pipe([207, 360], steps=2, seed=3).images``."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.register_modules(model=model)

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> Pipeline:
        """The pipeline of a folder, or of a repository of the hub.

        Args:
            options: of diffusers' ``ModelMixin.from_pretrained``.
        """
        return cls(Model.from_pretrained(str(path), subfolder="model", **options))

    @property
    def generator(self) -> Generator:
        """What makes the images."""
        made: Generator = self.model.generator
        return made

    @torch.no_grad()
    def __call__(
        self, classes: Sequence[int | str], steps: int = 1, seed: int = 0, choice: Choice | None = None
    ) -> ImagePipelineOutput:
        """One picture for each class; arguments and errors as for `Generator.images`."""
        return ImagePipelineOutput(images=self.generator(classes, steps, seed, choice))
