"""The images of one cell, by a released pipeline of diffusers.

Every image is made alone, with a random generator of its own on the CPU for its first noise and what its
scheduler draws later: its pixels depend on nothing but its prompt and its number. Finished images are kept
beside the output until it is written, so that a stage that was stopped goes on from there.

Nothing of a folder is run or unpickled: the classes are those of diffusers and transformers, the weights
safetensors, and every file is compared with its checksum first.

TwinFlow's networks (arXiv 2512.05150) know a second time r, the end of the jump, in diffusers' times (1 at
noise): its embedding is multiplied by tau - r and added to that of tau. Here r is 0, the data. Qwen-Image's
release embeds r itself; Z-Image's embeds, in the times 1 - tau of that network, the difference of both, and
takes the end as 0 there too, as the code that it was trained by does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.utils.torch_utils import randn_tensor
from safetensors import safe_open
from torch import Tensor, nn

from ..common.cli import first_few
from ..common.files import reading
from ..common.provenance import PIPELINE, sampling_digest
from ..config import ConfigError, digest
from ..config.pipelines import Adapter, DiffusersPipeline
from ..config.specs import PipelineSampleSpec
from ..core.rng import generator
from ..data.asset_files import Record, read_record
from ..data.captions import read_prompts
from ..data.text_store import captions_sha256
from .distributed_map import join_processes
from .kept_chunks import write_in_chunks
from .quantization import quantize

KEPT = 16
"""Images in a file of those that are kept; not part of the result."""
UNSAFE = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".py")
"""Files that would be unpickled, or run."""
LIBRARIES = ("diffusers", "transformers")
"""Where the classes of a pipeline's parts may be from."""
SECOND_TIME = {
    "QwenImagePipeline": ("QwenImageTransformer2DModel", "time_text_embed"),
    "ZImagePipeline": ("ZImageTransformer2DModel", "t_embedder"),
}
"""Pipeline -> class of its transformer, and its embedding of the time; that of the second ends in `_2`."""


def generate_by_pipeline(spec: PipelineSampleSpec, records: Sequence[Path], prompts: Path, out: Path) -> None:
    """Write a tar of images.

    Args:
        records: of the pipeline's asset and those of its adapters.
        prompts: record of the asset of the prompts.

    Raises:
        ConfigError: records of other assets; files that are missing, damaged or not to be read safely; a
            folder of another pipeline.
        ValueError: diffusers cannot load it, or an image holds NaN or is of another size.
    """
    device = join_processes()
    lines = [line["prompt"] for line in read_prompts(spec.prompts, prompts)]
    found = {record.body.name: record for record in map(read_record, records)}
    if sorted(found) != sorted(spec.pipeline.assets):
        raise ConfigError(
            f"--pipeline: records of {first_few(found)}, not of {first_few(spec.pipeline.assets)}"
        )
    pipe = open_pipeline(spec.pipeline, found).to(device)
    weights = {name: record.digest for name, record in sorted(found.items())}
    owner = {
        "spec": digest(spec),
        "weights": weights,
        "prompts": captions_sha256(lines),
        "code": sampling_digest(PIPELINE),
        "diffusers": diffusers.__version__,
    }

    def make(indices: range) -> tuple[Tensor, Tensor]:
        images = torch.cat([_image(spec, pipe, lines[index % len(lines)], index) for index in indices])
        return quantize(2 * images - 1, spec.uint8), images.isnan().any()

    labels = torch.arange(spec.images) % len(lines)
    write_in_chunks(out, owner, _card(spec, weights, lines, labels), labels, KEPT, make, device)


def _card(
    spec: PipelineSampleSpec, weights: dict[str, str], prompts: Sequence[str], labels: Tensor
) -> dict[str, Any]:
    pipeline = spec.pipeline
    scheduler = pipeline.scheduler.model_dump(mode="json") if pipeline.scheduler else None
    shown = sorted(set(labels.tolist()))
    return {
        **spec.model_dump(mode="json"),
        "spec": digest(spec),
        "model": {
            "status": "released",
            "code": None,
            "backbone": {"kind": PIPELINE},
            "pipeline": pipeline.name,
            "weights": weights,
            "made_for": pipeline.steps,
            "steps": spec.steps,
            "diffusers": diffusers.__version__,
        },
        "sampler": {"kind": "pipeline", "scheduler": scheduler},
        "guidance": {"scale": pipeline.guidance},
        "evaluations": spec.steps * pipeline.evaluations_per_step,
        "text_store": {"caption_list": captions_sha256(prompts)},
        "captions": {label: prompts[label] for label in shown},
    }


def open_pipeline(pipeline: DiffusersPipeline, records: dict[str, Record]) -> Any:
    """The pipeline with its adapters and its scheduler, on the CPU.

    Args:
        records: of its assets, by their names.

    Raises:
        ConfigError, ValueError: as for `generate_by_pipeline`.
    """
    folder = _verified(records[pipeline.asset], pipeline.folder)
    _check_index(folder, pipeline)
    dtype = getattr(torch, pipeline.dtype)
    given: dict[str, Any] = {"dtype": dtype, "local_files_only": True, "use_safetensors": True}
    parts: dict[str, Any] = {}
    if pipeline.second_time:
        parts["transformer"] = _loaded(folder, lambda: _two_times(folder / "transformer", pipeline, given))
    if pipeline.name == "StableDiffusionXLPipeline":
        parts["add_watermarker"] = False
    kind = getattr(diffusers, pipeline.name)
    with _readable(folder, pipeline) as readable:
        pipe = _loaded(folder, lambda: kind.from_pretrained(readable, **given, **parts))
    for number, adapter in enumerate(pipeline.adapters):
        _adapt(pipe, adapter, records[adapter.asset], f"adapter_{number}")
    if pipeline.scheduler is not None:
        name = pipeline.scheduler.name
        scheduler = RestartScheduler if name == "restart" else getattr(diffusers, name)
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **pipeline.scheduler.options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _verified(record: Record, folder: str) -> Path:
    """A folder of an asset, every file of which is as it was fetched, and none to be unpickled or run."""
    unsafe = [file.name for file in record.body.files if PurePosixPath(file.name).suffix in UNSAFE]
    if unsafe:
        raise ConfigError(
            f"{record.path}: files: {first_few(unsafe)} would be unpickled or run; leave it out of the asset"
        )
    return record.verified_folder(folder)


def _check_index(folder: Path, pipeline: DiffusersPipeline) -> None:
    """Refuse a folder of another pipeline, parts whose code is not diffusers', and parts that are missing."""
    path = folder / "model_index.json"
    with reading(path, "the index of a pipeline of diffusers"):
        index = json.loads(path.read_text(encoding="utf-8"))
    if index.get("_class_name") != pipeline.name:
        raise ConfigError(
            f"{path}: _class_name: {index.get('_class_name')}, but {pipeline.name} is asked for"
        )
    for part, named in index.items():
        if part.startswith("_") or not isinstance(named, list) or named[0] is None:
            continue
        ours = pipeline.second_time and part == "transformer"
        if named[0] not in LIBRARIES and not ours:
            raise ConfigError(f"{path}: {part}: code of {named[0]!r} is not run, only of diffusers")
        if not (folder / part).is_dir():
            raise ConfigError(f"{folder}: the pipeline's part {part} is missing; fetch the asset again")


@contextmanager
def _readable(folder: Path, pipeline: DiffusersPipeline) -> Iterator[Path]:
    """The folder; where its transformer is of a class of its authors, one that names diffusers' instead."""
    if not pipeline.second_time:
        yield folder
        return
    with TemporaryDirectory() as temporary:
        for entry in folder.iterdir():
            Path(temporary, entry.name).symlink_to(entry.resolve())
        path = Path(temporary, "model_index.json")
        index = json.loads(path.read_text(encoding="utf-8"))
        path.unlink()
        named = ["diffusers", SECOND_TIME[pipeline.name][0]]
        path.write_text(json.dumps(index | {"transformer": named}), encoding="utf-8")
        yield Path(temporary)


def _loaded(path: Path, load: Callable[[], Any]) -> Any:
    """What is loaded; what diffusers or transformers say of it becomes one line."""
    try:
        return load()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError) as error:
        told = " ".join(str(error).split())
        raise ValueError(f"{path}: diffusers cannot load it: {told[:300]}") from error


def _adapt(pipe: Any, adapter: Adapter, record: Record, name: str) -> None:
    """Load adapters, and fuse them."""
    path, _ = record.verified(adapter.file)

    def load() -> None:
        pipe.load_lora_weights(
            path.parent, weight_name=path.name, adapter_name=name, local_files_only=True, use_safetensors=True
        )
        if name not in {known for names in pipe.get_list_adapters().values() for known in names}:
            raise ValueError("it has no weight that the pipeline's networks know")
        pipe.set_adapters([name], [adapter.scale])
        if adapter.fuse:
            pipe.fuse_lora(adapter_names=[name])
            pipe.unload_lora_weights()

    _loaded(path, load)


def _image(spec: PipelineSampleSpec, pipe: Any, prompt: str, index: int) -> Tensor:
    """One image (1, 3, H, W) in [0, 1]."""
    noise = generator(spec.seed, "sample", index, "start")
    if isinstance(pipe.scheduler, RestartScheduler):
        pipe.scheduler.noise = noise
    images: Tensor = pipe(
        **call_arguments(spec.pipeline, spec.steps), prompt=[prompt], generator=[noise]
    ).images
    if list(images.shape[1:]) != spec.image:
        raise ValueError(
            f"{spec.pipeline.asset}: its images are {tuple(images.shape[1:])}, not {tuple(spec.image)}; set "
            "pipeline.image"
        )
    return images.float()


def call_arguments(pipeline: DiffusersPipeline, steps: int) -> dict[str, Any]:
    """What the pipeline's call is given beside prompt and noise."""
    scale = "true_cfg_scale" if pipeline.name == "QwenImagePipeline" else "guidance_scale"
    given: dict[str, Any] = {
        "height": pipeline.image,
        "width": pipeline.image,
        "num_inference_steps": steps,
        "output_type": "pt",
        scale: pipeline.guidance,
    }
    options = ("eta", "timesteps", "sigmas", "max_sequence_length")
    given |= {name: getattr(pipeline, name) for name in options if getattr(pipeline, name) is not None}
    if pipeline.name == "QwenImagePipeline" and pipeline.evaluations_per_step == 2:
        given["negative_prompt"] = [" "]
    if pipeline.name == "SanaSprintPipeline":
        given["use_resolution_binning"] = False
        if steps != 2:
            given["intermediate_timesteps"] = None
    return given


class RestartScheduler(FlowMatchEulerDiscreteScheduler):
    """Flow matching with fresh noise after every step (UCGM-S with rho = 1, arXiv 2505.07447, Algorithm 2).

    At noise level sigma with prediction F of noise - data, the data are x - sigma F; the next point is
    (1 - sigma') (x - sigma F) + sigma' noise. The levels are those that the call gives.
    """

    noise: torch.Generator | None = None
    """Of the image that is being made."""

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True, **_: Any
    ) -> tuple[Tensor]:
        """The next point, as the only entry of a tuple."""
        if self.step_index is None:
            self._init_step_index(timestep)
        now, after = self.sigmas[self.step_index], self.sigmas[self.step_index + 1]
        x, prediction = sample.float(), model_output.float()
        fresh = randn_tensor(x.shape, generator=self.noise, device=x.device, dtype=x.dtype)
        self._step_index += 1
        return (((1 - after) * (x - now * prediction) + after * fresh).to(sample.dtype),)


class _QwenTimes(nn.Module):
    """Embedding of tau, and tau times that of r = 0."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, tau: Tensor, *more: Any) -> Tensor:
        embedded: Tensor = self.first(tau, *more) + self.second(torch.zeros_like(tau), *more) * tau[:, None]
        return embedded


class _ZImageTimes(nn.Module):
    """Embedding of t = 1 - tau, which is given times ``scale``, and t times that of its negative."""

    def __init__(self, first: nn.Module, second: nn.Module, scale: float) -> None:
        super().__init__()
        self.first, self.second, self.scale = first, second, scale

    def forward(self, scaled: Tensor) -> Tensor:
        embedded: Tensor = self.first(scaled) + self.second(-scaled) * (scaled / self.scale).abs()[:, None]
        return embedded


def _two_times(folder: Path, pipeline: DiffusersPipeline, given: dict[str, Any]) -> Any:
    """A pipeline's transformer with the embedding of a second time that its weights have."""
    name, embedding = SECOND_TIME[pipeline.name]
    net = getattr(diffusers, name).from_pretrained(folder, **given)
    first = getattr(net, embedding)
    second = type(first)(*_sizes(net, pipeline)).to(given["dtype"])
    prefix = f"{embedding}_2."
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as tensors:
            found |= {
                key.removeprefix(prefix): tensors.get_tensor(key)
                for key in tensors.keys()  # noqa: SIM118
                if key.startswith(prefix)
            }
    if not found:
        raise ValueError(f"its weights have no {prefix}*, the embedding of a second time")
    second.load_state_dict(found)
    both = (
        _QwenTimes(first, second)
        if embedding == "time_text_embed"
        else _ZImageTimes(first, second, net.t_scale)
    )
    setattr(net, embedding, both)
    return net


def _sizes(net: Any, pipeline: DiffusersPipeline) -> list[int]:
    """What an embedding of a time is made with."""
    if pipeline.name == "QwenImagePipeline":
        return [net.inner_dim]
    linear = net.t_embedder.mlp
    return [linear[2].out_features, linear[0].out_features]
