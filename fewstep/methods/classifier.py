"""The demo's feature extractor: cross-entropy on noisy images with smoothed labels.

    L = CE(net(x + noise * n), (1 - smoothing) onehot(y) + smoothing / classes),   n ~ N(0, I)

Label smoothing as in arXiv 1512.00567, section 7. The network is called as ``net(x)`` and returns logits.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn.functional import cross_entropy

from ..config.losses import ClassifierLoss
from ..core.method import Batch, Context, Loss, LossOutput, Method
from ..core.precision import upcast


class Classifier(Method):
    kind = "image"
    params: ClassifierLoss

    def updates(self, step: int) -> Sequence[Loss]:
        return (self.loss,)

    def loss(self, net: nn.Module, batch: Batch, ctx: Context) -> LossOutput:
        x = batch.x1 + self.params.noise * ctx.rng.normal_like("noise", batch.x1)
        logits = upcast(net(x))
        loss = cross_entropy(logits, batch.y, label_smoothing=self.params.smoothing)
        accuracy = (logits.argmax(1) == batch.y).float().mean()
        return LossOutput(loss, {"loss_ce": loss.detach(), "accuracy": accuracy})
