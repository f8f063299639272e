"""The demo's feature extractor: cross-entropy on noisy images with smoothed labels.

    L = CE(net(x + noise * n), (1 - smoothing) onehot(y) + smoothing / classes),   n ~ N(0, I)

Label smoothing as in arXiv 1512.00567, section 7. The network is called as ``net(x)`` and returns logits.
"""

from __future__ import annotations

from torch import nn
from torch.nn.functional import cross_entropy

from ...core.method import Batch, Context, LossOutput, Method
from ...core.precision import upcast
from .params import ClassifierParams


class Classifier(Method):
    params: ClassifierParams

    def loss(self, net: nn.Module, batch: Batch, ctx: Context) -> LossOutput:
        x = batch.x1 + self.params.noise * ctx.rng.normal_like("noise", batch.x1)
        logits = upcast(net(x))
        loss = cross_entropy(logits, batch.y, label_smoothing=self.params.smoothing)
        accuracy = (logits.argmax(1) == batch.y).float().mean()
        return LossOutput(loss, {"loss_ce": loss.detach(), "accuracy": accuracy})
