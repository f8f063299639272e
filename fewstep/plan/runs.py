"""Runs: every method with every variant's changes applied, and all that they refer to resolved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..config.backbones import Backbone, Clip, FlowNetwork, LightningDiT, Sd3
from ..config.base import ConfigError, Mistakes, merge, parse
from ..config.load import Config
from ..config.methods import Method, Published, Variant
from ..config.objectives import LossParams, Problems
from ..config.pipelines import SAMPLER, DiffusersPipeline
from ..config.rates import Device
from ..config.references import check_references
from ..config.settings import Guidance, Recipe, Tokenizer, Train
from ..config.specs import CellKey

BASE = "base"


@dataclass(frozen=True)
class Run:
    """A method with one variant's changes; a seed makes it a training."""

    method: str
    variant: str
    place: str
    """File and key that the run's mistakes are told under: of the method, or of what makes the variant."""
    entry: Method
    recipe: Recipe
    loss: LossParams
    train: Train
    guidance: Guidance | None
    network: str
    """Name of the backbone."""
    backbone: Backbone
    tokenizer: Tokenizer
    published: Published | None
    """The weights that take the place of training."""
    pipeline: DiffusersPipeline | None
    """What is sampled from instead of a network of ours."""

    @property
    def name(self) -> str:
        return f"{self.method}/{self.variant}"

    @property
    def network_text(self) -> str:
        """Kind and depth of the network, as a reader names them."""
        names = {"lightningdit": "LightningDiT", "sd3": "SD3", "mlp": "MLP", "unet": "U-Net", "imf": "iMF"}
        kind = self.backbone.kind
        depth = getattr(self.backbone, "depth", None) or getattr(self.backbone, "layers", None)
        return names.get(kind, kind) + (f", {depth} layers" if depth else "")

    @property
    def adopted(self) -> bool:
        """Whether published weights take the place of training."""
        return self.published is not None

    @property
    def reembedded(self) -> bool:
        """Whether a time embedding is fitted to another network's instead of training."""
        return self.entry.reembed is not None and not self.adopted

    @property
    def only_pipeline(self) -> bool:
        """Whether it is a pipeline of diffusers and no network of ours."""
        return self.entry.loss is None

    @property
    def samplers(self) -> Mapping[int | Literal["default"], str]:
        """Sampler for each number of steps."""
        return {"default": SAMPLER} if self.pipeline else self.entry.samplers

    @property
    def maker(self) -> Literal["adopt", "reembed", "train", "nothing"]:
        """The stage that makes the model; a pipeline is sampled from as it is."""
        if self.only_pipeline:
            return "nothing"
        return "adopt" if self.adopted else "reembed" if self.reembedded else "train"

    @property
    def teacher(self) -> str | None:
        """The method that teaches the run and whose weights it starts from."""
        return named_teacher(self.entry, self.recipe) if self.maker == "train" else None

    @property
    def continues(self) -> str | None:
        """The method whose finished training the run goes on with."""
        return self.entry.continues if self.maker == "train" else None

    @property
    def base(self) -> str | None:
        """The method without whose weights those of the run, adapters of them, are no network."""
        return self.teacher if isinstance(self.backbone, Sd3) and self.backbone.lora else None

    @property
    def text_encoder(self) -> str | None:
        """Of the captions that the network is given."""
        conditioned = isinstance(self.backbone, Sd3 | Clip) and not self.only_pipeline
        return self.recipe.text_encoder if conditioned else None

    @property
    def has_teacher(self) -> bool:
        return self.teacher is not None

    @property
    def learned_guidance(self) -> float:
        """Scale of the guidance that it has learned from its teacher; 1: none."""
        taught = self.has_teacher and not self.loss.follows_data
        return self.guidance.scale if taught and self.guidance else 1.0

    @property
    def device(self) -> Device:
        """Where networks of this size are trained and sampled from, unless a rate says otherwise."""
        own = self.recipe.scale == "own" and self.train.precision == "no"
        return "cpu" if self.recipe.scale in ("demo", "toy") or own else "gpu"

    @property
    def expanded(self) -> bool:
        """Whether the network has its velocity at the time condition 2 - t."""
        one_time = isinstance(self.backbone, FlowNetwork) and not self.backbone.target_time
        return one_time and self.loss.velocity_at_expanded_time

    def cell(self, seed: int, sampler: str, steps: int, protocol: str) -> CellKey:
        names = {"method": self.method, "variant": self.variant, "sampler": sampler, "protocol": protocol}
        return CellKey(**names, seed=seed, steps=steps)


def named_teacher(entry: Method, recipe: Recipe) -> str | None:
    """The network that an entry starts from, whether or not published weights spare its training."""
    if entry.reembed is not None:
        return entry.reembed.of
    if isinstance(entry.teacher, str):
        return entry.teacher
    return recipe.teacher if entry.teacher and entry.loss is not None else None


def _teacher_key(entry: Method) -> str:
    """The key that names it."""
    return "teacher" if entry.reembed is None else "reembed.of"


def find_variants(config: Config, mistakes: Mistakes) -> dict[tuple[str, str], tuple[Variant, str]]:
    """Every (method, variant) that a table defines, beside the base of each method, and its place."""
    found = {(name, BASE): (Variant(), f"{config.method_files[name]}: {name}") for name in config.methods}
    for name, row in ((name, row) for name, table in config.tables.items() for row in table.rows):
        if row.method is None or row.set is None:
            continue
        key = (row.method, row.variant)
        place = f"{config.root.files.tables}/{name}.yaml: rows.{row.id}.set"
        if row.variant == BASE:
            mistakes.add(f"{place}: what it changes needs a variant name other than {BASE!r}")
        elif key in found and found[key][0] != row.set:
            mistakes.add(f"{place}: variant {row.variant!r} is defined otherwise in {found[key][1]}")
        else:
            found[key] = row.set, place
    return found


def resolve_runs(
    config: Config, variants: Mapping[tuple[str, str], tuple[Variant, str]], mistakes: Mistakes
) -> dict[str, Run]:
    """Every run by its name, method/variant; those with mistakes are left out."""
    runs: dict[str, Run] = {}
    for (method, variant), (changes, place) in variants.items():
        if variant != BASE and f"{method}/{BASE}" not in runs:  # told already
            continue
        with mistakes.caught():
            run = _resolve(config, method, variant, changes, place, mistakes)
            runs[run.name] = run
    for run in runs.values():
        with mistakes.caught():
            _check_teachers(runs, run)
        with mistakes.caught():
            _check_tokenizer(runs, run)
        with mistakes.caught():
            _check_continued(runs, run)
    return runs


def _resolve(
    config: Config, name: str, variant: str, changes: Variant, where: str, mistakes: Mistakes
) -> Run:
    """Apply a variant's changes; its mistakes are told where it is defined."""
    parts = config.parts
    file, _, key = where.partition(": ")
    own = changes.model_dump(exclude_unset=True)
    method = parse(Method, merge(config.raw_methods[name], own), file, key)
    if variant != BASE:
        found = Mistakes()
        check_references(method, file, key, config.names, found)
        found.refuse()
    recipe = parts.recipes[method.recipe]
    recipes = recipe.train.model_dump()
    if method.train.get("ema", {}).get("kind", recipe.train.ema.kind) != recipe.train.ema.kind:
        del recipes["ema"]  # keys of one kind of average mean nothing to another
    train = parse(Train, merge(recipes, method.train), file, key, "train")
    guidance = None
    if recipe.guidance is not None:
        merged = merge(recipe.guidance.model_dump(), method.guidance)
        guidance = parse(Guidance, merged, file, key, "guidance")
    elif method.guidance:
        raise ConfigError(f"{where}.guidance: recipe {method.recipe} has no guidance")
    teacher = named_teacher(method, recipe)
    only_pipeline = method.loss is None
    if method.teacher and teacher is None and not only_pipeline:
        raise ConfigError(f"{where}.teacher: recipe {method.recipe} names no teacher")
    if teacher == name:
        told = (
            "is the entry itself; name another" if method.reembed else "cannot teach itself; set it to false"
        )
        raise ConfigError(f"{where}.{_teacher_key(method)}: {name} {told}")
    released = method.released if config.root.weights == "released" and variant == BASE else None
    piped = config.root.weights == "released" and variant == BASE and recipe.scale == "paper"
    network = method.backbone or recipe.backbone
    run = Run(
        method=name,
        variant=variant,
        place=where,
        entry=method,
        recipe=recipe,
        loss=method.loss or LossParams(name=""),
        train=train,
        guidance=guidance,
        network=network,
        backbone=parts.backbones[network],
        tokenizer=parts.tokenizers[parts.latents[recipe.latents].tokenizer],
        published=method.weights or released,
        pipeline=method.pipeline if piped else None,
    )
    if method.pipeline is not None:
        _check_pipeline(config, method.pipeline, where)
    if only_pipeline:
        return run
    if method.reembed is not None and not isinstance(run.backbone, Sd3):
        raise ConfigError(f"{where}.reembed: backbone {network} is of kind {run.backbone.kind}, not sd3")
    if isinstance(run.backbone, Sd3) and run.backbone.lora and run.base is None:
        raise ConfigError(f"{where}.teacher: backbone {network} has adapters (lora), which need a teacher")
    if guidance is not None and (guidance.channels or 0) > run.tokenizer.shape[0]:
        raise ConfigError(
            f"{where}.guidance.channels: {guidance.channels}, but the latents have {run.tokenizer.shape[0]}"
        )
    # Networks and weights made for other data train and sample without complaint, and badly.
    entry = parts.latents[recipe.latents]
    wanted = {"shape": run.tokenizer.shape, "classes": parts.datasets[entry.dataset].classes}
    if isinstance(run.backbone, Sd3 | Clip) and recipe.text_encoder is None:
        mistakes.add(
            f"{config.root.files.settings}: recipes.{method.recipe}.text_encoder: is missing; backbone "
            f"{network} is conditioned on captions"
        )
    if run.text_encoder is not None:
        kinds = ("words",) if isinstance(run.backbone, Clip) else ("sd3", "clip")
        kind = parts.text_encoders[run.text_encoder].kind
        if kind not in kinds:
            mistakes.add(
                f"{config.root.files.settings}: recipes.{method.recipe}.text_encoder: {run.text_encoder} is "
                f"of kind {kind}, but backbone {network} needs one of kind {' or '.join(kinds)}"
            )
    for part, value in wanted.items():
        given = getattr(run.backbone, part, value)
        if given != value:
            mistakes.add(
                f"{config.root.files.settings}: backbones.{network}.{part}: {given}, "
                f"but latents {recipe.latents} have {value}"
            )
    for part, weights in (("weights", method.weights), ("released", method.released)):
        if weights is not None and weights.tokenizer != entry.tokenizer:
            mistakes.add(
                f"{where}.{part}.tokenizer: {weights.asset} was trained on latents of {weights.tokenizer}, "
                f"but the recipe's come from {entry.tokenizer}; choose weights and a recipe that agree"
            )
    return run


def pipeline_at(pipeline: DiffusersPipeline, steps: int, place: str) -> DiffusersPipeline:
    """A pipeline as it is for one number of steps.

    Args:
        place: of its run.

    Raises:
        ConfigError: what its `at` says cannot be.
    """
    file, _, key = f"{place}.pipeline".partition(": ")
    found = parse(DiffusersPipeline, pipeline.raw_at(steps), file, f"{key}.at.{steps}")
    if problem := found.check_steps(steps):
        raise ConfigError(f"{file}: {key}: {problem}")
    return found


def _check_pipeline(config: Config, pipeline: DiffusersPipeline, place: str) -> None:
    """Refuse a change at a number of steps that cannot be, or names what is not there."""
    file, _, key = f"{place}.pipeline".partition(": ")
    found = Mistakes()
    for steps in pipeline.at:
        with found.caught():
            changed = pipeline_at(pipeline, steps, place)
            check_references(changed, file, f"{key}.at.{steps}", config.names, found)
    found.refuse()


def _check_teachers(runs: Mapping[str, Run], run: Run) -> None:
    """Refuse teachers that go in a circle, and an embedding of a time anew of another network."""
    if run.only_pipeline:
        return
    line = [run]
    while (name := named_teacher(line[-1].entry, line[-1].recipe)) is not None:
        names = [each.method for each in line]
        if name in names[1:]:  # told of those that are in the circle
            return
        if name in names:
            circle = " <- ".join([*names, name])
            raise ConfigError(f"{run.place}.{_teacher_key(run.entry)}: {circle} goes in a circle")
        if f"{name}/{BASE}" not in runs:  # told already
            return
        line.append(runs[f"{name}/{BASE}"])
    if run.entry.reembed is not None and (others := _other_keys(run.backbone, line[1].backbone)):
        raise ConfigError(
            f"{run.place}.reembed.of: backbone {line[1].network} differs from {run.network} in "
            f"{', '.join(others)}; the embedding of a time has time_scale alone of its own"
        )


def _other_keys(new: Backbone, old: Backbone) -> list[str]:
    """In which keys two networks differ, time_scale apart; of two kinds, in kind."""
    if new.kind != old.kind:
        return ["kind"]
    ours, theirs = new.model_dump(), old.model_dump()
    return [key for key in ours if key != "time_scale" and ours[key] != theirs[key]]


def _check_tokenizer(runs: Mapping[str, Run], run: Run) -> None:
    """Refuse latents of a tokenizer whose training needs the run itself."""
    first = run.tokenizer.weights.method if run.tokenizer.weights else None
    needed = [first] if first and run.variant == BASE else []
    for method in needed:
        if method == run.method:
            raise ConfigError(
                f"{run.place}.recipe: the latents of {run.entry.recipe} come from {first}, which needs "
                f"{run.method} first; choose other latents for one of them"
            )
        if (found := runs.get(f"{method}/{BASE}")) is not None:
            weights = found.tokenizer.weights
            more = (found.teacher, weights.method if weights else None)
            needed += [name for name in more if name and name not in needed]


FREE = {"steps", "log_every", "max_skipped_updates"}
FREE_OF_OPTIMIZER = {"lr", "warmup", "decay", "final_lr_ratio"}
"""Keys of train and train.optimizer in which a training may differ from the one that it continues."""


def _check_continued(runs: Mapping[str, Run], run: Run) -> None:
    """Refuse to go on with a training that is not made here, in a circle, or of something else."""
    names = [run.method]
    while (name := runs[f"{names[-1]}/{BASE}"].entry.continues) is not None:
        if name in names[1:] or f"{name}/{BASE}" not in runs:  # told already
            return
        if name == run.method:
            circle = " <- ".join([*names, name])
            raise ConfigError(f"{run.place}.continues: {circle} goes in a circle")
        names.append(name)
    if run.entry.continues is None:
        return
    before = runs[f"{run.entry.continues}/{BASE}"]
    if before.entry.weights or before.entry.reembed or before.only_pipeline:
        raise ConfigError(
            f"{run.place}.continues: {before.method} is not trained here, and has no state to go on from; "
            "name a method that is trained"
        )
    differing = [key for key, value in _of_training(run).items() if value != _of_training(before)[key]]
    if differing:
        raise ConfigError(
            f"{run.place}.{differing[0]}: is another than that of {before.method}, which it continues; only "
            f"the number of steps and the learning rate may differ: {_free_keys()}"
        )
    if run.train.steps <= before.train.steps:
        raise ConfigError(
            f"{run.place}.train.steps: {run.train.steps}, but {before.method}, which it continues, has "
            f"{before.train.steps}; give more, all steps counted"
        )


def _free_keys() -> str:
    return ", ".join([*sorted(FREE), *(f"optimizer.{key}" for key in sorted(FREE_OF_OPTIMIZER))])


def _of_training(run: Run) -> dict[str, Any]:
    """Key -> what a training that is continued must have in common with the other, without its seed."""
    train = run.train.model_dump(exclude=FREE)
    optimizer = run.train.optimizer.model_dump(exclude=FREE_OF_OPTIMIZER)
    return {
        "recipe": (run.recipe.latents, run.recipe.text_encoder, run.recipe.label_dropout),
        "loss": run.loss,
        "backbone": run.backbone,
        "teacher": named_teacher(run.entry, run.recipe),
        "guidance": run.guidance,
        **{f"train.{key}": value for key, value in train.items() if key != "optimizer"},
        **{f"train.optimizer.{key}": value for key, value in optimizer.items()},
    }


def unmet_needs(runs: Mapping[str, Run], run: Run, schedule: bool = True) -> list[str]:
    """What a run needs of network and teacher and does not have, a line each.

    A variant that shares a problem with its method tells it where the method has it.

    Args:
        schedule: also what it needs of the length and the batch of its training.
    """
    base = runs[f"{run.method}/{BASE}"]
    shared = _problems(runs, base, schedule)
    return [
        f"{base.place if told in shared else run.place}.{told}" for told in _problems(runs, run, schedule)
    ]


def _problems(runs: Mapping[str, Run], run: Run, schedule: bool) -> list[str]:
    """The same, each line from the key below the run's place on."""
    name = named_teacher(run.entry, run.recipe)
    if run.only_pipeline or (name and f"{name}/{BASE}" not in runs):  # the latter is told already
        return []
    teacher = runs[f"{name}/{BASE}"].loss if name else None
    found = [*_network_problems(run.loss, run.backbone), *run.loss.check(run.train, run.backbone, teacher)]
    told = []
    if schedule and run.maker == "train":
        told += [f"train: {run.train.problem}"] if run.train.problem else []
        found += run.loss.check_schedule(run.train)
    return told + [f"loss.{key}: {message}" if key else f"loss: {message}" for key, message in found]


def _network_problems(loss: LossParams, backbone: Backbone) -> Problems:
    if not isinstance(backbone, FlowNetwork):
        return
    if not backbone.timed and not loss.one_step:
        yield "", f"trains at many times, which a backbone of kind {backbone.kind} is not told; use loss kd"
        return
    if backbone.outputs not in loss.outputs:
        yield "", f"needs a backbone with outputs: {' or '.join(map(str, loss.outputs))}"
    if backbone.scalar != loss.scalar:
        yield "", f"needs a backbone with scalar: {str(loss.scalar).lower()}"
    if loss.pyramid != (backbone.scale_count > 1):
        yield "", f"needs a backbone with scales: {'2 or more' if loss.pyramid else '1'}"
    if loss.target_time not in (None, backbone.target_time):
        yield "", f"needs a backbone with target_time: {str(loss.target_time).lower()}"


def check_networks(run: Run, teacher: Run | None, where: str) -> None:
    """Refuse teachers not told the times or of a pyramid, and networks that predict noise in a training.

    The latter's velocity (x - e) / t at t = 0 holds the network's errors 157 times enlarged, and there
    few-step generation starts; a student that predicts velocities could not start from such weights either.
    """
    for network in (teacher and teacher.backbone, run.adopted and run.backbone):
        if isinstance(network, FlowNetwork) and network.scale_count > 1:
            raise ConfigError(
                f"{where}: a backbone with scales: {network.scale_count} is trained here, on data alone"
            )
    if teacher is not None and isinstance(teacher.backbone, FlowNetwork) and not teacher.backbone.timed:
        raise ConfigError(
            f"{where}: teacher {teacher.method} has a backbone of kind {teacher.backbone.kind}, which is "
            "not told the times and cannot teach"
        )
    trained = None if run.adopted else run.backbone
    for network, doing in ((trained, "trained"), (teacher and teacher.backbone, "a teacher")):
        if isinstance(network, LightningDiT) and network.predicts == "noise":
            raise ConfigError(
                f"{where}: a backbone with predicts: noise can be adopted and sampled from, not be {doing}"
            )
