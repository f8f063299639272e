"""The two small convolutional networks of the demo: its tokenizer and its feature extractor."""

from __future__ import annotations

from torch import Tensor, nn

from ..config import backbones as specs


class ConvAutoencoder(nn.Module):
    """Autoencoder with half the resolution in its latent: (B, C, H, W) <-> (B, latent, H/2, W/2)."""

    def __init__(self, spec: specs.ConvAutoencoder) -> None:
        super().__init__()
        channels = _checked(spec.shape, 2)[0]
        width = spec.width
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 2, stride=2),
            nn.SiLU(),
            nn.Conv2d(width, spec.latent, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(spec.latent, width, 3, padding=1),
            nn.SiLU(),
            nn.ConvTranspose2d(width, width, 2, stride=2),
            nn.SiLU(),
            nn.Conv2d(width, channels, 3, padding=1),
        )

    def encode(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] to latents (B, latent, H/2, W/2), not normalised."""
        return self.encoder(x)

    def decode(self, z: Tensor) -> Tensor:
        """Latents to images; not clamped."""
        return self.decoder(z)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Reconstruction and clean latent; ``noise``, shaped like the latent, is added before decoding."""
        z = self.encode(x)
        return self.decode(z if noise is None else z + noise), z


class ConvClassifier(nn.Module):
    """Classifier whose last hidden layer serves as the features of the demo's Fréchet distance."""

    def __init__(self, spec: specs.ConvClassifier) -> None:
        super().__init__()
        channels, height, width = _checked(spec.shape, 4)
        self.trunk = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(64, 64, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(64 * (height // 4) * (width // 4), spec.features),
            nn.SiLU(),
        )
        self.head = nn.Linear(spec.features, spec.classes)

    def features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] to features (B, features)."""
        return self.trunk(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes)."""
        return self.head(self.features(x))


def _checked(shape: list[int], factor: int) -> list[int]:
    if any(size % factor for size in shape[1:]):
        raise ValueError(f"image {shape}: height and width must be divisible by {factor}")
    return shape
