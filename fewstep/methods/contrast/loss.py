"""CLIP by contrast (arXiv 2103.00020, section 2.3 and Figure 3): which caption belongs to which image.

For each group of G rows, with directions I_i of images, T_i of their captions and a learned scale,

    l_ij = scale I_i . T_j,   p_ij = [y_i = y_j] / #{k: y_k = y_i}
    L = mean_i [CE(p_i., softmax l_i.) + CE(p_.i, softmax l_.i)] / 2

The network is called as ``net(x, y)`` and returns I, T and the scale.

Deviations from the paper:

* Rows of equal captions are not told from each other: the target is spread over them. By the identity in the
  paper's Figure 3 they would be taught to differ.
* The contrast is within groups of G rows, not the whole batch, so that the result does not depend on how many
  processes share the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from ...core.method import Batch, Context, LossOutput, Method
from ...core.precision import upcast
from .params import ContrastParams


class Contrast(Method):
    params: ContrastParams

    @property
    def group(self) -> int:
        return self.params.group

    def loss(self, net: nn.Module, batch: Batch, ctx: Context) -> LossOutput:
        images, captions, scale = (upcast(each) for each in net(batch.x1, batch.y))
        images, captions = self._grouped(images), self._grouped(captions)
        y = self._grouped(batch.y)
        equal = (y[:, :, None] == y[:, None]).to(images.dtype)
        target = equal / equal.sum(2, keepdim=True)
        logits = scale * images @ captions.mT
        loss = (_cross_entropy(logits, target) + _cross_entropy(logits.mT, target)) / 2
        hit = torch.gather(equal, 2, logits.argmax(2, keepdim=True)).mean()
        return LossOutput(loss, {"loss_ce": loss.detach(), "accuracy": hit, "scale": scale.detach()})

    def _grouped(self, rows: Tensor) -> Tensor:
        """Rows (B, ...) as (B / G, G, ...)."""
        if len(rows) % self.group:
            raise ValueError(f"loss.group: {len(rows)} rows are not groups of {self.group}")
        return rows.unflatten(0, (-1, self.group))


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return -(target * log_softmax(logits, dim=2)).sum(2).mean()
