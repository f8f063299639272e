"""A training step by every formulation of the tangent: time, memory, counted operations, MFU.

    python -m fewstep.bench train-step [--large] [--batch 4 16] [--methods facm decm] [--out x.csv]

``consistency`` is value, tangent and backward of the consistency term. Every method named is there with its
complete step besides: teacher, all terms, backward; on average over the steps after which its updates
recur (3 for DE-CM), without the optimizer, which is the same for all. Ratios are to ``functorch`` on the
same batch. MFU counts, for all alike, the operations of the formulation that needs least of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from ..backbones import build
from ..config import read_spec
from ..config.rates import Bench
from ..config.settings import Backbone, Guidance, LightningDiT
from ..config.specs import BenchSpec
from ..core.guidance import ClassifierFreeGuidance
from ..core.jvp import value_and_tangent
from ..core.method import Batch, Context, Method, loss_parts
from ..core.operations import OperationCounter
from ..core.rng import Streams
from ..methods import build as build_method
from ..methods import parameter_classes
from ..training.parallel import apply_compile_and_checkpointing, check_supported
from .meters import DEVICE, Case, machine, peak_bytes, peak_flops

BLOCKS = {"plain": (False, ""), "checkpointed": (True, ""), "compiled": (False, "inductor")}
BLOCKS["both"] = (True, "inductor")
"""How blocks are treated: recomputed or not, and by which compiler."""
REFERENCE = "functorch"
CONSISTENCY = "consistency"
NUMBERS = ("images/s", "ms", "median ms", "MiB", "GFLOP", "MFU", "peak TFLOP/s", "time", "memory")
Step = Callable[[nn.Module, ClassifierFreeGuidance | None, str], None]


def add_options(options: argparse.ArgumentParser) -> None:
    options.add_argument("--spec", type=Path, help="what to measure, as JSON, instead of the options below")
    options.add_argument("--batch", type=int, nargs="+", help="images at once (4, or 16 with --large)")
    options.add_argument("--methods", nargs="*", choices=["facm", "decm"], default=["facm", "decm"])
    options.add_argument("--blocks", nargs="+", choices=BLOCKS, default=["plain", "checkpointed"])


def spec_of(given: argparse.Namespace) -> BenchSpec:
    """The spec file, or what the options say."""
    if given.spec:
        return read_spec(BenchSpec, given.spec)
    network = LightningDiT(shape=[32, 16, 16], classes=1000, depth=4, width=128, heads=2)
    if given.large:
        network = LightningDiT(shape=[32, 16, 16], classes=1000, depth=28, width=1152, heads=16)
    return BenchSpec(
        backbone=network,
        teacher=network.model_copy(update={"target_time": False}),
        guidance=Guidance(scale=1.75, interval=[0.125, 1.0], normalise="rescale"),
        precision="bf16" if given.large else "no",
        losses={name: parameter_classes()[name](name=name) for name in given.methods},
        bench=Bench(
            methods=given.methods,
            batches=given.batch or [16 if given.large else 4],
            blocks=given.blocks,
            repeats=given.repeats,
        ),
    )


@dataclass
class StepCase(Case):
    """Training steps, with what was measured and counted of them beside their time."""

    steps: int
    """Training steps in one call."""
    peak: tuple[float, str]
    """Operations a second of the device, and where the number is from."""
    same: list[StepCase]
    """The cases of the same work on the same batch."""
    bytes: int = 0
    flops: int = 0
    note: str = ""

    def warm_up(self) -> None:
        """Compile what is to be compiled, count and measure."""
        try:
            self.call()
            self.bytes = peak_bytes(self.call)
            # What recomputation repeats counts too. Compiled blocks would hide their products.
            with torch.compiler.set_stance("force_eager"), OperationCounter(recomputed=True) as counted:
                self.call()
            self.flops = counted.total
        except torch.OutOfMemoryError:
            self.note = "out of memory"

    def measure(self) -> None:
        if not self.note:
            super().measure()

    def row(self, first: Case) -> dict[str, str]:
        row = {**self.words, **machine(), "note": self.note}
        if self.note:
            return row | dict.fromkeys(NUMBERS, "")
        least = min(self.seconds)
        useful = min(case.flops for case in self.same if not case.note)
        plain = {"tangent": REFERENCE, "blocks": "plain"}
        other = next((case for case in self.same if plain.items() <= case.words.items()), None)
        values = (
            f"{self.amount / least:.4g}",
            f"{1e3 * least / self.steps:.4g}",
            f"{1e3 * median(self.seconds) / self.steps:.4g}",
            f"{self.bytes / 2**20:.4g}",
            f"{self.flops / 1e9 / self.steps:.4g}",
            f"{useful / least / self.peak[0]:.3f}",
            f"{self.peak[0] / 1e12:.3g} {self.peak[1]}",
            f"{least / min(other.seconds):.3f}" if other and not other.note else "",
            f"{self.bytes / other.bytes:.3f}" if other and not other.note else "",
        )
        return row | dict(zip(NUMBERS, values, strict=True))


def cases(given: argparse.Namespace, _folder: Path) -> list[Case]:
    """Every piece of work on every batch by every formulation, where blocks may be treated so."""
    spec = spec_of(given)
    asked, given.repeats = spec.bench, spec.bench.repeats
    student, teacher = _network(spec.backbone), _network(spec.teacher) if spec.teacher else None
    arranged = {kind: _arranged(student, teacher, spec, kind) for kind in asked.blocks}
    peak = peak_flops(spec.precision)
    found: list[Case] = []
    for batch in asked.batches:
        for name, (steps, step) in _work(spec, batch).items():
            same: list[StepCase] = []
            for kind in asked.blocks:
                for formulation in sorted(asked.formulations, key=lambda each: each != REFERENCE):
                    checkpoint, compiler = BLOCKS[kind]
                    try:
                        check_supported(formulation, "none", checkpoint, bool(compiler), spec.precision)
                    except ValueError:
                        continue
                    words = {"work": name, "batch": str(batch), "tangent": formulation, "blocks": kind}
                    words["precision"] = spec.precision
                    call = partial(step, *arranged[kind], formulation)
                    same.append(StepCase(words, call, steps * batch, steps, peak, same))
            found += same
    return found


def _network(spec: Backbone) -> nn.Module:
    """Random weights everywhere: layers that start at zero would let kernels off."""
    net = build(spec).to(DEVICE)
    for weight in net.parameters():
        if weight.requires_grad:
            nn.init.normal_(weight, std=0.02)
    return net


def _arranged(
    student: nn.Module, teacher: nn.Module | None, spec: BenchSpec, kind: str
) -> tuple[nn.Module, ClassifierFreeGuidance | None]:
    """Both networks with their blocks treated as ``kind`` says; the weights are shared."""
    checkpoint, compiler = BLOCKS[kind]
    net = _twin(spec.backbone, student)
    apply_compile_and_checkpointing(net, checkpoint, compiler)
    if teacher is None or spec.teacher is None:
        return net, None
    frozen = _twin(spec.teacher, teacher).requires_grad_(False)
    apply_compile_and_checkpointing(frozen, compile=compiler)
    return net, ClassifierFreeGuidance(frozen, spec.guidance, spec.backbone.classes, eta=1.0)


def _twin(spec: Backbone, net: nn.Module) -> nn.Module:
    twin = build(spec)
    twin.load_state_dict(net.state_dict(keep_vars=True), assign=True)
    return twin.to(DEVICE)


def _work(spec: BenchSpec, batch: int) -> dict[str, tuple[int, Step]]:
    """Pieces of work by name: how many training steps one is, and how it is done."""
    draws = torch.Generator().manual_seed(0)
    x1, x0 = torch.randn(2, batch, *spec.backbone.shape, generator=draws).to(DEVICE)
    y = torch.arange(batch, device=DEVICE) % spec.backbone.classes
    rows = Batch(x1, x0, y)  # one object, so that the parts of a step ask the teacher once
    t = torch.rand(batch, generator=draws).to(DEVICE)

    def consistency(net: nn.Module, _teacher: ClassifierFreeGuidance | None, formulation: str) -> None:
        ends = torch.ones_like(t)
        with _autocast(spec.precision):
            given = (x1, t, ends), (x0, ends, 0 * ends), y
            value, tangent = value_and_tangent(net, *given, formulation)
            assert isinstance(value, Tensor) and isinstance(tangent, Tensor)
            loss = (value - tangent).square().mean()
        loss.backward()
        net.zero_grad(set_to_none=True)

    def complete(
        method: Method, steps: int, net: nn.Module, teacher: ClassifierFreeGuidance | None, formulation: str
    ) -> None:
        for number in range(steps):
            ctx = Context(
                step=torch.tensor(number, dtype=torch.float64, device=DEVICE),
                steps=steps,
                rng=Streams(0, number, batch, slice(0, batch), DEVICE),
                null=spec.backbone.classes,
                jvp=partial(value_and_tangent, formulation=formulation),
                teacher=teacher,
            )
            for update in method.updates(number):
                for part in loss_parts(update):
                    with _autocast(spec.precision):
                        loss = part(net, rows, ctx).loss
                    loss.backward()
                net.zero_grad(set_to_none=True)

    found: dict[str, tuple[int, Step]] = {CONSISTENCY: (1, consistency)}
    for name, params in spec.losses.items():
        steps = getattr(params, "freq", 1)
        found[name] = steps, partial(complete, build_method(params), steps)
    return found


def _autocast(precision: str) -> torch.autocast:
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(DEVICE.type, dtype, enabled=precision != "no")
