"""The images of one cell.

Labels and noise belong to the image's index and are drawn on the CPU, and images are made in chunks of a
fixed size, so that the result does not depend on the number of processes. Finished chunks are kept beside
the output until it is written: a stage that was stopped goes on from there.

While a chunk is made nothing waits for a GPU: the chunk before is copied and written meanwhile. A GPU whose
memory is short makes a chunk in parts, which moves the last bits of a network's output and nothing else.
"""

from __future__ import annotations

import glob
import hashlib
import json
import shutil
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..backbones import use_text
from ..backbones.model_file import check_text, check_tokenizer, load_network
from ..common.provenance import sampling_digest
from ..config import ConfigError, digest
from ..config.backbones import FlowNetwork
from ..config.specs import SampleSpec
from ..core.capture import WARM_UP, CapturedNetwork, CapturedSteps
from ..core.compilation import check_compiler, compile_blocks
from ..core.guidance import guided_field
from ..core.heads import Output
from ..core.memory import FittingBatches, free_memory, place
from ..core.precision import cast_blocks
from ..core.rng import generator
from ..data.manifest import known_normalisation, read_manifest
from ..data.normalisation import Normalisation
from ..data.text_store import TextStore, open_text, read_captions_of
from ..data.tokenizers import Decoding, open_tokenizer, weights_digest
from .distributed_map import from_main, is_main, join_processes, own_share, progress, wait_for_all
from .generator import CHUNK, expanded_interval_velocity, indexed_noise, refuse_inner_times
from .image_archive import open_images, write_images
from .quantization import quantize, refuse_nan
from .samplers import check_network, evaluations_per_image, integrate

AHEAD = 2
"""Chunks that may wait for being written while another is made on a GPU."""

Velocity = Callable[..., Output]


@dataclass(frozen=True)
class Options:
    """How a device is used: not part of the spec, as it moves the last bits of images alone."""

    compile: str = ""
    """Backend of torch.compile for the network's blocks and the decoder, or "" for none."""
    capture: bool = False
    """Replay the network as a CUDA graph, one for each number of rows."""
    channels_last: bool = False
    """Memory format of the decoder's convolutions."""


PLAIN = Options()


def generate_images(
    spec: SampleSpec,
    model: Path,
    out: Path,
    manifest: Path | None = None,
    weights: Path | None = None,
    options: Options = PLAIN,
    base: Path | None = None,
    text: Path | None = None,
) -> None:
    """Write a tar of images, sampled from a model file.

    Args:
        manifest: of the latents; needed if the tokenizer's own files do not say how latents are normalised.
        weights: of the tokenizer.
        base: model file that the weights, adapters, belong to.
        text: manifest of the text store with the prompts, for a network that is conditioned on captions.

    Raises:
        ConfigError: the network is not one that can be sampled from, or the normalisation is not known.
        ValueError: model, base, prompts, latents or tokenizer do not belong together, an image holds NaN, or
            a CUDA graph is asked for without a GPU.
    """
    if not isinstance(spec.backbone, FlowNetwork):
        raise ConfigError(f"{model}: backbone.kind: {spec.backbone.kind} cannot be sampled from")
    check_network(spec.sampler, spec.backbone, str(model))
    refuse_inner_times(spec.backbone, spec.sampler, spec.steps, str(model))
    device = join_processes()
    net, model_card = load_network(model, spec.backbone, base)
    store = open_prompts(spec, text, device)
    captions: list[str] = []
    if store is not None and text is not None:
        check_text(model_card, store.card, model)
        use_text(net, store)
        captions = read_captions_of(text)
    normalisation = read_normalisation(spec, manifest, weights)
    tokenizer_digest = weights_digest(weights)
    check_tokenizer(model_card, spec.latents.tokenizer, model, tokenizer_digest)
    velocity = prepared_velocity(net, options, device, spec.network_dtype, spec.expanded)
    dtype = getattr(torch, spec.decoder_dtype)
    decoding = Decoding(dtype, options.channels_last, options.compile)
    decoder = open_tokenizer(spec.latents.tokenizer, weights, spec.decoder, device, decoding)
    labels = image_labels(spec)
    unlabelled = spec.backbone.null
    release = velocity.forget if isinstance(velocity, CapturedNetwork) else None
    sampling = FittingBatches("sampling", CHUNK, release)

    def latents_of(part: range) -> Tensor:
        y = labels[part.start : part.stop]
        if store is not None:
            store.load(y)
        y = place(y, device)
        field = guided_field(velocity, spec.guidance, unlabelled, y)
        x0 = place(image_noise(spec, part, "start"), device)
        return integrate(
            spec.sampler, field, x0, spec.steps, lambda step: place(image_noise(spec, part, step), device)
        )

    def make(indices: range) -> tuple[Tensor, Tensor]:
        """Images of a chunk as bytes, and whether one held NaN, on the device, which is not waited for."""
        latents = torch.cat(sampling(latents_of, indices))
        images = decoder.decode(normalisation.denormalise(latents))
        if list(images.shape[1:]) != spec.image:
            raise ValueError(
                f"{model}: latents decode to {tuple(images.shape[1:])}, but the data set has "
                f"{tuple(spec.image)}"
            )
        return quantize(images, spec.uint8), images.isnan().any()

    owner = {
        "spec": digest(spec),
        "model": model_card["sha256"],
        "tokenizer": tokenizer_digest,
        "normalisation": normalisation.model_dump(),
        "code": sampling_digest(spec.backbone.kind),
        "text": store.digest if store else None,
    }
    kept = KeptChunks(out, owner)
    chunks = [range(first, min(first + CHUNK, spec.images)) for first in range(0, spec.images, CHUNK)]
    missing = from_main(kept.missing(chunks) if is_main() else [])
    if device.type == "cuda" and is_main():
        print(f"sampling: {CHUNK} images at a time; {free_memory(device)}")
    with ChunkWriter(kept, thread=device.type == "cuda") as writer:
        share = own_share(missing)
        for indices in progress(share, len(share)):
            writer.write(indices, *make(indices))
    wait_for_all()
    if not is_main():
        return
    card = {
        **spec.model_dump(mode="json"),
        "spec": digest(spec),
        "model": model_card,
        "evaluations": evaluations_per_image(spec.sampler, spec.steps, spec.guidance is not None),
    }
    if store is not None:
        shown = sorted(set(labels.tolist()))
        card |= {"text_store": store.card, "captions": {label: captions[label] for label in shown}}
    parts = zip(map(kept.read, chunks), labels.split(CHUNK), strict=True)
    write_images(out, card, ((images, part.numpy()) for images, part in parts))
    shutil.rmtree(kept.folder)


def open_prompts(spec: SampleSpec, text: Path | None, device: torch.device) -> TextStore | None:
    """The text store with the prompts of a spec; None where the network knows no captions.

    Raises:
        ConfigError: the spec has prompts, and no store is given; a store of other captions.
    """
    if spec.text is None:
        return None
    if text is None:
        raise ConfigError(f"{spec.text.name}: the network is conditioned on captions; pass --text")
    return open_text(text, spec.text, device)


def prepared_velocity(
    net: nn.Module, options: Options, device: torch.device, dtype: str, expanded: bool = False
) -> Velocity:
    """The network as it is sampled from: on the device, in its dtype, compiled and captured if asked for.

    Args:
        dtype: "float32", or what autocast computes in.
        expanded: the network is one of `expanded_interval_velocity`.

    Raises:
        ValueError: a CUDA graph is asked for without a GPU, or compilation without a compiler.
    """
    if options.capture and device.type != "cuda":
        raise ValueError("--capture: a CUDA graph needs a GPU")
    net = net.to(device)
    if options.compile:
        check_compiler("--compile", options.compile, device.type)
        compile_blocks(net, options.compile)
    if dtype != "float32":
        half = getattr(torch, dtype)
        cast_blocks(net, half)
        net.forward = torch.autocast(device.type, half)(net.forward)
    velocity = torch.no_grad()(expanded_interval_velocity(net) if expanded else net.__call__)
    return CapturedNetwork(velocity, CapturedSteps(device, WARM_UP)) if options.capture else velocity


class KeptChunks:
    """Finished chunks of an archive that is being made, in a folder beside it.

    Args:
        out: the archive.
        owner: all that the images depend on; chunks of another owner are removed.
    """

    def __init__(self, out: Path, owner: Mapping[str, Any]) -> None:
        text = json.dumps(owner, sort_keys=True)
        self.folder = out.with_name(f"{out.stem}.chunks-{hashlib.sha256(text.encode()).hexdigest()[:16]}")
        if is_main():
            for other in out.parent.glob(f"{glob.escape(out.stem)}.chunks-*"):
                if other != self.folder:
                    print(f"{other}: images of another model, spec or code discarded")
                    shutil.rmtree(other)
            self.folder.mkdir(parents=True, exist_ok=True)

    def missing(self, chunks: Sequence[range]) -> list[range]:
        """Chunks that are not there, or damaged."""
        return [indices for indices in chunks if not self._is_whole(indices)]

    def _is_whole(self, indices: range) -> bool:
        if not self._path(indices).exists():
            return False
        try:
            self.read(indices)
        except ValueError as error:
            print(f"{error}: made again")
            return False
        return True

    def read(self, indices: range) -> np.ndarray:
        """The images (n, C, H, W) of a chunk.

        Raises:
            ValueError: the file is damaged.
        """
        return open_images(self._path(indices)).images(0)

    def write(self, indices: range, images: np.ndarray) -> None:
        """Keep the images of a chunk."""
        card = {"uint8": "none" if images.dtype == np.float32 else "bytes"}
        write_images(self._path(indices), card, [(images, np.array(indices))])

    def _path(self, indices: range) -> Path:
        return self.folder / f"{indices.start:08d}.tar"


class ChunkWriter:
    """Writes chunks, with ``thread`` while the caller makes the next one; all are there when it is left."""

    def __init__(self, kept: KeptChunks, thread: bool) -> None:
        self._kept = kept
        self._pool = ThreadPoolExecutor(1) if thread else None
        self._writing: deque[Future[None]] = deque()

    def __enter__(self) -> ChunkWriter:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=error is not None)
        if error is None:
            self._wait(0)

    def write(self, indices: range, images: Tensor, nan: Tensor) -> None:
        """Write the images (n, C, H, W) of a chunk.

        Args:
            images: bytes or float32 data, on any device.
            nan: bool, whether an image held NaN before it was bytes.

        Raises:
            ValueError: there was NaN, in this chunk or one that was still being written.
        """
        copied = None
        if images.is_cuda:  # to pinned memory
            images, nan = (values.to("cpu", non_blocking=True) for values in (images, nan))
            copied = torch.cuda.Event()
            copied.record()
        if self._pool is None:
            self._finish(indices, images, nan, copied)
            return
        self._wait(AHEAD - 1)
        self._writing.append(self._pool.submit(self._finish, indices, images, nan, copied))

    def _wait(self, most: int) -> None:
        """Until at most so many chunks are still to be written."""
        while len(self._writing) > most:
            self._writing.popleft().result()

    def _finish(self, indices: range, images: Tensor, nan: Tensor, copied: torch.cuda.Event | None) -> None:
        if copied is not None:
            copied.synchronize()
        refuse_nan(nan)
        self._kept.write(indices, images.numpy())


def read_normalisation(spec: SampleSpec, manifest: Path | None, weights: Path | None) -> Normalisation:
    """How latents are normalised: by a manifest, or without one by the tokenizer's own files.

    Raises:
        ConfigError: neither says it.
        ValueError: a manifest of other latents, or of other tokenizer weights.
    """
    if manifest is None:
        return known_normalisation(spec.latents.tokenizer, weights)
    found = read_manifest(manifest)
    found.check(spec.latents, manifest)
    if found.weights != weights_digest(weights):
        raise ValueError(f"{manifest}: was encoded with other tokenizer weights than {weights}")
    return found.normalisation


def image_labels(spec: SampleSpec) -> Tensor:
    """Labels of all images, int64 (N,): classes or prompts in turn, or uniform by the protocol's seed."""
    classes = spec.latents.classes if spec.text is None else spec.text.captions
    if spec.labels == "balanced":
        return torch.arange(spec.images) % classes
    draws = generator(spec.seed, "sample", "labels")
    return torch.randint(classes, (spec.images,), generator=draws)


def image_noise(spec: SampleSpec, indices: range, purpose: str | int) -> Tensor:
    """Standard normal noise (n, C, H, W), drawn by a random generator of its own for each image.

    ``purpose`` is ``start``, or the number of the step that adds noise.
    """
    return indexed_noise(spec.latents.shape, spec.seed, indices, purpose)
