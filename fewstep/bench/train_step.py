"""A training step by every formulation of the tangent: time, memory, counted operations, MFU.

    python -m fewstep.bench train-step [--network xl1] [--batch 4 16] [--methods facm decm] [--out x.csv]
    python -m fewstep.bench train-step --network sd3 --formulations functorch fused

``consistency`` is value, tangent and backward of the consistency term. Every method named is there with its
complete step besides, as a training does it: teacher, all terms, backward, clipping, optimizer, moving
average; on average over the steps after which its updates recur (3 for DE-CM). The learning rate is 0, so
that all cases have the same weights, and the batch is on the device. ``captured`` steps are CUDA graphs, on a
GPU alone. Ratios are to ``functorch`` on the same batch. MFU counts, for all alike, the operations of the
formulation that needs least of them.

``sd3`` is a small network of SD3.5's kind with adapters and random captions; its teacher is the same network
without the adapters.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones import build, use_text
from ..backbones.lora import AdaptersOff
from ..config import read_spec
from ..config.backbones import Backbone, LightningDiT, Lora, Sd3
from ..config.objectives import WithPlayers
from ..config.rates import Bench
from ..config.settings import Guidance, Optimizer, PowerEma
from ..config.specs import BenchSpec
from ..core.capture import WARM_UP, CapturedSteps
from ..core.guidance import ClassifierFreeGuidance
from ..core.jvp import FORMULATIONS, value_and_tangent
from ..core.method import Batch, Context, Method, Update, kind_of_step, loss_parts
from ..core.operations import OperationCounter
from ..core.rng import Draw, Streams
from ..core.wrappers import unwrap
from ..methods import build as build_method
from ..methods import parameter_classes
from ..training import parallel
from ..training.ema import Ema
from ..training.optimizer import make_optimizer, set_learning_rate, step_if
from ..training.trainer import start_accelerator
from .meters import DEVICE, Call, Case, clock, peak_bytes, peak_flops

BLOCKS = {
    "plain": (False, False, False),
    "checkpointed": (True, False, False),
    "compiled": (False, True, False),
    "both": (True, True, False),
    "captured": (False, False, True),
    "captured-compiled": (False, True, True),
}
"""How blocks are treated: whether they are recomputed and compiled, and whether the step is captured."""
NETWORKS: dict[str, LightningDiT | Sd3] = {
    "tiny": LightningDiT(shape=[4, 4, 4], classes=10, depth=1, width=16, heads=2, patch=2),
    "digits": LightningDiT(shape=[4, 4, 4], classes=10, depth=3, width=64, heads=2, patch=2),
    "small": LightningDiT(shape=[32, 16, 16], classes=1000, depth=4, width=128, heads=2),
    "sd3": Sd3(
        kind="sd3",
        shape=[16, 16, 16],
        layers=4,
        heads=4,
        head_width=32,
        dual_attention=2,
        positions=16,
        context=128,
        pooled=64,
        time_scale=20.0,
        lora=Lora(rank=16),
    ),
    "b1": LightningDiT(shape=[32, 16, 16], classes=1000, depth=12, width=768, heads=12),
    "xl1": LightningDiT(shape=[32, 16, 16], classes=1000, depth=28, width=1152, heads=16),
}
HALF = ("b1", "xl1")
"""Networks that are measured in bfloat16 unless --precision says otherwise."""
CAPTIONS, TOKENS = 16, 24
REFERENCE = "functorch"
CONSISTENCY = "consistency"
NUMBERS = ("images/s", "ms", "median ms", "MiB", "GFLOP", "MFU", "peak TFLOP/s", "time", "memory")


def add_options(options: argparse.ArgumentParser) -> None:
    options.add_argument("--spec", type=Path, help="what to measure, as JSON, instead of the options below")
    options.add_argument("--network", choices=NETWORKS, help="size (small; with --large, xl1)")
    options.add_argument("--precision", choices=["no", "bf16", "fp16"], help="(no; bf16 of b1 and xl1)")
    options.add_argument("--batch", type=int, nargs="+", help="images at once (4, or 16 of b1 and xl1)")
    options.add_argument("--methods", nargs="*", choices=["facm", "decm"], default=["facm", "decm"])
    options.add_argument("--formulations", nargs="+", choices=FORMULATIONS, default=list(FORMULATIONS))
    options.add_argument("--blocks", nargs="+", choices=BLOCKS, default=["plain", "checkpointed"])
    options.add_argument("--compiler", default="inductor", help="backend of torch.compile (%(default)s)")


def spec_of(given: argparse.Namespace) -> BenchSpec:
    """The spec file, or what the options say."""
    if given.spec:
        return read_spec(BenchSpec, given.spec)
    size = given.network or ("xl1" if given.large else "small")
    network = NETWORKS[size]
    half, without = size in HALF, {"lora": None} if isinstance(network, Sd3) else {}
    return BenchSpec(
        backbone=network,
        teacher=network.model_copy(update={"target_time": False, **without}),
        guidance=Guidance(scale=1.75, interval=[0.125, 1.0], normalise="rescale"),
        precision=given.precision or ("bf16" if half else "no"),
        losses={name: parameter_classes()[name](name=name) for name in given.methods},
        bench=Bench(
            methods=given.methods,
            batches=given.batch or [16 if half else 4],
            formulations=given.formulations,
            blocks=given.blocks,
            repeats=given.repeats,
        ),
    )


class Trained:
    """A student with all that its training keeps, and its guided teacher, arranged as ``kind`` says.

    Networks, optimizer and average are those of the first arrangement, ``like``, where one is given.
    """

    def __init__(
        self, spec: BenchSpec, accelerator: Any, kind: str, compiler: str, like: Trained | None = None
    ) -> None:
        checkpoint, compiled, self.capture = BLOCKS[kind]
        compiler = compiler if compiled else ""
        self.accelerator = accelerator
        self.net: nn.Module
        net = _network(spec.backbone, like and like.net)
        parallel.apply_compile_and_checkpointing(net, checkpoint, compiler)
        self.net = parallel.prepare(accelerator, net, "none")
        self.teacher: ClassifierFreeGuidance | None = None
        if isinstance(spec.backbone, Sd3) and spec.backbone.lora is not None:
            self.teacher = self._guided(spec, AdaptersOff(self.net))
        elif spec.teacher is not None:
            teacher = _network(spec.teacher, like and like.teacher and like.teacher.net)
            parallel.apply_compile_and_checkpointing(teacher, compile=compiler)
            self.teacher = self._guided(spec, parallel.freeze(accelerator, teacher, constant=True))
        self.weights = [weight for weight in self.net.parameters() if weight.requires_grad]
        self.optimizer: torch.optim.Optimizer = (
            like.optimizer if like else make_optimizer(Optimizer(lr=1), self.weights)
        )
        set_learning_rate(self.optimizer, 0.0)
        self.ema: Ema = like.ema if like else Ema(self.net, PowerEma(kind="power", sigma_rel=0.05))

    def _guided(self, spec: BenchSpec, teacher: nn.Module) -> ClassifierFreeGuidance:
        return ClassifierFreeGuidance(teacher, spec.guidance, spec.backbone.null, eta=1.0)

    def update(self, loss: Update, batch: Batch, ctx: Context) -> None:
        """What `training.trainer.Trainer` does for one loss."""
        with parallel.casts_kept(self.accelerator, "none"):
            for part in loss_parts(loss):
                self.accelerator.backward(part(self.net, batch, ctx).loss)
        finite = nn.utils.clip_grad_norm_(self.weights, 1.0).isfinite()
        step_if(self.optimizer, finite)
        self.optimizer.zero_grad()
        self.ema.update(self.net, finite)


Step = Callable[[Trained, str, CapturedSteps | None], None]
"""Of networks and the formulation of the tangent, perhaps captured."""


@dataclass
class StepCase(Case):
    """Training steps, with what was measured and counted of them beside their time."""

    steps: int
    """Training steps in one call."""
    peak: tuple[float, str]
    """Operations a second of the device, and where the number is from."""
    same: list[StepCase]
    """The cases of the same work on the same batch."""
    trained: Trained
    captured: CapturedSteps | None = None
    bytes: int = 0
    flops: int = 0

    def attempt(self, action: Call) -> None:
        super().attempt(action)
        if self.note:
            self.trained.optimizer.zero_grad()

    def warm_up(self) -> None:
        """Compile or capture what is to be, count and measure."""
        clock()  # captured steps have streams of their own, and inputs were made on another
        # What recomputation repeats counts too. Compiled blocks would hide their products.
        with torch.compiler.set_stance("force_eager"), OperationCounter(recomputed=True) as counted:
            self.call()
        self.flops = counted.total
        for _ in range(WARM_UP - 1 if self.captured else 1):
            self.call()
        self.bytes = peak_bytes(self.call)  # a captured step allocates when it is captured
        if self.captured and not self.captured.graphs:
            raise torch.OutOfMemoryError("no memory for a graph of the step")

    def columns(self) -> Sequence[str]:
        return NUMBERS

    def numbers(self, first: Case) -> dict[str, str]:
        least = min(self.seconds)
        done = [case for case in self.same if case.seconds and not case.note]
        useful = min(case.flops for case in done)
        plain = {"tangent": REFERENCE, "blocks": "plain"}
        other = next((case for case in done if plain.items() <= case.words.items()), None)
        values = (
            f"{self.amount / least:.4g}",
            f"{1e3 * least / self.steps:.4g}",
            f"{1e3 * median(self.seconds) / self.steps:.4g}",
            f"{self.bytes / 2**20:.4g}",
            f"{self.flops / 1e9 / self.steps:.4g}",
            f"{useful / least / self.peak[0]:.3f}",
            f"{self.peak[0] / 1e12:.3g} {self.peak[1]}",
            f"{least / min(other.seconds):.3f}" if other else "",
            f"{self.bytes / other.bytes:.3f}" if other else "",
        )
        return dict(zip(NUMBERS, values, strict=True))


def cases(given: argparse.Namespace, folder: Path) -> list[Case]:
    """Every piece of work on every batch by every formulation, where blocks may be treated so."""
    spec = spec_of(given)
    asked, given.repeats = spec.bench, spec.bench.repeats
    accelerator = start_accelerator(spec.precision, folder)
    arranged: dict[str, Trained] = {}
    for how in asked.blocks:
        if _possible(spec, how):
            like = next(iter(arranged.values()), None)
            arranged[how] = Trained(spec, accelerator, how, given.compiler, like)
    peak = peak_flops(spec.precision)
    found: list[Case] = []
    for batch in asked.batches:
        for name, (steps, step) in _work(spec, batch).items():
            same: list[StepCase] = []
            for kind, trained in arranged.items():
                for formulation in sorted(asked.formulations, key=lambda each: each != REFERENCE):
                    if not _possible(spec, kind, formulation):
                        continue
                    words = {"work": name, "batch": str(batch), "tangent": formulation, "blocks": kind}
                    words["precision"] = spec.precision
                    captured = CapturedSteps(DEVICE, WARM_UP) if trained.capture else None
                    call = partial(step, trained, formulation, captured)
                    same.append(StepCase(words, call, steps * batch, steps, peak, same, trained, captured))
            found += same
    return found


def _possible(spec: BenchSpec, kind: str, formulation: str = "fused") -> bool:
    """Whether a training could do it."""
    checkpoint, compiled, captured = BLOCKS[kind]
    try:
        parallel.check_supported(formulation, "none", checkpoint, compiled, spec.precision, DEVICE.type)
        if captured:
            parallel.check_capture("none", spec.precision, DEVICE.type)
    except ValueError:
        return False
    return True


def _network(spec: Backbone, like: nn.Module | None = None) -> nn.Module:
    """With the weights of ``like``, or random weights everywhere: zeros would let kernels off."""
    net = build(spec)
    if isinstance(spec, Sd3):
        use_text(net, _captions(spec))
    if like is not None:
        net.load_state_dict(unwrap(like).state_dict(keep_vars=True), assign=True)
        return net.to(DEVICE)
    for weight in net.to(DEVICE).parameters():
        if weight.requires_grad:
            nn.init.normal_(weight, std=0.02)
    return net


def _captions(spec: Sd3) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Random embeddings of as many captions as there are `CAPTIONS`, and of the empty one."""
    numbers = torch.Generator().manual_seed(0)
    context = torch.randn(CAPTIONS + 1, TOKENS, spec.context, generator=numbers).to(DEVICE)
    pooled = torch.randn(CAPTIONS + 1, spec.pooled, generator=numbers).to(DEVICE)
    return lambda y: (context[y], pooled[y])


def _work(spec: BenchSpec, batch: int) -> dict[str, tuple[int, Step]]:
    """Pieces of work by name: how many training steps one is, and how it is done."""
    numbers = torch.Generator().manual_seed(0)
    x1, x0 = torch.randn(2, batch, *spec.backbone.shape, generator=numbers).to(DEVICE)
    y = torch.arange(batch, device=DEVICE) % getattr(spec.backbone, "classes", CAPTIONS)
    t = torch.rand(batch, generator=numbers).to(DEVICE)
    step_number = torch.zeros((), dtype=torch.float64, device=DEVICE)
    draws: dict[tuple[str, ...], dict[Draw, Tensor]] = {}

    def consistency(trained: Trained, formulation: str, captured: CapturedSteps | None) -> None:
        def once() -> None:
            ends = torch.ones_like(t)
            given = (x1, t, ends), (x0, ends, 0 * ends), y
            with parallel.casts_kept(trained.accelerator, "none"):
                value, tangent = value_and_tangent(trained.net, *given, formulation)
                assert isinstance(value, Tensor) and isinstance(tangent, Tensor)
                trained.accelerator.backward((value - tangent).square().mean())
            trained.optimizer.zero_grad()

        captured.run(CONSISTENCY, once) if captured else once()

    def complete(
        method: Method, steps: int, trained: Trained, formulation: str, captured: CapturedSteps | None
    ) -> None:
        for number in range(steps):
            losses = method.updates(number)
            kind = kind_of_step(losses)
            ctx = Context(
                step=step_number.fill_(number),
                steps=steps,
                # As a training finds them: made before, on the device.
                rng=Streams(0, 0, batch, slice(0, batch), DEVICE, draws.get(kind, {})),
                null=spec.backbone.null,
                jvp=partial(value_and_tangent, formulation=formulation),
                teacher=trained.teacher,
            )

            def updates(losses: Sequence[Update] = losses, ctx: Context = ctx) -> None:
                rows = Batch(x1, x0, y)  # one object for all updates, so that they ask the teacher once
                for loss in losses:
                    trained.update(loss, rows, ctx)

            captured.run(kind, updates) if captured else updates()
            draws.setdefault(kind, ctx.rng.made)

    found: dict[str, tuple[int, Step]] = {CONSISTENCY: (1, consistency)}
    for name, params in spec.losses.items():
        steps = getattr(params, "freq", 1)
        method = build_method(params)
        if isinstance(params, WithPlayers) or method.target_decay is not None or method.extra() is not None:
            raise ValueError(f"bench.methods: {name} trains or averages more than one network; leave it out")
        found[name] = steps, partial(complete, method, steps)
    return found
