"""What the configured targets consist of: jobs, work and bytes, by rule. Torch-free: networks are named only.

How large a network is and what its evaluation costs is counted from the network itself (bench/estimate.py).
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from ..config.backbones import Backbone, Sd3
from ..config.rates import Device
from ..config.settings import PUBLISHED_IMAGES, Latents, Protocol, Tokenizer, Weights
from ..config.specs import CostLine, ExamplesSpec, PlannedJob, SavedStates, Work
from ..config.text import IN_MEMORY, LikelihoodProtocol, PromptProtocol, Scorer, TextEncoder
from .jobs import Job

if TYPE_CHECKING:
    from . import Plan
    from .runs import Run

BLOCK = 512
"""Of a tar; every member has a header of one block and content in whole blocks."""
NPY_HEADER = 128

RULES = {"report": "report_page"}
"""Stage -> rule, where they have two names."""


def planned(plan: Plan) -> tuple[list[CostLine], list[PlannedJob]]:
    """The wanted targets' jobs in the order of the rules, and what each costs: equal costs stand once."""
    waits = plan.jobs()
    jobs = sorted(waits, key=lambda job: _ORDER.index(job.stage))
    numbers = {job: number for number, job in enumerate(jobs)}
    lines: dict[CostLine, int] = {}
    found = []
    for job in jobs:
        line = _LINES[job.stage](plan, job) if job.stage in _LINES else _line(RULES.get(job.stage, job.stage))
        line = line.model_copy(update={"run": job.key.get("run", "")})
        after = sorted(numbers[other] for other in waits[job])
        found.append(PlannedJob(line=lines.setdefault(line, len(lines)), after=after))
    return list(lines), found


def _line(rule: str, *work: Work, device: Device = "cpu", **values: Any) -> CostLine:
    """A job of some work: on the device of the first declared rate, or ``device``."""
    devices = [each.rate.device for each in work if each.rate is not None]
    return CostLine(rule=rule, device=[*devices, device][0], work=list(work), **values)


def _fetch(plan: Plan, job: Job) -> CostLine:
    name = job.key["asset"]
    size, files = plan.config.costs.assets.get(name), plan.config.assets[name].files
    if files and all(file.bytes for file in files):
        return _line("fetch", kept=sum(file.bytes or 0 for file in files), sources=["published"])
    if size is None:
        return _line("fetch", unknown=[f"no size of {name}"])
    return _line("fetch", kept=size.bytes, sources=[size.source])


def _encode(plan: Plan, job: Job) -> CostLine:
    entry = plan.parts.latents[job.key["latents"]]
    images = plan.parts.datasets[entry.dataset].images / entry.shards
    work = _tokenizing(plan, entry.tokenizer, images * (2 if entry.flip else 1))
    kept = shard_bytes(entry, plan.parts.tokenizers[entry.tokenizer], images)
    return _line("encode", work, device="gpu", kept=kept)


def _tokenizing(plan: Plan, name: str, images: float, decode: bool = False, half: bool = False) -> Work:
    costs, tokenizer = plan.config.costs, plan.parts.tokenizers[name]
    rate = (costs.decode if decode else costs.encode).get(name) or (costs.read if tokenizer.plain else None)
    network = None if rate else _network(plan, tokenizer.weights)
    return Work(
        name=f"{'decoding' if decode else 'encoding'} by {name}",
        images=images,
        rate=rate,
        network=network,
        tokenizer=None if rate or network else tokenizer,
        decode=decode,
        half=half,
    )


def _network(plan: Plan, weights: Weights | None) -> str | None:
    """Name of a network that this workflow trains."""
    return plan.run(weights.method).network if weights and weights.method else None


def _manifest(plan: Plan, job: Job) -> CostLine:
    images = plan.parts.datasets[plan.parts.latents[job.key["latents"]].dataset].images
    return _line("manifest", kept=16 * images)


def _adopt(plan: Plan, job: Job) -> CostLine:
    return _line("adopt", models={plan.runs[job.key["run"]].network: 1})


def _text(plan: Plan, job: Job) -> CostLine:
    name, count = job.key["encoder"], plan.number_of_captions(job.key["captions"])
    encoder = plan.parts.text_encoders[name]
    networks = [run.backbone for run in plan.runs.values() if run.text_encoder == name]
    rows = [text_bytes(encoder, network) for network in networks]
    kept = (count + 1) * max(rows, default=0)
    return _line("text", _captions(plan, name, count), device="gpu", kept=kept)


def _captions(plan: Plan, encoder: str, count: int) -> Work:
    rate = plan.config.costs.text.get(plan.parts.text_encoders[encoder].kind)
    return Work(name=f"captions through {encoder}", images=count, rate=rate)


def _live_captions(plan: Plan, run: Run, encoder: str) -> Work:
    """What a training encodes itself: every caption once if memory keeps them, else those of every batch."""
    captions = plan.parts.datasets[plan.parts.latents[run.recipe.latents].dataset].classes
    row = text_bytes(plan.parts.text_encoders[encoder], run.backbone)
    fits = (captions + 1) * row <= IN_MEMORY
    return _captions(plan, encoder, captions if fits else _trained_images(plan, run))


def text_bytes(encoder: TextEncoder, network: Backbone) -> int:
    """What a text store holds of one caption for a network."""
    if not isinstance(network, Sd3):
        return 8 * encoder.length
    item = {"bfloat16": 2, "float32": 4}[encoder.dtype]
    return item * ((encoder.length + encoder.t5_length) * network.context + network.pooled)


def _reembed(plan: Plan, job: Job) -> CostLine:
    return _line("reembed", models={plan.runs[job.key["run"]].network: 1})


def _train(plan: Plan, job: Job) -> CostLine:
    run = plan.runs[job.key["run"]]
    rate = plan.config.costs.train.get(run.network, {}).get(run.loss.name)
    work = Work(
        name=f"{run.loss.name} on {run.network}",
        images=_trained_images(plan, run),
        rate=rate,
        network=None if rate else run.network,
        loss=None if rate else run.loss,
        teacher=plan.run(run.teacher).network if run.teacher and not rate else None,
        guided=rate is None and run.has_teacher and run.guidance is not None and run.guidance.scale != 1,
        tokens=_tokens(plan, run),
        half=run.train.precision != "no",
    )
    live = plan.live_text(run)
    more = [_live_captions(plan, run, live)] if live else []
    states = SavedStates(network=run.network, loss=run.loss, kept=job.key["run"] in plan.continued)
    return _line("train", work, *more, device=run.device, models={run.network: 1}, states=states)


def _trained_images(plan: Plan, run: Run) -> int:
    """Images that a training sees, without those of the one that it continues."""
    before = plan.run(run.continues).train.steps if run.continues else 0
    return (run.train.steps - before) * run.train.global_batch_size


def _tokens(plan: Plan, run: Run) -> int:
    """Of a caption that conditions a run's network."""
    if run.text_encoder is None:
        return 0
    encoder = plan.parts.text_encoders[run.text_encoder]
    return encoder.length + encoder.t5_length


def _sample(plan: Plan, job: Job) -> CostLine:
    run, protocol = plan.runs[job.key["run"]], plan.image_sets[job.key["images"]]
    if plan.parts.samplers[job.key["sampler"]].kind == "pipeline":
        return _pipeline_sample(plan, run, int(job.key["steps"]), protocol.images)
    latents = plan.parts.latents[run.recipe.latents]
    dataset = plan.parts.datasets[latents.dataset]
    both = 1 if plan.parts.samplers[job.key["sampler"]].guidance == "none" else 2
    rate = plan.config.costs.forward.get(run.network)
    evaluations = Work(
        name=f"evaluations of {run.network}",
        images=protocol.images * int(job.key["steps"]) * both,
        rate=rate,
        network=None if rate else run.network,
        half=protocol.network_dtype != "float32",
        tokens=_tokens(plan, run),
    )
    work = [evaluations]
    if not run.tokenizer.plain:
        half = protocol.decoder_dtype != "float32"
        work.append(_tokenizing(plan, latents.tokenizer, protocol.images, decode=True, half=half))
    size = protocol.images * dataset.channels * dataset.resolution**2
    return _line("sample", *work, device=run.device, temporary=size)


def _pipeline_sample(plan: Plan, run: Run, steps: int, images: int) -> CostLine:
    pipeline = plan.pipeline(run, steps)
    work = Work(
        name=f"evaluations of {pipeline.asset}",
        images=images * steps * pipeline.evaluations_per_step,
        rate=plan.config.costs.pipelines.get(pipeline.asset),
    )
    return _line("sample", work, device="gpu", temporary=3 * images * pipeline.image**2)


def _reference(plan: Plan, job: Job) -> CostLine:
    protocol = plan.features_protocol(job.key["protocol"])
    images, coordinates = PUBLISHED_IMAGES, None
    if protocol.reference_latents is not None:
        latents = plan.parts.latents[protocol.reference_latents]
        images = plan.parts.datasets[latents.dataset].images
        if protocol.own_features:
            coordinates = prod(plan.parts.tokenizers[latents.tokenizer].shape)
    size = reference_bytes(protocol, plan.network(protocol.weights), images, coordinates)
    unknown = [f"no size of {protocol.extractor}'s {protocol.features}"] if size is None else []
    work = _scoring(plan, protocol, images)
    return _line("reference", work, device="gpu", kept=size or 0, unknown=unknown)


def _score(plan: Plan, job: Job) -> CostLine:
    protocol = plan.parts.protocols[job.key["protocol"]]
    if isinstance(protocol, PromptProtocol):
        scorers = protocol.scorers.items()
        work = [_scorer(plan, name, scorer, protocol.images) for name, scorer in scorers]
        return _line("score", *work, device="gpu")
    if isinstance(protocol, LikelihoodProtocol):
        run = plan.runs[job.key["run"]]
        jumps = plan.parts.samplers[job.key["sampler"]].kind == "jump"
        # A tangent costs as much as its value.
        each = 1 if jumps else 2 * (1 if protocol.trace == "probe" else prod(run.tokenizer.shape))
        likelihoods = Work(
            name=f"likelihoods under {run.method} on {run.network}",
            images=protocol.images * int(job.key["steps"]) * each,
            network=run.network,
        )
        return _line("score", likelihoods, run=run.name, device=run.device)
    return _line("score", _scoring(plan, protocol, protocol.images), device="gpu")


def _bounds(plan: Plan, job: Job) -> CostLine:
    entry, protocol = plan.bounds_of(job.key["table"])
    scenes = entry.scenes_of_each * plan.parts.prompts[protocol.prompts].prompts
    # Real scenes with three captions, and those that come back from the tokenizer.
    work = [_scorer(plan, name, scorer, 4 * scenes) for name, scorer in protocol.scorers.items()]
    if not plan.parts.tokenizers[entry.tokenizer].plain:
        work += [_tokenizing(plan, entry.tokenizer, scenes, decode=decode) for decode in (False, True)]
    return _line("bounds", *work)


def _examples(plan: Plan, job: Job) -> CostLine:
    spec = plan.spec("examples", job.key["table"])
    assert isinstance(spec, ExamplesSpec)
    return _line("examples", kept=len(spec.labels) * spec.dataset.channels * spec.dataset.resolution**2)


def _scorer(plan: Plan, name: str, scorer: Scorer, images: int) -> Work:
    network = _network(plan, scorer.weights)
    return Work(
        name=f"scores by {scorer.kind}",
        images=images,
        rate=None if network else plan.config.costs.score.get(name),
        network=network,
    )


def _scoring(plan: Plan, protocol: Protocol, images: int) -> Work:
    rate = plan.config.costs.score.get(protocol.extractor)
    network = None if rate else _network(plan, protocol.weights)
    return Work(name=f"features of {protocol.extractor}", images=images, rate=rate, network=network)


def shard_bytes(latents: Latents, tokenizer: Tokenizer, images: float) -> float:
    """Tar shards with ``images`` images: a label and an array each."""
    item = {"float16": 2, "float32": 4}[latents.dtype]
    array = (2 if latents.flip else 1) * prod(tokenizer.stored) * item + NPY_HEADER
    return images * (3 * BLOCK + -(-array // BLOCK) * BLOCK)


def reference_bytes(
    protocol: Protocol, extractor: Backbone | None, images: int, width: int | None = None
) -> int | None:
    """Statistics, and features of ``images`` real ones if they are compared; None if the width is unknown."""
    width = width or getattr(extractor, "features", None)
    if width is None and protocol.features.isdecimal():
        width = int(protocol.features)
    if width is None:
        return None
    return 8 * (width * width + width) + (4 * images * width if protocol.compares_images else 0)


_LINES = {
    "fetch": _fetch,
    "encode": _encode,
    "manifest": _manifest,
    "text": _text,
    "adopt": _adopt,
    "reembed": _reembed,
    "train": _train,
    "sample": _sample,
    "reference": _reference,
    "bounds": _bounds,
    "examples": _examples,
    "score": _score,
}
_ORDER = [*_LINES, "table", "figure", "claims", "report"]
