"""From a network to images: what sampling a cell, watching a training and generating images share.

Image i of a seed starts from the noise of image i of a cell whose protocol has that seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn

from ..common.cli import first_few
from ..config import ConfigError
from ..config.backbones import ClassNetwork, FlowNetwork
from ..config.sampling import Choice, Sampling
from ..config.settings import Guidance, Sampler
from ..core.guidance import guided_field
from ..core.heads import Output
from ..core.memory import place
from ..core.rng import generator
from ..data.normalisation import Normalisation
from ..data.tokenizers import Codec
from .quantization import quantize, refuse_nan
from .samplers import check_network, integrate

CHUNK = 250
"""Images made together. Part of the result: the last bits of a network's output depend on it.

With guidance 500 rows of the network: more than enough for a GPU.
"""
Velocity = Callable[..., Output]


def expanded_interval_velocity(net: nn.Module) -> Callable[..., Tensor]:
    """A network of FACM's expanded time interval, with its velocity at s = t.

    Such a network has no second time. On condition 2 - t it returns the velocity at t; on condition t, the
    average velocity from t to s = 1.
    """

    def call(x: Tensor, t: Tensor, s: Tensor, y: Tensor) -> Tensor:
        velocity: Tensor = net(x, torch.where(s == t, 2 - t, t), s, y)
        return velocity

    return call


def indexed_noise(shape: Sequence[int], seed: int, indices: range, purpose: str | int) -> Tensor:
    """Standard normal noise (n, *shape), drawn by a random generator of its own for each image.

    ``purpose`` is ``start``, or the number of the step that adds noise.
    """
    return torch.stack(
        [torch.randn(tuple(shape), generator=generator(seed, "sample", i, purpose)) for i in indices]
    )


def refuse_inner_times(network: FlowNetwork, sampler: Sampler, steps: int, name: str) -> None:
    """Refuse to sample in more than one plain step from a network that is not told the times.

    Args:
        name: of its file, for the message.

    Raises:
        ConfigError: naming the sampler and the steps.
    """
    if not network.samples_in(sampler.kind, steps):
        raise ConfigError(
            f"{name}: steps: {steps} of sampler kind {sampler.kind}, but the network is not told the times; "
            "ask for 1 step of kind cm or euler"
        )


@dataclass(frozen=True)
class ImageSampler:
    """A network with all that its images depend on beside their labels."""

    velocity: Velocity
    null: int
    """The label of no condition."""
    shape: Sequence[int]
    """(C, H, W) of the latents."""
    sampler: Sampler
    guidance: Guidance | None
    steps: int
    seed: int
    codec: Codec
    normalisation: Normalisation
    image: Sequence[int]
    """(C, H, W) of the images."""
    uint8: str
    """How images become bytes, as in a protocol."""
    device: torch.device
    name: str
    """Of the network's file, for messages."""

    def latents(self, indices: range, labels: Tensor) -> Tensor:
        """Normalised latents (n, C, H, W) of some images, on the device.

        Args:
            labels: int64 (n,), on any device.
        """

        def noise(purpose: str | int) -> Tensor:
            return place(indexed_noise(self.shape, self.seed, indices, purpose), self.device)

        field = guided_field(self.velocity, self.guidance, self.null, place(labels, self.device))
        return integrate(self.sampler, field, noise("start"), self.steps, noise)

    def images(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Images (n, C, H, W) of latents, as bytes, and whether one held NaN, on the device, not waited for.

        Raises:
            ValueError: the images are of another size.
        """
        decoded = self.codec.decode(self.normalisation.denormalise(latents))
        if list(decoded.shape[1:]) != list(self.image):
            raise ValueError(
                f"{self.name}: latents decode to {tuple(decoded.shape[1:])}, but its images are "
                f"{tuple(self.image)}"
            )
        return quantize(decoded, self.uint8), decoded.isnan().any()

    def on_host(self, labels: Tensor, most: int) -> Tensor:
        """Images (n, C, H, W) of labels (n,), numbered from 0, on the CPU; ``most`` are made together.

        Raises:
            ValueError: an image holds NaN, or is of another size.
        """
        made = []
        for first in range(0, len(labels), most):
            indices = range(first, min(first + most, len(labels)))
            images, nan = self.images(self.latents(indices, labels[indices.start : indices.stop]))
            refuse_nan(nan)
            made.append(images.cpu())
        return torch.cat(made)


@dataclass(frozen=True)
class Generator:
    """A network with all that its images depend on; it computes in float32."""

    net: nn.Module
    backbone: ClassNetwork
    codec: Codec
    normalisation: Normalisation
    sampling: Sampling
    name: str
    """Of the file, for messages."""
    names: Sequence[str] = ()
    """Of the classes, where the data have them."""

    def __call__(
        self, classes: Sequence[int | str], steps: int = 1, seed: int = 0, choice: Choice | None = None
    ) -> list[Image.Image]:
        """One picture for each class; errors as for `images`."""
        pixels = self.images(classes, steps, seed, choice).permute(0, 2, 3, 1).numpy()
        return [Image.fromarray(each.squeeze(-1) if each.shape[-1] == 1 else each) for each in pixels]

    def images(
        self, classes: Sequence[int | str], steps: int = 1, seed: int = 0, choice: Choice | None = None
    ) -> Tensor:
        """Images uint8 (n, C, H, W) on the CPU, one for each class.

        Args:
            classes: their numbers, or names.
            choice: sampler and guidance, instead of those of the model for that many steps.

        Raises:
            ConfigError: no classes, an unknown one, samples that are no images, or no sampler for the steps.
            ValueError: a number of steps that the sampler cannot take, or an image holds NaN.
        """
        spec = self.backbone
        numbers = [self._number(each) for each in classes]
        if not numbers:
            raise ConfigError(f"{self.name}: classes: none is given; {self._known()}")
        if self.sampling.uint8 == "none":
            raise ConfigError(f"{self.name}: sampling.uint8: none: its samples are data, not images")
        choice = choice or self.sampling.choice(steps)
        if choice is None:
            known = ", ".join(self.sampling.samplers) or "none"
            raise ConfigError(
                f"{self.name}: sampling.samplers: none for {steps} steps (known: {known}); pass --sampler"
            )
        check_network(choice.sampler, spec, self.name)
        refuse_inner_times(spec, choice.sampler, steps, self.name)
        velocity: Velocity = self.net
        if self.sampling.expanded:
            velocity = expanded_interval_velocity(self.net)
        sampler = ImageSampler(
            velocity=velocity,
            null=spec.null,
            shape=spec.shape,
            sampler=choice.sampler,
            guidance=choice.guidance,
            steps=steps,
            seed=seed,
            codec=self.codec,
            normalisation=self.normalisation,
            image=self.sampling.image,
            uint8=self.sampling.uint8,
            device=next(self.net.parameters()).device,
            name=self.name,
        )
        return sampler.on_host(torch.tensor(numbers), CHUNK)

    def _number(self, label: int | str) -> int:
        """Of a class, by its number or name."""
        number = self.names.index(label) if isinstance(label, str) and label in self.names else label
        if isinstance(number, str) or not 0 <= number < self.backbone.classes:
            raise ConfigError(f"{self.name}: classes: there is no class {label!r}; {self._known()}")
        return number

    def _known(self) -> str:
        """The classes that there are, for a message."""
        names = f" ({first_few(self.names)})" if self.names else ""
        return f"there are 0 to {self.backbone.classes - 1}{names}"


def grid(pictures: Sequence[Image.Image], columns: int | None = None) -> Image.Image:
    """Pictures of one size as one, row by row, two pixels apart; in as many columns as rows, or nearly."""
    columns = columns or min(len(pictures), max(1, round(len(pictures) ** 0.5)))
    rows = -(-len(pictures) // columns)
    width, height = (side + 2 for side in pictures[0].size)
    whole = Image.new("RGB", (columns * width - 2, rows * height - 2), "white")
    for number, picture in enumerate(pictures):
        whole.paste(picture, (number % columns * width, number // columns * height))
    return whole
