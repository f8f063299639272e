"""What the configured targets cost: jobs, device time and disk, by rule and by run, before anything is run.

Networks are built without memory (on the meta device), and their weights and operations counted. A training
step costs as many evaluations of its network as the same method's step does on a tiny network of that kind,
which is really done, and counted, on the CPU. Measured rates of config/costs.yaml are laid over all this.

Temporary bytes are those of all jobs together; a disk holds those of the jobs that run at one time.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn

from ..backbones import build, use_text
from ..config.backbones import Backbone, Clip, FlowNetwork, Get, Imf, LightningDiT, Sd3, UNet
from ..config.objectives import LossParams
from ..config.rates import Device
from ..config.settings import Guidance, LdmAutoencoder, Tokenizer
from ..config.specs import CostLine, CostsSpec, Work
from ..core.guidance import ClassifierFreeGuidance
from ..core.jvp import value_and_tangent
from ..core.method import Batch, Context
from ..core.operations import OperationCounter, per_step
from ..core.pyramid import decompose, pack
from ..core.rng import Streams
from ..data.tokenizers import build_ldm_autoencoder
from ..methods import build as build_method
from . import as_csv, as_text

STATES = 3
"""Saved states of a training at one time: two that are kept (training/state.py), and one that is written."""
ROWS, STEPS = 48, 20_000
"""Batch and length of the training on the tiny network; methods that group rows round the batch up."""
TOKENS = 8
"""Of a caption of the tiny network."""
SD_VAE = LdmAutoencoder(multipliers=[1, 2, 4, 4], attention=[])
UNITS: dict[Device, tuple[str, float]] = {"gpu": ("GPU-hours", 3600.0), "cpu": ("CPU-seconds", 1.0)}
"""Name and seconds of the unit of time."""


@dataclass
class Line:
    """Jobs on one kind of device."""

    kind: Literal["rule", "run", "total"]
    name: str
    """Of the rule, or method/variant of the run."""
    device: Device
    jobs: int = 0
    seconds: float = 0.0
    longest: float = 0.0
    """Seconds of the longest job on one device."""
    kept: float = 0.0
    """Bytes, as ``temporary``."""
    temporary: float = 0.0
    sources: set[str] = field(default_factory=set)
    unknown: dict[str, None] = field(default_factory=dict)

    def add(self, other: Line, times: int = 1) -> None:
        for name in ("jobs", "seconds", "kept", "temporary"):
            setattr(self, name, getattr(self, name) + times * getattr(other, name))
        self.longest = max(self.longest, other.longest)
        self.sources |= other.sources
        self.unknown |= other.unknown

    @property
    def unit(self) -> str:
        """Unit of ``time``."""
        return UNITS[self.device][0] if self.seconds else ""

    @property
    def time(self) -> float | None:
        return self.seconds / UNITS[self.device][1] if self.seconds else None

    @property
    def longest_time(self) -> float | None:
        """Of one job, in ``unit``."""
        return self.longest / UNITS[self.device][1] if self.longest else None

    @property
    def source(self) -> str:
        return "+".join(sorted(self.sources))

    @property
    def note(self) -> str:
        return "; ".join(self.unknown)


def estimate(spec: CostsSpec) -> list[Line]:
    """A line for each rule and kind of device, with the networks counted."""
    return _grouped(spec, "rule", lambda asked: asked.rule)


def by_run(spec: CostsSpec) -> list[Line]:
    """A line for each run and kind of device, the dearest first."""
    lines = _grouped(spec, "run", lambda asked: asked.run if asked.work else "")
    order = list(UNITS)
    return sorted(lines, key=lambda line: (order.index(line.device), -line.seconds))


def _grouped(spec: CostsSpec, kind: Literal["rule", "run"], name_of: Callable[[CostLine], str]) -> list[Line]:
    """A line for each name and kind of device; jobs without a name are left out."""
    counts = Counter(job.line for job in spec.jobs)
    lines: dict[tuple[str, Device], Line] = {}
    for number, asked in enumerate(spec.lines):
        if name := name_of(asked):
            empty = Line(kind, name, asked.device)
            lines.setdefault((name, asked.device), empty).add(job_line(spec, asked), counts[number])
    return list(lines.values())


def job_line(spec: CostsSpec, asked: CostLine) -> Line:
    """What one job costs."""
    line = Line("rule", asked.rule, asked.device, 1)
    line.sources |= set(asked.sources)
    line.unknown |= dict.fromkeys(asked.unknown)
    sizes = [4 * count * parameters(spec.networks[name]) for name, count in asked.models.items()]
    state, kept = 0, 0
    if asked.states is not None:
        state = 4 * state_numbers(spec.networks[asked.states.network], asked.states.loss)
        kept = state * asked.states.kept
    line.kept = asked.kept + sum(sizes) + kept
    line.temporary = asked.temporary + STATES * state - kept
    if asked.work:
        line.longest += spec.start
    for work in asked.work:
        if work.rate is not None:
            line.longest += work.images / work.rate.rate
            line.sources.add(work.rate.source)
        elif work.network is not None or work.tokenizer is not None:
            rates = spec.operations
            rate = rates.core if asked.device == "cpu" else rates.half if work.half else rates.float32
            line.longest += work.images * _operations(spec.networks, work) / rate.rate
            line.sources.add("counted")
        else:
            line.unknown[f"no rate for {work.name}"] = None
    line.seconds = line.longest
    return line


def _operations(networks: Mapping[str, Backbone], work: Work) -> float:
    """Of the work on one image."""
    if work.tokenizer is not None:
        return tokenizer_operations(work.tokenizer, work.decode)
    assert work.network is not None
    network = networks[work.network]
    one = operations(network, work.tokens)
    if work.loss is None:
        return one
    teacher = networks[work.teacher] if work.teacher else None
    if teacher is None or teacher.kind == network.kind:
        return one * evaluations(work.loss, network, teacher, work.guided)
    own, asked = evaluations_apart(work.loss, network, teacher, work.guided)
    return one * own + operations(teacher, work.tokens) * asked


@cache
def parameters(spec: Backbone) -> int:
    """Numbers that a network's file holds (small buffers are left out): of adapters, what is trained."""
    trained = isinstance(spec, Sd3) and spec.lora is not None
    weights = _on_meta(spec).parameters()
    return sum(weight.numel() for weight in weights if weight.requires_grad or not trained)


def state_numbers(network: Backbone, loss: LossParams) -> int:
    """Numbers in a training's saved state.

    Of the network these are weights, their averages, and the optimizer's two moments; of what is trained
    beside it, weights and moments.
    """
    method = build_method(loss)
    with torch.device("meta"):
        beside = [*method.players(_on_meta(network)).values(), method.extra()]
    others: int = sum(weight.numel() for module in beside if module for weight in module.parameters())
    averages = 1 if method.target_decay is None else 2
    return (3 + averages) * parameters(network) + 3 * others


@cache
def operations(spec: Backbone, tokens: int = 0) -> float:
    """Floating-point operations of one evaluation of one image; see `core.operations`.

    Args:
        tokens: of its caption, for a network that is conditioned on one.
    """
    if not isinstance(spec, LightningDiT):
        net = _on_meta(spec)
        _condition(net, spec, "meta", tokens)
        return _forward(net, spec, 1, "meta")
    # Blocks are alike: two networks of one and two tell the rest.
    few = [spec.model_copy(update={"depth": depth}) for depth in (1, 2)]
    one, two = (_forward(_on_meta(each), each, 1, "meta") for each in few)
    return one + (spec.depth - 1) * (two - one)


@cache
def tokenizer_operations(tokenizer: Tokenizer, decode: bool) -> float:
    """Of one image through a KL autoencoder of latent diffusion."""
    network = tokenizer.network or (SD_VAE if tokenizer.kind == "sd-vae" else LdmAutoencoder())
    channels, *sides = tokenizer.shape
    autoencoder = build_ldm_autoencoder(network, channels, "meta")
    factor = 2 ** (len(network.multipliers) - 1)
    shape = [channels, *sides] if decode else [3, *(factor * side for side in sides)]
    with torch.no_grad(), OperationCounter() as counted:
        (autoencoder.decode if decode else autoencoder.encode)(torch.zeros(1, *shape, device="meta"))
    return float(counted.total)


@cache
def _on_meta(spec: Backbone) -> nn.Module:
    with torch.device("meta"):
        return build(spec)


def _condition(net: nn.Module, spec: Backbone, device: str = "cpu", tokens: int = TOKENS) -> None:
    """Captions of zeros, for a network that looks some up."""
    if isinstance(spec, Sd3):
        shape, width = (tokens, spec.context), spec.pooled
        use_text(
            net,
            lambda y: (
                torch.zeros(len(y), *shape, device=device),
                torch.zeros(len(y), width, device=device),
            ),
        )


def _forward(net: nn.Module, spec: Backbone, rows: int, device: str = "cpu") -> float:
    """Operations for each of ``rows`` images."""
    x, t = torch.zeros(rows, *spec.shape, device=device), torch.zeros(rows, device=device)
    with torch.no_grad(), OperationCounter() as counted:
        y = torch.zeros(rows, dtype=torch.long, device=device)
        if isinstance(spec, FlowNetwork):
            if spec.scale_count > 1:
                x, t = pack(decompose(x, spec.scale_count)), t[:, None].expand(-1, spec.scale_count)
            net(x, t, t, y)
        elif isinstance(spec, Clip):
            net.embed_images(x)
            net.embed_tokens(y[:, None].expand(-1, spec.length))
        else:
            net(x)
    return float(counted.total) / rows


def evaluations(loss: LossParams, network: Backbone, teacher: Backbone | None, guided: bool) -> float:
    """What a training step costs for each image, in evaluations of its network.

    Args:
        guided: whether the teacher is evaluated with label and without.
    """
    small = _tiny(network)
    return _evaluations(loss, small, _tiny(teacher, small.shape) if teacher else None, guided)


def evaluations_apart(
    loss: LossParams, network: Backbone, teacher: Backbone, guided: bool
) -> tuple[float, float]:
    """The same of a teacher of another kind: evaluations of the network, and of its teacher beside."""
    small = _tiny(network)
    other = _tiny(teacher, small.shape)
    own = _evaluations(loss, small, other, guided, still=True)
    both = _evaluations(loss, small, other, guided)
    factor = _forward(_random(small), small, ROWS) / _forward(_random(other), other, ROWS)
    return own, (both - own) * factor


class _Still(nn.Module):
    """Stands in for a teacher, and costs nothing."""

    def forward(self, x: Tensor, t: Tensor, s: Tensor, y: Tensor) -> Tensor:
        return x


@cache
def _evaluations(
    loss: LossParams, small: Backbone, teacher: Backbone | None, guided: bool, still: bool = False
) -> float:
    method = build_method(loss)
    rows = method.group * -(-ROWS // method.group)
    net = _random(small)
    frozen = (_Still() if still else _random(teacher).requires_grad_(False)) if teacher else None
    target = copy.deepcopy(net).requires_grad_(False) if method.target_decay is not None else None
    players = method.players(net)
    null = small.null if isinstance(small, FlowNetwork) else 0
    guidance = Guidance(scale=2.0) if guided else None
    draws = torch.Generator().manual_seed(0)
    x1, x0 = torch.randn(2, rows, *small.shape, generator=draws)
    batch = Batch(x1, x0, torch.arange(rows) % getattr(small, "classes", 1))

    def slices(step: int) -> list[tuple[Batch, Context]]:
        context = Context(
            step=torch.tensor(step, dtype=torch.float64),
            steps=STEPS,
            rng=Streams(0, step, rows, slice(0, rows), x1.device),
            null=null,
            jvp=value_and_tangent,
            teacher=ClassifierFreeGuidance(frozen, guidance, null, 1.0) if frozen is not None else None,
            teacher_net=frozen,
            target=target,
            extra=method.extra(),
            players=players,
            averages=dict.fromkeys(method.averages, torch.zeros(())),
        )
        return [(batch, context)]

    def clear() -> None:
        for each in (net, *players.values()):
            each.zero_grad(set_to_none=True)

    return per_step(method, net, slices, STEPS, clear) / rows / _forward(net, small, rows)


def _random(spec: Backbone) -> nn.Module:
    torch.manual_seed(0)
    net = build(spec)
    _condition(net, spec)
    return net


def _tiny(spec: Backbone, shape: list[int] | None = None) -> Backbone:
    """A small network of the same kind, with the same outputs and times."""
    if isinstance(spec, LightningDiT | Get | Imf):
        side = 4 * spec.patch
        blocks = {"depth": 1, "width": 32, "heads": 2, "classes": 4}
        own = {"tied": 1} if isinstance(spec, Get) else {"time_features": 32} if spec.kind != "imf" else {}
        return spec.model_copy(update={**blocks, **own, "shape": shape or [spec.shape[0], side, side]})
    if isinstance(spec, UNet):
        levels = {"width": 16, "multipliers": [1, 2], "attention": [8] if spec.attention else []}
        counts = {"groups": 4, "depth": 1, "classes": 4}
        return spec.model_copy(update={**levels, **counts, "shape": shape or [spec.shape[0], 16, 16]})
    if isinstance(spec, Sd3):
        blocks = {"layers": 2, "heads": 2, "head_width": 16, "dual_attention": min(1, spec.dual_attention)}
        widths = {"context": 32, "pooled": 16, "positions": 4}
        lora = spec.lora and spec.lora.model_copy(update={"rank": 4})
        sides = shape or [spec.shape[0], 4 * spec.patch, 4 * spec.patch]
        return spec.model_copy(update={**blocks, **widths, "lora": lora, "shape": sides})
    return spec


def with_totals(lines: Sequence[Line]) -> list[Line]:
    """The lines, and a total of those of each device."""
    totals = {line.device: Line("total", "", line.device) for line in lines}
    for line in lines:
        totals[line.device].add(line)
    return [*lines, *(totals[device] for device in UNITS if device in totals)]


def csv_of(lines: Sequence[Line], days: Mapping[str, float]) -> str:
    """The table as CSV: time in ``unit``, that of the longest job too, on one device; sizes in bytes.

    Args:
        days: until all is done, by the devices that there are.
    """
    rows = [
        {
            "kind": line.kind,
            "name": line.name,
            "jobs": str(line.jobs),
            "time": "" if line.time is None else f"{line.time:.4g}",
            "unit": line.unit,
            "longest": "" if line.longest_time is None else f"{line.longest_time:.4g}",
            "kept_bytes": f"{line.kept:.0f}",
            "temporary_bytes": f"{line.temporary:.0f}",
            "source": line.source,
            "note": line.note,
        }
        for line in lines
    ]
    ends = [
        {"kind": "end", "name": name, "time": f"{time:.4g}", "unit": "days"} for name, time in days.items()
    ]
    blank = dict.fromkeys(rows[0] if rows else (), "")
    return as_csv([*rows, *(blank | end for end in ends)])


def text_of(lines: Sequence[Line]) -> str:
    """The table for a terminal."""
    rows = [
        {
            "": line.name if line.kind != "total" else f"total, {line.device.upper()}s",
            "jobs": str(line.jobs),
            "time": "-" if line.time is None else f"{line.time:.4g} {line.unit}",
            "longest": "-" if line.longest_time is None else f"{line.longest_time:.4g}",
            "kept": _size(line.kept),
            "temporary": _size(line.temporary),
            "source": line.source,
            "note": line.note,
        }
        for line in lines
    ]
    return as_text(rows, right=("jobs", "time", "longest", "kept", "temporary"))


def text_of_ends(days: Mapping[str, float]) -> str:
    """Sentences about the days until all is done, as `csv_of` takes them."""
    told = [f"{_time(time)} on {name}" for name, time in days.items()]
    return f"All is done after {', '.join(told)}, if no job waits in a queue."


def _time(days: float) -> str:
    return (
        f"{days:.1f} days"
        if days >= 1
        else f"{24 * 60 * days:.0f} minutes"
        if days < 0.1
        else f"{24 * days:.1f} hours"
    )


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}" if count else "-"
        count /= 1000
    return f"{count:.3g} TB"
