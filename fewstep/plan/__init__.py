"""From configuration to runs, cells, specs and paths. Pure: no torch, no Snakemake, no jobs.

The rules of workflow/ ask two kinds of question: from which files does X follow (inputs), and on
what does X depend beside files (specs). Both are answered here, from config/ alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from ..config.backbones import Backbone, FlowNetwork
from ..config.base import ConfigError, Mistakes, Strict, complete, dump, require_known
from ..config.load import load
from ..config.pipelines import DiffusersPipeline
from ..config.settings import Dataset, Protocol, Weights
from ..config.specs import CellKey
from ..config.tables import Bounds
from ..config.text import AnyProtocol, LikelihoodProtocol, PromptProtocol, PromptSet
from . import marks, paths
from .cells import ResolvedClaim, Resolver
from .jobs import Job, dependencies, inputs
from .runs import (
    BASE,
    Run,
    check_networks,
    find_variants,
    named_teacher,
    pipeline_at,
    resolve_runs,
    unmet_needs,
)
from .stage_specs import BUILDERS
from .targets import SPEC_OF

__all__ = ["BASE", "Plan", "Run"]


class Plan:
    """The configuration with everything resolved: runs, tables and claims with their cells, images, paths.

    Args:
        raw, base, files, command_line: as for `config.load.load`.

    Raises:
        ConfigError: one line for every mistake.
    """

    def __init__(
        self,
        raw: Mapping[str, Any],
        base: Path = Path(),
        files: Iterable[str | Path] = (),
        command_line: Mapping[str, Any] | None = None,
    ) -> None:
        self._base = base
        self.config = config = load(raw, base, files, command_line)
        self.parts = config.parts
        mistakes = Mistakes(config.origins.locate)
        variants = find_variants(config, mistakes)
        self.runs = resolve_runs(config, variants, mistakes)
        self._check_networks(mistakes)
        resolver = Resolver(config, self.runs, variants, self.shared_models, mistakes)
        self.tables = {name: resolver.table(name) for name in config.tables}
        claims = [resolver.claim(claim) for claim in config.claims]
        self.claims = [claim for claim in claims if claim is not None]
        self._check(mistakes)
        mistakes.refuse()
        self.wanted = self._wanted()
        protocols = self.parts.protocols.items()
        sampled = {name: entry for name, entry in protocols if not isinstance(entry, LikelihoodProtocol)}
        self.image_sets = {self.image_set(name): entry for name, entry in sampled.items()}
        self.check_needs(self.targets())

    @cached_property
    def published(self) -> dict[str, Run]:
        """Every run as config/ has it without presets: at the paper's scale."""
        config, mistakes = load(complete({}, self._base), self._base), Mistakes()
        return resolve_runs(config, find_variants(config, mistakes), mistakes)

    @cached_property
    def shared_models(self) -> set[str]:
        """Methods that others build on: teachers, tokenizers, feature extractors."""
        teachers = {run.teacher for run in self.runs.values() if run.teacher}
        teachers |= {run.entry.reembed.of for run in self.runs.values() if run.entry.reembed}
        return teachers | self._methods_of_parts

    @cached_property
    def _methods_of_parts(self) -> set[str]:
        """Methods that make tokenizers, text encoders, feature extractors, scorers and references."""
        weights = [tokenizer.weights for tokenizer in self.parts.tokenizers.values()]
        weights += [encoder.weights for encoder in self.parts.text_encoders.values()]
        for protocol in self.parts.protocols.values():
            if isinstance(protocol, PromptProtocol):
                weights += protocol.files
            elif isinstance(protocol, Protocol):
                weights += [protocol.weights, protocol.reference]
        return {given.method for given in weights if given is not None and given.method}

    @cached_property
    def continued(self) -> set[str]:
        """Runs with which others go on, so that the states of their finished trainings are kept."""
        return {f"{run.continues}/{BASE}" for run in self.runs.values() if run.continues}

    def _check(self, mistakes: Mistakes) -> None:
        """Fail now on what would otherwise show only when a cell, or the report, is asked for."""
        file = self.config.root.files.settings
        for name, recipe in self.parts.recipes.items():
            given: dict[str, Strict | None] = {"train": recipe.train, "guidance": recipe.guidance}
            with mistakes.caught():
                marks.check(recipe.provenance, given, file, f"recipes.{name}.provenance")
        for run in (run for run in self.runs.values() if run.variant == BASE):
            file = self.config.method_files[run.method]
            with mistakes.caught():
                marks.check(run.entry.provenance, marks.parts(run), file, f"{run.method}.provenance")
            teacher = self.runs.get(f"{run.teacher}/{BASE}") if run.has_teacher else None
            with mistakes.caught():
                check_networks(run, teacher, f"{file}: {run.method}.backbone")

    @cached_property
    def unmet(self) -> dict[str, list[str]]:
        """Run -> what it needs and does not have, a line each; of the runs of which that is so."""
        needs = {name: unmet_needs(self.runs, run) for name, run in self.runs.items()}
        return {name: lines for name, lines in needs.items() if lines}

    def _check_networks(self, mistakes: Mistakes) -> None:
        """Tell what network and teacher lack of what stands in a table or claim, and of what that builds on.

        It follows from recipes as well, which fit what is used. Other runs, and schedules, are looked at when
        they are asked for.
        """
        config = self.config
        rows = (row.method for table in config.tables.values() for row in table.rows)
        sides = (cell.method for claim in config.claims for cell in (claim.left, *claim.right))
        methods = list(dict.fromkeys([*rows, *sides, *self._methods_of_parts]))
        for method in methods:
            run = self.runs.get(f"{method}/{BASE}")
            more = (named_teacher(run.entry, run.recipe), run.entry.continues) if run else ()
            methods += [name for name in more if name and name not in methods]
        for run in self.runs.values():
            if run.method in methods:
                mistakes.add(*unmet_needs(self.runs, run, schedule=False))

    def check_needs(self, files: Iterable[str]) -> None:
        """Refuse files behind which is a run that does not have what it needs.

        Raises:
            ConfigError: one line for every need.
        """
        if self.unmet:
            self.refuse_unmet(job.key["run"] for job in dependencies(self, files) if "run" in job.key)

    def refuse_unmet(self, runs: Iterable[str]) -> None:
        """The same of runs, by their names."""
        mistakes = Mistakes(self.config.origins.locate)
        for name in runs:
            mistakes.add(*self.unmet.get(name, []))
        mistakes.refuse()

    def _wanted(self) -> list[str]:
        """The targets that have something behind them."""
        asked = self.config.root.targets
        if asked == "all":
            tables = self.config.tables.items()
            asked = [*(name for name, table in tables if not table.by_name), "claims", "report"]
        filled = {name for name, entry in self.tables.items() if entry.table.kind == "table" or entry.runs}
        filled |= {"report", *(entry.claim.target for entry in self.claims)}
        return [name for name in asked if name in filled]

    def run(self, method: str, variant: str = BASE) -> Run:
        """The run of that name.

        Raises:
            ConfigError: neither config/methods/ nor a table defines it.
        """
        require_known(f"{method}/{variant}", self.runs, "config/methods and config/tables", "run")
        return self.runs[f"{method}/{variant}"]

    def base(self, name: str) -> Run:
        """The run whose network the adapters of a run belong to.

        Raises:
            ConfigError: the run has no adapters.
        """
        run = self.runs[name]
        if run.base is None:
            raise ConfigError(f"{run.place}.backbone: {run.network} has no adapters (lora) to export")
        return self.run(run.base)

    def network(self, weights: Weights | None) -> Backbone | None:
        """Backbone of a network that this workflow trains; None for published weights."""
        return None if weights is None or weights.method is None else self.run(weights.method).backbone

    def pipeline(self, run: Run, steps: int) -> DiffusersPipeline:
        """A run's pipeline of diffusers as it is for one number of steps.

        Raises:
            ConfigError: it has none, or not for so many.
        """
        if run.pipeline is None:
            raise ConfigError(f"{run.place}.pipeline: is only sampled from with weights=released")
        return pipeline_at(run.pipeline, steps, run.place)

    def pipeline_prompts(self, run: Run, protocol: AnyProtocol) -> PromptSet:
        """What a pipeline of diffusers is sampled from under a protocol.

        Raises:
            ConfigError: the protocol compares features of images of classes.
        """
        if not isinstance(protocol, PromptProtocol):
            raise ConfigError(
                f"{run.place}.pipeline: it is sampled from prompts, which the protocol has none of"
            )
        return self.parts.prompts[protocol.prompts]

    # Paths, as strings relative to the working directory

    def path(self, template: str, **wildcards: Any) -> str:
        """Expand <results> and the other path variables, and wildcards."""
        return paths.expand(template, self.config.root.pathvars, **wildcards)

    def template(self, template: str) -> str:
        """A template with the path variables expanded and its wildcards kept."""
        return self.path(re.sub(r"[{}]", r"\g<0>\g<0>", template))

    @cached_property
    def patterns(self) -> dict[str, re.Pattern[str]]:
        """Kind of file -> regular expression of its paths."""
        return {
            kind: paths.pattern(self.template(template), self.constraints)
            for kind, template in paths.FILES.items()
        }

    def file(self, kind: str, **wildcards: Any) -> str:
        """The path of a file of one kind; see `paths.FILES`."""
        return self.path(paths.FILES[kind], **wildcards)

    def model(self, method: str, variant: str = BASE, seed: int = 0) -> str:
        return self.file("model", run=f"{method}/{variant}", seed=seed)

    def metrics(self, key: CellKey) -> str:
        return self.file("metrics", **key.wildcards)

    def images(self, key: CellKey) -> str:
        return self.file("images", **key.wildcards, images=self.image_set(key.protocol))

    def image_set(self, protocol: str) -> str:
        """Name of the images that a protocol wants; protocols that want the same share them.

        Raises:
            ConfigError: it is of likelihoods of real images.
        """
        entry = self.parts.protocols[protocol]
        if isinstance(entry, LikelihoodProtocol):
            raise ConfigError(f"{self.config.root.files.settings}: protocols.{protocol}: samples no images")
        of = entry.prompts if isinstance(entry, PromptProtocol) else entry.labels
        name = f"{of}-{entry.images}-{entry.uint8}-{entry.seed}"
        dtypes = (entry.network_dtype, entry.decoder_dtype)
        return name if set(dtypes) == {"float32"} else f"{name}-{'-'.join(dtypes)}"

    @cached_property
    def captions(self) -> dict[str, Dataset | PromptSet]:
        """Every list of captions by its name: those of data sets, and the sets of prompts."""
        datasets = self.parts.datasets.items()
        return {**{name: entry for name, entry in datasets if entry.captioned}, **self.parts.prompts}

    def number_of_captions(self, name: str) -> int:
        """Of a list of captions, without the empty one."""
        found = self.captions[name]
        return found.prompts if isinstance(found, PromptSet) else found.classes

    def prompts_of(self, run: Run, protocol: AnyProtocol) -> str:
        """Name of the captions that a run's images are sampled from: the protocol's, or its data set's."""
        if isinstance(protocol, PromptProtocol):
            return protocol.prompts
        return self.parts.latents[run.recipe.latents].dataset

    def features_protocol(self, name: str) -> Protocol:
        """The protocol of that name, which compares features.

        Raises:
            ConfigError: it is of another kind, and has no reference.
        """
        entry = self.parts.protocols[name]
        if not isinstance(entry, Protocol):
            raise ConfigError(f"{self.config.root.files.settings}: protocols.{name}: it has no reference")
        return entry

    def bounds_of(self, table: str) -> tuple[Bounds, PromptProtocol]:
        """The bounds that a table shows, and their protocol.

        Raises:
            ConfigError: it shows none.
        """
        found = self.config.tables[table].bounds
        protocol = self.parts.protocols[found.protocol] if found else None
        if found is None or not isinstance(protocol, PromptProtocol):
            raise ConfigError(f"{self.config.root.files.tables}/{table}.yaml: bounds: it has none")
        return found, protocol

    def has_examples(self, table: str) -> bool:
        """Whether real images stand above a figure's samples: it asks for them, and some are here."""
        return self._example_dataset(table) is not None

    def examples_of(self, table: str) -> tuple[str, str | None]:
        """The data set whose images stand above a figure's samples, and its set of prompts if it has one.

        Raises:
            ConfigError: none do.
        """
        dataset = self._example_dataset(table)
        if dataset is None:
            raise ConfigError(f"{self.config.root.files.tables}/{table}.yaml: real: it shows no real images")
        protocol = self.parts.protocols[self.tables[table].picture_cells[0].protocol]
        return dataset, protocol.prompts if isinstance(protocol, PromptProtocol) else None

    def _example_dataset(self, table: str) -> str | None:
        """The first data set of images behind a training, where a figure asks for real images.

        That of published weights may not be here.
        """
        found = self.tables[table]
        for run in found.runs.values() if found.table.real else ():
            name = self.parts.latents[run.recipe.latents].dataset
            if run.maker == "train" and self.parts.datasets[name].format != "latents-safetensors":
                return name
        return None

    def claims_of(self, target: str) -> list[ResolvedClaim]:
        """The claims whose results stand in one file."""
        return [entry for entry in self.claims if entry.claim.target == target]

    def parts_of(self, target: str) -> list[str]:
        """The files of one target."""
        if target == "report":
            return [self.file("page")]
        if target not in self.tables:
            return [self.file(kind, claims=target) for kind in ("claims", "claims_markdown")]
        kinds = ["csv", "markdown"] if self.tables[target].table.kind == "table" else ["png", "csv"]
        return [self.file(kind, table=target) for kind in kinds]

    def targets(self) -> list[str]:
        return [file for target in self.wanted for file in self.parts_of(target)]

    # Jobs

    def inputs(self, stage: str, key: Mapping[str, str]) -> dict[str, list[str]]:
        """Input files of a job, by the option of the stage that takes them.

        Args:
            key: the wildcards of its output.
        """
        files = {"spec": [self.spec_file(SPEC_OF.get(stage, stage), **key)], **inputs(self, stage, key)}
        encoder = self.live_text(self.runs[key["run"]]) if stage == "train" else None
        if encoder is not None:
            captions = self.parts.latents[self.runs[key["run"]].recipe.latents].dataset
            files["text"] = [self.spec_file("text", encoder=encoder, captions=captions)]
        if stage in ("train", "adopt"):
            sampled = isinstance(self.runs[key["run"]].backbone, FlowNetwork)
            files["sampling"] = [self.spec_file("sampling", run=key["run"])] if sampled else []
        return files

    def watch(self, run: str, seed: str) -> list[str]:
        """Options of a training that samples itself in two steps as the first protocol that compares images.

        None where there is no such protocol, or the network knows captions or points.
        """
        entry = self.runs[run]
        sampler = entry.samplers.get(2, entry.samplers.get("default"))
        known = ((name, self.parts.protocols[name]) for name in entry.recipe.protocols)
        names = [name for name, found in known if isinstance(found, Protocol) and found.uint8 != "none"]
        if not names or sampler is None or entry.text_encoder is not None:
            return []
        protocol, cell = names[0], {"run": run, "seed": seed, "sampler": sampler, "steps": "2"}
        score = self.inputs("score", {**cell, "protocol": protocol})
        sample = self.inputs("sample", {**cell, "images": self.image_set(protocol)})
        # in one line, as a part of a command
        text = json.dumps(json.loads(self.spec_text("score", f"{run}/{seed}/{sampler}-2/{protocol}")))
        options = ["--watch", text, "--watch-tokenizer", *sample["tokenizer"]]
        options += ["--watch-extractor", *score["extractor"]]
        return [*options, "--watch-reference", *score["reference"]]

    def spec_file(self, stage: str, **key: str) -> str:
        """The path of a spec."""
        return self.path(f"<results>/specs/{stage}/{paths.SPECS[stage]}.json", **key)

    def live_text(self, run: Run) -> str | None:
        """The text encoder of a run that encodes its captions itself; None where it does not."""
        return run.text_encoder if self.config.root.text == "live" else None

    def environment(self, stage: str, key: Mapping[str, str]) -> str:
        """The environment of envs/ that a job needs; captions need more than classes.

        Args:
            key: the wildcards of its output.
        """
        if stage == "fetch":
            return "workflow" if self.config.assets[key["asset"]].scenes is None else "t2i"
        if stage == "costs":
            runs = {job.key["run"] for job in self.jobs() if "run" in job.key}
            return "t2i" if any(map(self._captioned, runs)) else "torch"
        if stage in ("reference", "score"):
            entry = self.parts.protocols[key["protocol"]]
            if isinstance(entry, LikelihoodProtocol):
                return "torch"
            extra = isinstance(entry, PromptProtocol) or entry.extractor in ("clip", "dinov2")
            return "t2i" if extra else "metrics"
        return "t2i" if self._captioned(key["run"]) else "torch"

    def _captioned(self, run: str) -> bool:
        return self.runs[run].text_encoder is not None or self.runs[run].pipeline is not None

    def assets(self, targets: Iterable[str] | None = None) -> list[str]:
        """Everything from outside that some targets need; without ``targets``, those that are wanted."""
        files = None if targets is None else [file for target in targets for file in self.parts_of(target)]
        jobs = self.jobs() if files is None else dependencies(self, files)
        return [job.key["asset"] for job in jobs if job.stage == "fetch"]

    def jobs(self) -> dict[Job, list[Job]]:
        """Every job behind the targets, with those that it waits for; without the ones that write specs."""
        return dependencies(self, self.targets())

    def spec(self, stage: str, name: str) -> Strict:
        """The spec of a stage; ``name`` is its path below <results>/specs/STAGE/."""
        require_known(stage, BUILDERS, "workflow", "stage")
        found = paths.pattern(paths.SPECS[stage], self.constraints).fullmatch(name)
        if found is None:
            raise ConfigError(f"workflow: {stage}: nothing is called {name!r}")
        self.refuse_unmet(value for wildcard, value in found.groupdict().items() if wildcard == "run")
        return BUILDERS[stage](self, **found.groupdict())

    def spec_text(self, stage: str, name: str) -> str:
        """Canonical JSON of a spec, without its last line feed."""
        return dump(self.spec(stage, name)).rstrip("\n")

    @cached_property
    def names(self) -> dict[str, Iterable[str]]:
        """Wildcard -> its values, of those that are names."""
        return {
            "asset": self.config.assets,
            "latents": self.parts.latents,
            "encoder": self.parts.text_encoders,
            "captions": self.captions,
            "run": self.runs,
            "sampler": self.parts.samplers,
            "protocol": self.parts.protocols,
            "images": self.image_sets,
            "table": self.config.tables,
            "claims": {"claims": None, **{claim.target: None for claim in self.config.claims}},
        }

    @cached_property
    def constraints(self) -> dict[str, str]:
        """Wildcard -> regular expression that matches its values and nothing else."""
        found = {wildcard: paths.alternatives(values) for wildcard, values in self.names.items()}
        return {**found, "seed": r"0|[1-9]\d{0,17}", "steps": r"[1-9]\d*", "shard": r"\d{5}"}

    def runs_pattern(self, maker: str) -> str:
        """Of the runs whose model a stage makes: adopt, reembed or train."""
        return paths.alternatives(name for name, run in self.runs.items() if run.maker == maker)

    def tables_pattern(self, figures: bool) -> str:
        tables = self.config.tables.items()
        return paths.alternatives(name for name, table in tables if (table.kind != "table") == figures)
