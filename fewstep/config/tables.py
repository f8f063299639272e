"""Tables, figures and claims: which cells are asked for, and what the paper reports for them."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from .base import Count, Distinct, Name, Seeds, Steps, Strict, nearest
from .methods import Variant
from .references import Ref
from .settings import Metric, Scale
from .text import PROMPT_METRICS, LikelihoodMetric, PromptMetric, split_metric

Numbers = list[float | None]
TABLE_COLUMNS = (
    *(
        "table",
        "row",
        "group",
        "label",
        "params",
        "steps",
        "nfe_label",
        "sampler",
        "method",
        "variant",
        "metric",
    ),
    *("reported", "ours", "ours_std", "seeds", "images", "evaluations", "flops_per_step", "status"),
    *("difference", "tolerance", "agrees", "protocol", "note", "warnings", "cost", "rank", "parameter"),
    *("values", "more"),
)
"""Columns of a table's csv, beside which the protocols have columns of their own names."""
NumbersOfSteps = Annotated[list[Steps], Field(min_length=1), Distinct]
AnyMetric = Literal[Metric, PromptMetric, LikelihoodMetric]
MEASURED: tuple[str, ...] = get_args(AnyMetric)
"""What is computed here from images, or from images and their prompts."""
REPORTED = (*MEASURED, "sfid", "time")
"""What papers report. The last two are not measured here."""
LARGER_IS_BETTER = frozenset({"is", "precision", "recall", *PROMPT_METRICS})
"""Metrics whose best number is the largest; of all others it is the smallest."""
_DECIMALS = {"geneval": 3, "geneval2": 3, "dpg": 2, "pickscore": 2, "hps": 2}
DECIMALS = {metric: _DECIMALS.get(split_metric(metric)[0], 4) for metric in PROMPT_METRICS}
DECIMALS |= {"precision": 3, "recall": 3}
"""How papers print shares, cosines and rewards. Two decimals, as elsewhere, say too little of them, 0.1 is a
large difference, and there is no logarithm, as they may be zero."""
Kind = Literal["table", "curve", "ranking", "price", "sweep", "training", "grid", "samples", "scatter"]


class Row(Strict):
    """One row of a table, or one line of a figure.

    Without ``method`` the row is `reported only`. ``steps`` counts sampler steps; guidance during
    sampling doubles the network evaluations, which the metrics then say.
    """

    id: Name
    label: str
    group: str = ""
    method: Annotated[str | None, Ref("methods")] = None
    variant: Name = "base"
    set: Variant | None = Field(default=None, description="what the variant changes")
    sampler: Annotated[str | dict[Steps | Literal["default"], str] | None, Ref("samplers")] = Field(
        default=None, description="instead of the method's samplers: one name, or one for each NFE"
    )
    steps: NumbersOfSteps | None = Field(default=None, description="instead of the table's")
    nfe_label: list[str] = Field(default=[], description="as printed, where it is not the number")
    reported: dict[str, Numbers] = Field(default={}, description="metric -> one number for each NFE")
    params: str = Field(default="", description="number of parameters, as printed")
    by_name: bool = Field(
        default=False,
        description="reported only, unless the configuration's `rows` names it: a training that is dear, and "
        "that the table's paper did not do itself",
    )
    note: str = ""


class Tolerance(Strict):
    """Agreement: |ours - reported| <= max(absolute, relative * reported).

    A table of a metric in DECIMALS that says nothing has ``absolute`` 0.01.
    """

    absolute: float = Field(default=0.1, ge=0)
    relative: float = Field(default=0.05, ge=0)


class Bounds(Strict):
    """What real scenes score, with their own captions and with others: bounds of the scores of samples."""

    protocol: Annotated[str, Ref("protocols")] = Field(description="of prompts of scenes")
    tokenizer: Annotated[str, Ref("tokenizers")] = Field(description="that real scenes go through")
    scenes_of_each: Count = Field(default=8, le=1000, description="scenes of each prompt")
    real: float = Field(default=0.98, description="the metric of real scenes; a lower one is a warning")
    others: float = Field(
        default=0.05, description="the metric of real scenes with others' captions; a higher one is a warning"
    )


class Table(Strict):
    kind: Kind = Field(
        description="table; curve: metric against NFE; ranking: rows by metric; price: metric against "
        "training cost; sweep: metric against a parameter; training: a logged "
        "column against steps; grid: samples by class; samples: by class or prompt and number of steps, "
        "the same noise in a column; scatter: samples that are points of the plane"
    )
    title: str
    paper: str = Field(default="", description="that has it; empty for a table of one's own")
    caption: str = ""
    metric: str = Field(default="fid", description="of a protocol; kind training: column of train.jsonl")
    metrics: list[AnyMetric] = Field(
        default=[],
        description="table, sweep: other metrics, in columns of ours, from the first protocol that has them",
    )
    parameter: str | None = Field(
        default=None,
        description="sweep: of the rows' losses, e.g. loss.flow_matching_fraction; rows without it are "
        "horizontal lines",
    )
    axis: str = Field(default="", description="sweep: what a reader calls the parameter")
    seeds: Seeds | None = Field(default=None, description="instead of the configuration's")
    unit: str | None = Field(
        default=None,
        description="id of the row whose training step is the unit of cost: the rows' counted operations "
        "relative to it are a column",
    )
    by_name: bool = Field(
        default=False, description="made when asked for by its name only, not among `targets: all`"
    )
    ranked: bool = Field(default=False, description="order the rows by what is measured, best first")
    steps: NumbersOfSteps | None = None
    tolerance: Tolerance = Field(default=Tolerance(), description="0.01 for scores between 0 and 1")
    columns: int = Field(default=10, gt=0, le=1000, description="grid: images of each class")
    classes: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1), Distinct] | None = Field(
        default=None, description="grid, samples: which classes, or numbers of prompts; default the first ten"
    )
    real: bool = Field(
        default=False,
        exclude_if=lambda value: not value,
        description="samples: above them the first real image of each class or caption, of the data set that "
        "rows are trained on",
    )
    rows: list[Row] = []
    rows_of: str | None = Field(default=None, description="the rows of another table instead, by its stem")
    bounds: Bounds | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="kind: table: the rows are real scenes, not methods",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Table:
        ids = [row.id for row in self.rows]
        if not ids and self.rows_of is None and self.bounds is None:
            raise ValueError("no rows: give rows, rows_of or bounds")
        if self.bounds and (ids or self.rows_of or self.kind != "table" or self.ranked or self.unit):
            raise ValueError(
                "bounds make the rows of a table; leave out rows, rows_of, ranked, unit, other kinds"
            )
        if self.kind == "price" and self.unit is None:
            raise ValueError("kind: price needs unit, the row that costs are relative to")
        if ids and self.unit is not None and self.unit not in ids:
            raise ValueError(f"unit: no row has the id {self.unit!r}")
        if self.metrics and self.kind not in ("table", "sweep"):
            raise ValueError(f"metrics are columns of kind: table, sweep, not of {self.kind}")
        if len({self.metric, *self.metrics}) != 1 + len(self.metrics):
            raise ValueError(f"metrics {self.metrics} name one twice, or the table's own metric")
        if self.real and self.kind != "samples":
            raise ValueError(f"real images stand above kind: samples, not {self.kind}")
        if (self.kind == "sweep") != (self.parameter is not None):
            raise ValueError("parameter belongs to, and is needed by, kind: sweep")
        if len(ids) != len(set(ids)):
            raise ValueError(f"row ids stand twice: {sorted({i for i in ids if ids.count(i) > 1})}")
        for row in self.rows:
            steps, where = row.steps or self.steps, f"rows.{row.id}"
            if steps is None and self.kind != "training":
                raise ValueError(f"{where}.steps: is missing, as is steps of the whole table; give one")
            if self.kind in ("sweep", "scatter") and len(steps or []) != 1:
                raise ValueError(
                    f"{where}.steps: kind {self.kind} shows one number of steps, not {steps}; keep one"
                )
            for metric, values in row.reported.items():
                if metric not in REPORTED:
                    raise ValueError(f"{where}.reported.{metric}: unknown metric{nearest(metric, REPORTED)}")
                if steps is not None and len(values) != len(steps):
                    raise ValueError(
                        f"{where}.reported.{metric}: {len(values)} values for {len(steps)} NFE {steps}; "
                        f"give one for each, null where there is none"
                    )
            if row.nfe_label and steps is not None and len(row.nfe_label) != len(steps):
                raise ValueError(
                    f"{where}.nfe_label: {len(row.nfe_label)} labels for {len(steps)} NFE {steps}; "
                    f"give one for each"
                )
        return self


class CellName(Strict):
    """A cell by name, as the claims refer to it."""

    method: Annotated[str, Ref("methods")]
    variant: Name = "base"
    sampler: Annotated[str, Ref("samplers")]
    steps: Steps


class Claim(Strict):
    """``left`` relation ``factor`` x every one of ``right``, for each seed."""

    id: Name
    target: Name = Field(
        default="claims", description="stem of the file with its result; `claims` are those of the report"
    )
    statement: str
    source: str
    left: CellName
    relation: Literal["<", "<=", ">", ">="]
    right: list[CellName] = Field(min_length=1)
    factor: float = Field(default=1.0, gt=0)
    metric: AnyMetric = "fid"
    seeds: Literal["all", "first"] | Seeds = Field(
        default="all",
        description="first: only the tables' seeds, for ablations too dear to repeat; or seeds of its own",
    )
    scales: list[Scale] = Field(
        default=[], description="of the recipes whose results it is about; empty: every scale"
    )
    miniature: Literal["holds", "fails", "varies"] = Field(
        default="holds", description="what the demo is known to show; the paper's claim stays as it is"
    )
    note: str = ""
