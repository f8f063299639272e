"""Specs: the frozen slice of the configuration that one stage reads, as JSON on disk.

A spec holds all that a result depends on beside the input files, and nothing else: no path, no
process count, no caption. Its digest therefore tells whether a result is still the asked-for one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, model_validator

from .assets import Asset, Scenes
from .backbones import Backbone, FlowBackbone, Sd3
from .base import Strict
from .methods import AnyLossParams, Reembed
from .pipelines import DiffusersPipeline
from .rates import Bench, Device, Operations, Rate, Source
from .sampling import Sampling
from .settings import Dataset, Guidance, Latents, Mark, PossibleTrain, Precision, Protocol, Sampler, Tokenizer
from .tables import Claim, Kind, Table
from .text import LikelihoodProtocol, PromptProtocol, PromptSet, TextEncoder


class FetchSpec(Strict):
    name: str
    asset: Asset


class EncodeSpec(Strict):
    name: str = Field(description="of the latents")
    dataset: Dataset
    tokenizer: Tokenizer
    latents: Latents
    backbone: Backbone | None = Field(default=None, description="network of a trained tokenizer")


class AdoptSpec(Strict):
    """Published weights to be renamed to our keys and checked against ``backbone``."""

    method: str
    backbone: Backbone
    asset: str
    file: str
    tokenizer: Tokenizer = Field(description="of the latents that the weights were trained on")
    reverse: bool = Field(default=False, description="their t is 1 at noise, their velocity noise - data")
    new_labels: bool = Field(
        default=False,
        exclude_if=lambda value: not value,
        description="embeddings of the classes start at random, as the weights know others",
    )
    sampler: Sampler | None = Field(default=None, description="how their authors sample from them")


class LatentCard(Strict):
    """What training and sampling require of a latents manifest."""

    name: str
    shape: list[int]
    classes: int
    images: int
    tokenizer: Tokenizer
    names: list[str] | None = Field(
        default=None, exclude_if=lambda value: value is None, description="of the classes"
    )


class TextCard(Strict):
    """What training and sampling require of a text store."""

    name: str = Field(description="of the captions: a data set, or a set of prompts")
    captions: int = Field(description="without the empty one")
    encoder: TextEncoder


class TextSpec(Strict):
    """A text store to be made."""

    text: TextCard
    dataset: Dataset | None = Field(default=None, description="whose captions they are")
    prompts: PromptSet | None = Field(default=None, description="or the set of prompts")
    backbone: Backbone | None = Field(default=None, description="network of a CLIP that is trained here")


class ReembedSpec(Strict):
    """A network whose time embedding is to be fitted by a smoother one."""

    method: str
    backbone: Sd3 = Field(description="with the new time_scale")
    reembed: Reembed


class ExportSpec(Strict):
    """A student that is adapters of SD3, to be written as diffusers and peft keep them."""

    method: str
    variant: str
    backbone: Sd3 = Field(description="of the student")
    guidance: Guidance | None = Field(description="of the teacher that the student follows")
    licence: str = Field(description="of the base, under which adapters of it stand too")
    limit: float = Field(
        default=0.01,
        gt=0,
        description="largest relative error of a fitted time embedding at the times of few-step samplers",
    )


class PipelineSpec(Strict):
    """A text-to-image model that is trained here, to be written as a folder of diffusers."""

    method: str
    backbone: Sd3
    latents: LatentCard
    decoder: Backbone = Field(description="network of the tokenizer")
    text: TextEncoder
    encoder: Backbone = Field(description="network of the text encoder")


class ClassPipelineSpec(Strict):
    """A class-conditional model, to be written as a folder of `fewstep.Pipeline`."""

    method: str
    variant: str
    sampling: Sampling


def pipeline_spec_class(raw: Mapping[str, Any]) -> type[PipelineSpec | ClassPipelineSpec]:
    """Which of both the content of a spec's file is."""
    return ClassPipelineSpec if "sampling" in raw else PipelineSpec


class Continued(Strict):
    """A finished training that another one goes on with."""

    run: str = Field(description="method/variant")
    spec: str = Field(description="digest of its spec")
    steps: int


class TrainSpec(Strict):
    method: str
    variant: str
    seed: int
    loss: AnyLossParams
    backbone: Backbone
    latents: LatentCard
    text: TextCard | None = Field(default=None, exclude_if=lambda value: value is None)
    teacher: bool
    guidance: Guidance | None
    label_dropout: float
    train: PossibleTrain
    continues: Continued | None = Field(default=None, exclude_if=lambda value: value is None)


class BenchSpec(Strict):
    """Training steps to be measured on synthetic latents."""

    backbone: FlowBackbone
    teacher: FlowBackbone | None
    guidance: Guidance | None
    precision: str
    losses: dict[str, AnyLossParams] = Field(description="method -> its objective")
    bench: Bench


class SampleSpec(Precision):
    backbone: Backbone
    expanded: bool = Field(
        default=False, description="the network has its velocity at time condition 2 - t, not at s = t"
    )
    sampler: Sampler
    guidance: Guidance | None
    steps: int
    images: int
    labels: str
    uint8: str
    seed: int
    latents: LatentCard
    text: TextCard | None = Field(
        default=None, exclude_if=lambda value: value is None, description="the prompts"
    )
    image: list[int] = Field(min_length=3, max_length=3, description="(C, H, W) of the data set's images")
    decoder: Backbone | None = Field(default=None, description="network of a trained tokenizer")


class PipelineSampleSpec(Strict):
    """Images of a released pipeline of diffusers."""

    pipeline: DiffusersPipeline = Field(description="as it is for this number of steps")
    steps: int
    images: int
    labels: str
    uint8: str
    seed: int
    prompts: PromptSet
    image: list[int] = Field(min_length=3, max_length=3, description="(C, H, W) of its images")


def _sample_kind(value: Any) -> str:
    known = isinstance(value, PipelineSampleSpec) or (isinstance(value, Mapping) and "pipeline" in value)
    return "pipeline" if known else "network"


AnySampleSpec = Annotated[
    Annotated[SampleSpec, Tag("network")] | Annotated[PipelineSampleSpec, Tag("pipeline")],
    Discriminator(_sample_kind),
]


def sample_spec_class(raw: Mapping[str, Any]) -> type[SampleSpec | PipelineSampleSpec]:
    """Which of both the content of a spec's file is."""
    return PipelineSampleSpec if _sample_kind(raw) == "pipeline" else SampleSpec


class ReferenceSpec(Strict):
    """Statistics, and perhaps features, of real images under a protocol."""

    protocol: Protocol
    extractor: Backbone | None
    latents: LatentCard | None = Field(description="the images; None: those of the published reference")


class CellKey(Strict):
    method: str
    variant: str
    seed: int
    sampler: str
    steps: int
    protocol: str

    @property
    def wildcards(self) -> dict[str, Any]:
        """Those of the paths of the cell's files."""
        return {"run": f"{self.method}/{self.variant}", **self.model_dump(mode="json")}


class ScoreSpec(Strict):
    cell: CellKey
    protocol: Protocol
    extractor: Backbone | None = Field(description="network of a trained feature extractor")
    sample: SampleSpec = Field(description="how the images were sampled")

    @property
    def image(self) -> list[int]:
        """(C, H, W)."""
        return self.sample.image


class PromptScorers(Strict):
    """What scores images with their prompts."""

    protocol: PromptProtocol
    prompts: PromptSet
    scorers: dict[str, Backbone] = Field(description="networks of the scorers that are trained here, by name")


class PromptScoreSpec(PromptScorers):
    """Scores of images with their prompts."""

    cell: CellKey
    sample: AnySampleSpec = Field(description="how the images were sampled")

    @property
    def image(self) -> list[int]:
        """(C, H, W)."""
        return self.sample.image


class LikelihoodScoreSpec(Strict):
    """Likelihoods of real images under a model."""

    cell: CellKey
    protocol: LikelihoodProtocol
    backbone: Backbone
    latents: LatentCard = Field(description="the real images")
    sampler: Sampler
    steps: int
    scale: float | None = Field(description="unit of the network's scalar; None: it has none")


class BoundsSpec(PromptScorers):
    """Scores of real scenes: the bounds of the scores of sampled ones."""

    scenes: Scenes = Field(description="how the asset of the prompts was drawn")
    scenes_of_each: int = Field(description="scenes of each prompt")
    tokenizer: Tokenizer = Field(description="that the real scenes go through")
    decoder: Backbone | None = Field(default=None, description="network of a trained tokenizer")


class ExamplesSpec(Strict):
    """Real images to stand beside samples."""

    dataset: Dataset
    labels: list[int] = Field(description="one image of each: classes, or numbers of prompts")
    prompts: PromptSet | None = Field(
        default=None, description="found among the captions of the data set; None: labels are its classes"
    )


class ForeignScoreSpec(Strict):
    """Metrics of images from elsewhere."""

    protocol: Protocol
    extractor: Backbone | None = Field(description="network of a trained feature extractor")
    image: list[int] = Field(min_length=3, max_length=3, description="(C, H, W)")


class ForeignPromptScoreSpec(PromptScorers):
    """Scores of images from elsewhere, image i of prompt i modulo their number."""

    image: list[int] = Field(min_length=3, max_length=3, description="(C, H, W)")


AnyImageScoreSpec = ScoreSpec | PromptScoreSpec
AnyScoreSpec = AnyImageScoreSpec | LikelihoodScoreSpec
ForeignSpec = ForeignScoreSpec | ForeignPromptScoreSpec


def score_spec_class(raw: Mapping[str, Any]) -> type[AnyScoreSpec]:
    """Which of both the content of a spec's file is, by the kind of its protocol."""
    protocol = raw.get("protocol")
    kind = protocol.get("kind") if isinstance(protocol, Mapping) else None
    others: dict[str, type[AnyScoreSpec]] = {
        "prompt-scores": PromptScoreSpec,
        "likelihood": LikelihoodScoreSpec,
    }
    return others.get(str(kind), ScoreSpec)


class RowCells(Strict):
    """A table row with its cells: ``cells[protocol][column]`` holds one key per seed."""

    id: str
    cells: dict[str, list[list[CellKey]]]


class RunName(Strict):
    """The training behind a row: what its code digest and its curves belong to."""

    method: str
    variant: str
    loss: str = Field(description="name of the loss, its folder in fewstep/methods; of a pipeline none")
    seeds: list[int]


class TableSpec(Strict):
    """A table or figure. Its curves and samples come in the order of ``ordered_runs``, then of seeds."""

    name: str = Field(description="stem of config/tables/NAME.yaml")
    scale: str = Field(description="scale of its recipes; only `paper` stands under the paper's numbers")
    protocols: list[str] = Field(
        default=[], description="that compute the table's metric: first the paper's own, then the others"
    )
    extra_metrics: dict[str, str] = Field(
        default={}, description="metric beside the table's own -> the protocol that it is of"
    )
    table: Table
    rows: list[RowCells] = []
    parameters: dict[str, float] = Field(default={}, description="sweep: row id -> value of its parameter")
    runs: dict[str, RunName] = Field(default={}, description="row id -> its training")
    class_names: list[str] = Field(
        default=[], exclude_if=lambda value: not value, description="of a figure of samples, by label"
    )

    @property
    def ordered_runs(self) -> list[tuple[str, RunName]]:
        """Row id and training, in the table's order; as JSON, ``runs`` is sorted by name."""
        return [(row.id, self.runs[row.id]) for row in self.table.rows if row.id in self.runs]

    @model_validator(mode="after")
    def _rows(self) -> TableSpec:
        labels = {row.id: len(row.steps or self.table.steps or []) for row in self.table.rows}
        for row in self.rows:
            if row.id not in labels:
                raise ValueError(f"cells for row {row.id}, which the table does not have")
            for protocol, columns in row.cells.items():
                known = protocol in (*self.protocols, *self.extra_metrics.values())
                if len(columns) != labels[row.id] or not known:
                    raise ValueError(f"row {row.id}: {len(columns)} columns under {protocol}")
        return self


class ClaimsSpec(Strict):
    claims: list[Claim]
    cells: dict[str, list[list[CellKey]]] = Field(
        description="claim -> for each seed, the left cell and then the right ones"
    )
    seeds: list[int]
    toys: list[str] = Field(
        default=[], description="claims about experiments that are as small in the paper itself"
    )
    scale: str


class Work(Strict):
    """What a job does with one network."""

    name: str = Field(description="e.g. decm on lightningdit-xl1")
    images: float = Field(description="trained on, encoded or scored; of sampling, evaluations")
    rate: Rate | None = Field(default=None, description="declared; None: count the operations")
    network: str | None = Field(default=None, description="key of the spec's networks, to be counted")
    tokenizer: Tokenizer | None = Field(default=None, description="of published weights, to be counted")
    decode: bool = Field(default=False, description="by the tokenizer, instead of encoding")
    loss: AnyLossParams | None = Field(default=None, description="train the network; None: evaluate it")
    teacher: str | None = None
    guided: bool = Field(default=False, description="the teacher is evaluated with and without label")
    half: bool = Field(default=False, description="bf16 or fp16")
    tokens: int = Field(default=0, description="of a caption that conditions the network")


class SavedStates(Strict):
    """What a training saves to resume from."""

    network: str = Field(description="that is trained")
    loss: AnyLossParams = Field(description="says what is trained and averaged beside it")
    kept: bool = Field(description="whether the last one stays, for another training to go on with")


class CostLine(Strict):
    """What a job costs."""

    rule: str
    device: Device
    run: str = Field(default="", description="method/variant that it is of")
    work: list[Work] = []
    models: dict[str, int] = Field(default={}, description="network -> files of its weights that are kept")
    states: SavedStates | None = None
    kept: float = Field(default=0, description="other bytes that stay")
    temporary: float = Field(default=0, description="bytes that go again")
    sources: list[Source] = Field(default=[], description="of the sizes")
    unknown: list[str] = []


class PlannedJob(Strict):
    line: int = Field(description="place among the lines: what it costs")
    after: list[int] = Field(default=[], description="places of the jobs that make what it reads")


class CostsSpec(Strict):
    """All that the targets' costs follow from, once networks are counted."""

    lines: list[CostLine]
    jobs: list[PlannedJob]
    networks: dict[str, Backbone]
    operations: Operations
    start: float = Field(description="seconds of a job before its first image")
    restart: float = Field(description="seconds that a time limit costs a job that goes on")


class ReportItem(Strict):
    """A table or figure in the report; its file is found by its stem, ``name``."""

    name: str
    kind: Kind
    title: str
    paper: str
    caption: str = ""
    target: str = Field(description="what to ask the workflow for, e.g. results/table1.csv")
    cells: dict[str, list[list[str]]] = Field(
        default={},
        description="row id, or empty for all -> for each number of steps, what is behind our number, "
        "curve or picture, by name; that of the table's first protocol first",
    )
    extra_metrics: dict[str, str] = Field(default={}, description="metric in a column of its own -> protocol")


class SourceFiles(Strict):
    """Files behind a number, a training or images, relative to the page."""

    result: str = Field(description="of a cell its metrics, of a training its curve; of images nothing")
    spec: str
    log: str


class ReportTraining(SourceFiles):
    name: str = Field(description="method, variant and seed")
    time: str = Field(description="record of its time on the devices")


class HyperParameter(Strict):
    """One number or choice behind a training, and where it comes from."""

    key: str
    value: str
    mark: Mark | None = Field(description="none: chosen for this scale")


class ReportMethod(Strict):
    title: str
    paper: str
    loss: str = Field(description="its folder in fewstep/methods; of a pipeline none")
    network: str = ""
    parameters: dict[str, list[HyperParameter]] = Field(default={}, description="by scale")
    trainings: list[ReportTraining] = Field(default=[], description="that the report's tables show")


class ReportSpec(Strict):
    title: str
    scale: str
    command: str = Field(description="how to call the workflow, without the target")
    target: str = Field(default="report.html", description="what to ask the workflow for to make this page")
    sources: dict[str, SourceFiles] = Field(default={}, description="name -> files behind what is shown")
    items: list[ReportItem]
    methods: dict[str, ReportMethod] = {}
    claims: dict[str, list[str]] = Field(default={}, description="id -> names of what is behind its numbers")
    times: list[str] = Field(
        default=[], description="records of the time of every training behind the page, relative to it"
    )
    protocols: dict[str, Protocol | PromptProtocol | LikelihoodProtocol] = {}
