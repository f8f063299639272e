"""The entries of config/settings.yaml: named parts, and the recipes made of them."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from .base import Batch, Count, Seed, Shape, Size, Strict, nearest
from .references import Ref

Mark = Literal["paper", "code", "inferred"]
"""Where a hyper-parameter comes from: the paper's text, released code, or a choice made here."""


Scale = Literal["paper", "small", "demo", "toy", "own"]
Metric = Literal[
    "fid", "fdd", "frechet", "is", "kid", "mmd", "moon_distance", "off_moons", "precision", "recall"
]
COMPARE_IMAGES = ("kid", "mmd", "moon_distance", "off_moons", "precision", "recall")
"""Metrics that need the features of every image, beside their mean and covariance."""
EXTRACTORS: dict[str, tuple[str, ...]] = {
    "conv-classifier": ("features", "logits"),
    "pixels": ("4", "8", "16", "32"),
    "clip": ("embedding",),
    "dinov2": ("cls",),
    "inception-v3-compat": ("64", "192", "768", "2048", "logits_unbiased", "logits"),
    "vgg16": ("fc2", "fc2_relu"),
    **dict.fromkeys(
        (
            *("clip-rn50", "clip-rn101", "clip-rn50x4", "clip-rn50x16", "clip-rn50x64"),
            *("clip-vit-b-32", "clip-vit-b-16", "clip-vit-l-14", "clip-vit-l-14-336px"),
        ),
        ("clip",),
    ),
}
"""Networks for features, by their names in torch-fidelity and here, and their layers.

Of pixels, which are no network: images averaged over squares, so many of these to a side.
"""
PUBLISHED_IMAGES = 10_000
"""Images in a published reference, as in ADM's."""


class Dataset(Strict):
    asset: Annotated[str, Ref("assets")]
    format: Literal[
        "digits",
        "moons",
        "scenes",
        "scene-cells",
        "parquet",
        "tars",
        "webdataset",
        "captioned-tars",
        "imagefolder",
        "latents-safetensors",
    ] = Field(
        description="latents-safetensors: encoded elsewhere, taken over without the tokenizer; "
        "moons: points of the plane, as 2 channels of one pixel; scenes: drawn here, a class is a caption; "
        "scene-cells: single cells of them, a class is a picture; captioned-tars: WebDataset of images and "
        ".json with a key `prompt`: every image is a class with a caption of its own"
    )
    resolution: Size
    channels: Size = 3
    classes: Batch
    images: Count = Field(description="exact number of images; anything else is refused")
    crop: Literal["none", "adm"] = "none"
    columns: list[str] = Field(
        default=["image", "label"], min_length=2, max_length=2, description="parquet: of image and label"
    )
    class_ids: Literal["imagenet-1k"] | None = Field(
        default=None, description="refuse classes other than these, or in another order"
    )
    names: list[str] | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="of the classes, in the order of their labels, for figures and cards",
    )
    prefix: str = Field(
        default="",
        exclude_if=lambda value: not value,
        description="imagefolder, parquet: what the names of its files begin with that count, as train/",
    )

    @model_validator(mode="after")
    def _a_caption_each(self) -> Dataset:
        if self.names is not None and len(self.names) != self.classes:
            raise ValueError(f"names: {len(self.names)} names for {self.classes} classes; give one for each")
        if self.distinct and self.classes != self.images:
            raise ValueError(
                f"classes {self.classes}: every image is one with format: {self.format}, so {self.images}"
            )
        return self

    @property
    def distinct(self) -> bool:
        """Whether every image is a class of its own, with its place as label."""
        return self.format == "captioned-tars"

    @property
    def captioned(self) -> bool:
        """Whether labels are numbers of captions."""
        return self.format in ("scenes", "captioned-tars")


class Weights(Strict):
    """Where a network's weights come from: a fetched asset, or a run of this workflow."""

    asset: Annotated[str | None, Ref("assets")] = None
    file: Annotated[str | None, Ref("files of", within="asset")] = None
    method: Annotated[str | None, Ref("methods")] = None

    @model_validator(mode="after")
    def _one(self) -> Weights:
        if (self.asset is None) == (self.method is None):
            raise ValueError("name exactly one of asset, method")
        if (self.asset is None) != (self.file is None):
            raise ValueError("file names the file of an asset; asset and file go together")
        return self


class LdmAutoencoder(Strict):
    """The KL autoencoder of latent diffusion; the defaults are VA-VAE f16d32."""

    channels: Size = Field(default=128, multiple_of=32, description="width at full resolution")
    multipliers: list[Size] = Field(default=[1, 1, 2, 2, 4], min_length=1, description="of it, by level")
    blocks: Size = Field(default=2, description="residual blocks of a level of the encoder")
    attention: list[int] = Field(default=[4], description="levels with attention; level k has 1/2^k the side")

    @model_validator(mode="after")
    def _levels(self) -> LdmAutoencoder:
        if not set(self.attention) <= set(range(len(self.multipliers))):
            raise ValueError(f"attention {self.attention} names a level beyond {len(self.multipliers) - 1}")
        return self


class Tokenizer(Strict):
    kind: Literal["pixels", "points", "autoencoder", "vavae", "sd-vae"] = Field(
        description="pixels, points: the images, or other numbers, themselves"
    )
    shape: Shape = Field(description="latent (C, H, W)")
    weights: Weights | None = None
    posterior: Literal["sample", "mean", "moments"] = Field(
        default="mean",
        description="what is stored: a draw, the mean, or both moments, to draw anew in every batch",
    )
    statistics: Literal["none", "computed", "published", "given"] = Field(
        default="none",
        description="per-channel normalisation of the latents: by their own moments, by those of a published "
        "file, or by mean and std",
    )
    mean: list[float] | None = Field(default=None, description="given: of each channel")
    std: list[Annotated[float, Field(gt=0)]] | None = Field(default=None, description="given: the same")
    statistics_file: Annotated[str | None, Ref("files of", within="weights.asset")] = Field(
        default=None, description="published: file of the weights' asset with mean and std"
    )
    multiplier: float = Field(default=1.0, gt=0, description="factor after normalisation")
    network: LdmAutoencoder | None = Field(default=None, description="vavae of another size than f16d32")

    @model_validator(mode="after")
    def _complete(self) -> Tokenizer:
        if self.plain != (self.weights is None):
            raise ValueError("every tokenizer but pixels and points needs weights")
        if self.kind == "vavae" and not (self.weights and self.weights.asset and self.weights.file):
            raise ValueError("kind: vavae needs weights with an asset and a file")
        if self.network is not None and self.kind != "vavae":
            raise ValueError("network is for kind: vavae")
        if self.posterior == "moments" and self.kind not in ("vavae", "sd-vae"):
            raise ValueError("posterior: moments is for kinds vavae and sd-vae")
        published = self.statistics == "published"
        if published != (self.statistics_file is not None):
            raise ValueError("statistics: published and statistics_file go together")
        numbers = [self.shape[0]] * 2 if self.statistics == "given" else [0, 0]
        if [len(self.mean or []), len(self.std or [])] != numbers:
            raise ValueError("statistics: given needs mean and std of each channel, and others have neither")
        if published and not (self.weights and self.weights.asset):
            raise ValueError("statistics: published needs weights that are an asset")
        return self

    @property
    def plain(self) -> bool:
        """Whether latents are the data themselves."""
        return self.kind in ("pixels", "points")

    @property
    def measured(self) -> bool:
        """Whether only the manifest of encoded latents knows how they are normalised."""
        return self.statistics == "computed"

    @property
    def stored(self) -> list[int]:
        """Shape of what shards hold of a view: of moments, mean and deviation along the channels."""
        channels, height, width = self.shape
        return [2 * channels if self.posterior == "moments" else channels, height, width]


class Latents(Strict):
    """A data set seen through a tokenizer, as WebDataset shards."""

    dataset: Annotated[str, Ref("datasets")]
    tokenizer: Annotated[str, Ref("tokenizers")]
    shards: int = Field(gt=0, lt=100_000, description="their numbers have five digits")
    flip: bool = Field(default=False, description="store the mirrored view too")
    dtype: Literal["float16", "float32"] = "float32"
    psnr: float | None = Field(
        default=None, gt=0, description="dB; refuse to encode when decoded images are further off than this"
    )


class Guidance(Strict):
    """Classifier-free guidance v_c + (scale - 1) norm(v_c - v_u) for t in the interval."""

    scale: float = Field(ge=0, le=1000)
    interval: list[float] = Field(default=[0.0, 1.0], min_length=2, max_length=2)
    normalise: Literal["none", "rescale", "unit"] = Field(
        default="none",
        description="rescale: shorten differences longer than eta (APG); unit: eta in every case",
    )
    eta: Annotated[float, Field(gt=0)] | Literal["mean", "p90"] = Field(
        default="p90",
        description="target norm, or how it follows from calibration samples: mean or 90th percentile",
    )
    calibration: Batch = Field(default=4096, description="teacher calls behind a calibrated eta")
    channels: Size | None = Field(default=None, description="guide only the first channels")

    @model_validator(mode="after")
    def _ordered(self) -> Guidance:
        low, high = self.interval
        if not 0 <= low < high <= 1:
            raise ValueError(f"interval {self.interval} must rise inside [0, 1]")
        return self


class UCGMSampling(Strict):
    """UCGM-S (arXiv 2505.07447, Algorithm 2): predict data and noise, extrapolate both, mix them anew."""

    condition: Literal["velocity", "end", "next"] = Field(
        description="target time s of the network: t itself, 1, or the next time"
    )
    rho: float = Field(default=0.0, ge=0, le=1, description="share of fresh noise, by variance")
    kappa: float = Field(default=0.0, ge=0, le=1, description="extrapolation from the third step on")
    schedule: list[float] = Field(
        default=[1.0, 1.0, 1.0],
        min_length=3,
        max_length=3,
        description="a, b, c of t = (1 - (1 - g^a)^b)^c, g uniform (Kumaraswamy)",
    )
    gaps: list[float] = Field(
        default=[0.0, 0.0], min_length=2, max_length=2, description="g of the first step, 1 - g of the last"
    )

    @model_validator(mode="after")
    def _possible(self) -> UCGMSampling:
        if min(self.schedule) <= 0:
            raise ValueError(f"schedule {self.schedule}: a, b and c must be above 0")
        if min(self.gaps) < 0 or sum(self.gaps) >= 1:
            raise ValueError(f"gaps {self.gaps} must not be negative, nor sum to 1")
        return self


class PyramidSampling(Strict):
    """Euler steps of one scale of a pyramid after another (DFM, arXiv 2506.19839)."""

    steps: list[Size] = Field(min_length=2, description="until each scale is done, the coarsest first")
    threshold: float = Field(
        default=0.9, gt=0, lt=1, description="time of a scale at which the next one starts"
    )


class Sampler(Strict):
    kind: Literal["euler", "cm", "mix", "jump", "ucgm", "pyramid", "pipeline"] = Field(
        description="pipeline: the scheduler of a released pipeline of diffusers"
    )
    guidance: Literal["none", "recipe"] | Guidance = "none"
    shift: float = Field(default=1.0, gt=0, le=1000, description="timestep shift of the grid; 1 is uniform")
    switch: float = Field(
        default=0.5, ge=0, lt=1, description="mix: time at which re-noising starts; 0: after step one"
    )
    gamma: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="jump: share of the noise after a step that is fresh; 1 is cm (CTM's gamma-sampling)",
    )
    ucgm: UCGMSampling | None = Field(default=None, description="of kind: ucgm, which needs it")
    pyramid: PyramidSampling | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="of kind: pyramid, which needs it",
    )
    times: list[float] | None = Field(
        default=None, min_length=1, description="of the steps, from 0 up, instead of a grid; as many as NFE"
    )

    @property
    def scale_count(self) -> int:
        """Scales of the pyramids that it makes; 1: it makes latents."""
        return len(self.pyramid.steps) if self.pyramid else 1

    @model_validator(mode="after")
    def _belongs(self) -> Sampler:
        if self.gamma and self.kind != "jump":
            raise ValueError(f"gamma belongs to kind: jump, not to {self.kind}")
        if (self.kind == "ucgm") != (self.ucgm is not None):
            raise ValueError("ucgm belongs to, and is needed by, kind: ucgm")
        if (self.kind == "pyramid") != (self.pyramid is not None):
            raise ValueError("pyramid belongs to, and is needed by, kind: pyramid")
        if self.kind == "pyramid" and (self.shift != 1 or self.times is not None):
            raise ValueError("shift and times are not for kind: pyramid, whose steps are pyramid.steps")
        if self.pyramid and isinstance(self.guidance, Guidance) and self.guidance.interval != [0, 1]:
            raise ValueError("kind: pyramid guides all scales at all times; leave guidance.interval out")
        if self.kind == "ucgm" and (self.shift != 1 or self.times is not None):
            raise ValueError("shift and times are not for kind: ucgm, whose grid is ucgm.schedule")
        if self.times is not None:
            if self.shift != 1:
                raise ValueError("times and shift exclude each other")
            ends = [*self.times, 1.0]
            if ends[0] != 0 or any(now >= after for now, after in pairwise(ends)):
                raise ValueError(f"times {self.times} must start at 0 and rise, below 1")
        return self


class KernelDistance(Strict):
    """KID as the mean over random subsets of both sides (Binkowski et al., arXiv 1801.01401)."""

    subsets: Batch = 100
    size: Batch = Field(default=1000, gt=1, description="images of each side in a subset")


class RbfKernel(Strict):
    """k(a, b) = exp(-gamma |a - b|^2)."""

    gamma: float = Field(default=1.0, gt=0, description="per squared unit of a feature")


class MoonDistance(Strict):
    """Distance of samples to the half circles of two moons."""

    noise: float = Field(gt=0, description="standard deviation of the data's noise, the unit")
    far: float = Field(default=3.0, gt=0, description="units beyond which a sample is off the moons")


Dtype = Literal["float32", "bfloat16"]


class Precision(Strict):
    """What images are sampled and decoded in; float32 is not written, and digests are as without a choice."""

    network_dtype: Dtype = Field(
        default="float32",
        exclude_if=lambda value: value == "float32",
        description="bfloat16: the network under autocast; guidance and sampler compute in more in any case",
    )
    decoder_dtype: Dtype = Field(
        default="float32",
        exclude_if=lambda value: value == "float32",
        description="bfloat16: the decoder's weights and activations",
    )


class Protocol(Precision):
    """All that a metric depends on beside the images' own sampler.

    ``kid``, ``mmd``, ``precision`` and ``recall`` compare with features of real images: those behind
    ``reference_latents``, or the array ``arr_0`` of a published reference (ADM's has 10,000). The
    published mu and sigma are used as they are stored, never recomputed from such images.

    Extractors whose weights cannot be given as a file are refused: torch-fidelity's ``dinov2-*`` load
    code and weights of whatever revision torch.hub finds, so that no checksum could stand beside the number.
    Data that are not images are their own features: ``extractor: identity``, kept as they are.
    """

    kind: Literal["feature-metrics"] = Field(
        default="feature-metrics", exclude_if=lambda value: value == "feature-metrics"
    )
    images: Count = Field(gt=1)
    metrics: list[Metric] = Field(default=["fid", "is"], min_length=1, description="what is computed")
    kid: KernelDistance = KernelDistance()
    mmd: RbfKernel = RbfKernel()
    moons: MoonDistance | None = Field(
        default=None, exclude_if=lambda value: value is None, description="of moon_distance, off_moons"
    )
    labels: Literal["balanced", "random"]
    extractor: str = Field(
        description="torch-fidelity name; dinov2; conv-classifier or clip, which are trained here; pixels, "
        "averaged; or identity"
    )
    features: str = Field(description="layer whose Gaussian is compared")
    logits: str | None = Field(default=None, description="layer for the Inception score")
    weights: Weights | None = Field(default=None, description="of the extractor; identity has none")
    reference: Weights | None = Field(default=None, description="stored mu, sigma; else computed")
    reference_latents: Annotated[str | None, Ref("latents")] = None

    uint8: Literal["round", "truncate", "none"] = Field(
        default="round", description="how images become bytes; none: they do not (identity)"
    )
    feature_scale: float | None = Field(
        default=None, gt=0, description="rescale features so that the reference has this variance"
    )
    seed: Seed = 0

    @property
    def own_features(self) -> bool:
        """Whether the data are their own features, without an extractor."""
        return self.extractor == "identity"

    @property
    def weightless(self) -> bool:
        """Whether features are computed without a network."""
        return self.extractor in ("identity", "pixels")

    @model_validator(mode="after")
    def _reference(self) -> Protocol:
        if (self.reference is None) == (self.reference_latents is None):
            raise ValueError("name exactly one of reference, reference_latents")
        if len(set(self.metrics)) != len(self.metrics):
            raise ValueError(f"metrics {self.metrics} name one twice")
        if "is" in self.metrics and self.logits is None:
            raise ValueError("metrics: is needs logits, the layer with the classes")
        if "kid" in self.metrics and self.kid.size > self.images:
            raise ValueError(f"kid.size {self.kid.size} is beyond the {self.images} images")
        if (self.moons is None) == bool({"moon_distance", "off_moons"} & set(self.metrics)):
            raise ValueError("metrics: moon_distance and off_moons go with moons")
        own = self.own_features
        if own != (self.uint8 == "none") or self.weightless != (self.weights is None):
            raise ValueError(
                "extractor: identity goes with uint8: none, and it and pixels alone go without weights"
            )
        if self.extractor == "pixels" and "fid" in self.metrics:
            raise ValueError("metrics: fid is a distance in features of a network; of pixels say frechet")
        if ("fdd" in self.metrics) != (self.extractor == "dinov2") or {"fid", "frechet"} & set(
            self.metrics if self.extractor == "dinov2" else []
        ):
            raise ValueError("metrics: fdd is the distance in features of dinov2, which has no other")
        if self.extractor.startswith("dinov2-"):
            raise ValueError(f"extractor {self.extractor}: only torch.hub has its weights, not pinned")
        layers = EXTRACTORS.get(self.extractor)
        if layers is None and not own:
            raise ValueError(f"unknown extractor {self.extractor!r}{nearest(self.extractor, EXTRACTORS)}")
        for key, layer in (("features", self.features), ("logits", self.logits)):
            if layers and layer is not None and layer not in layers:
                raise ValueError(f"{key}: {self.extractor} has no layer {layer!r}{nearest(layer, layers)}")
        return self

    @property
    def compares_images(self) -> bool:
        """Whether a metric needs the features of every image, beside their mean and covariance."""
        return not set(COMPARE_IMAGES).isdisjoint(self.metrics)

    @property
    def beyond_moments(self) -> list[str]:
        """Its metrics for which a published mu and sigma, those of Inception's features, are not enough."""
        return [name for name in self.metrics if name in (*COMPARE_IMAGES, "fdd")]

    @property
    def published_moments(self) -> bool:
        """Whether mu and sigma of a published file are the reference's; they are Inception's."""
        return self.reference is not None and self.extractor != "dinov2"

    @property
    def stored(self) -> bool:
        """Whether the published file alone is the reference."""
        return self.published_moments and not self.compares_images


class Optimizer(Strict):
    name: Literal["adamw", "radam"] = "adamw"
    lr: float = Field(gt=0, le=10)
    betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field(default=[0.9, 0.999], min_length=2, max_length=2)
    eps: float = Field(default=1e-8, gt=0, le=1)
    weight_decay: float = Field(default=0.0, ge=0, le=10)
    clip: float | None = Field(default=1.0, gt=0, description="largest gradient norm")
    warmup: int = Field(default=0, ge=0, description="steps of linear warm-up")
    decay: Literal["constant", "cosine"] = "constant"
    final_lr_ratio: float = Field(default=0.0, ge=0, le=1, description="last over first lr (cosine)")


class PowerEma(Strict):
    """EMA whose width is a fixed share of training (EDM2, eq. 121)."""

    kind: Literal["power"]
    sigma_rel: float = Field(gt=0, lt=0.289)


class ConstantEma(Strict):
    kind: Literal["constant"]
    decay: float = Field(ge=0, lt=1)
    ramp: bool = Field(default=False, description="min(decay, (1 + k) / (10 + k)) at update k")


Ema = Annotated[PowerEma | ConstantEma, Field(discriminator="kind")]


class Train(Strict):
    steps: Count
    global_batch_size: Batch = Field(description="global batch; processes and accumulation divide it")
    optimizer: Optimizer
    ema: Ema
    precision: Literal["no", "bf16", "fp16"] = "no"
    log_every: Count = 1
    max_skipped_updates: Count = Field(
        default=10, description="skipped non-finite updates in a row before stopping"
    )

    @property
    def problem(self) -> str:
        """Why no training can have these numbers together; empty where one can."""
        if self.optimizer.warmup >= self.steps:
            return f"warmup {self.optimizer.warmup} is not below steps {self.steps}"
        return ""


def _possible(train: Train) -> Train:
    if train.problem:
        raise ValueError(train.problem)
    return train


PossibleTrain = Annotated[Train, AfterValidator(_possible)]
"""Of a recipe, and of a training; what a method lays over its recipe is looked at when it is asked for."""


class Recipe(Strict):
    """Data, network, guidance, training budget and evaluation of a family of runs."""

    scale: Scale = Field(
        description="toy: as small in the paper itself, and one and the same under every preset; own: a "
        "user's own images, of which no paper has numbers"
    )
    latents: Annotated[str, Ref("latents")]
    backbone: Annotated[str, Ref("backbones")]
    train: PossibleTrain
    teacher: Annotated[str | None, Ref("methods")] = Field(None, description="it teaches and initialises")
    text_encoder: Annotated[str | None, Ref("text_encoders")] = Field(
        default=None, description="of the captions that condition the network"
    )
    guidance: Guidance | None = None
    protocols: Annotated[list[str], Ref("protocols")] = Field(
        default=[], description="first the paper's own, then the common one"
    )
    label_dropout: float = Field(default=0.1, ge=0, lt=1, description="used by methods without a teacher")
    provenance: dict[str, Mark] = Field(
        default={}, description="mark of a hyper-parameter, or of all below a key: train, train.optimizer.lr"
    )
