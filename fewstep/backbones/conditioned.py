"""What the networks of a flow share: times and labels summed to one conditioning vector."""

from __future__ import annotations

from torch import Tensor, nn

from ..config.settings import FlowNetwork
from .layers import LabelEmbedding, TimeEmbedding, without_autocast


class Conditioned(nn.Module):
    """A network that knows a time t, and perhaps a second time s and a label y.

    The names of the embeddings are those of the published checkpoints; one that the network lacks is None.
    """

    t_embedder: TimeEmbedding
    r_embedder: TimeEmbedding | None
    y_embedder: LabelEmbedding | None

    def embed(self, spec: FlowNetwork, width: int, labels: bool) -> None:
        """Make the embeddings; that of s starts at zero, so that a student starts as its teacher."""
        times = (width, spec.time_features, spec.time_scale, spec.time_period)
        self.t_embedder = TimeEmbedding(*times)
        self.r_embedder = TimeEmbedding(*times) if spec.target_time else None
        self.y_embedder = LabelEmbedding(spec.classes, width) if labels else None
        if self.r_embedder is not None:
            zero(self.r_embedder.mlp[2])

    def condition(self, t: Tensor, s: Tensor | None, y: Tensor) -> Tensor:
        """Sum of the embeddings of t, s (B,) and the labels y (B,): (B, width), never in half precision.

        The derivative with respect to the times passes through here, and costs little.
        """
        with without_autocast(y.device):
            c = self.t_embedder(t)
            if self.y_embedder is not None:
                c = c + self.y_embedder(y)
            if self.r_embedder is not None:
                if s is None:
                    raise ValueError("this network has a target-time embedding: give s")
                c = c + self.r_embedder(s)
        return c


def zero(layer: nn.Module) -> None:
    """Weights and offset 0."""
    for weight in layer.parameters():
        nn.init.zeros_(weight)
