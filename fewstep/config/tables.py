"""Tables, figures and claims: which cells are asked for, and what the paper reports for them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .base import Name, Strict
from .methods import Variant
from .references import Ref

Numbers = list[float | None]
Kind = Literal["table", "curve", "ranking", "price", "sweep", "training", "grid", "scatter"]


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
    sampler: Annotated[str | dict[int | Literal["default"], str] | None, Ref("samplers")] = Field(
        default=None, description="instead of the method's samplers: one name, or one for each NFE"
    )
    steps: list[int] | None = Field(default=None, description="instead of the table's")
    nfe_label: list[str] = Field(default=[], description="as printed, where it is not the number")
    reported: dict[str, Numbers] = Field(default={}, description="metric -> one number for each NFE")
    params: str = Field(default="", description="number of parameters, as printed")
    note: str = ""


class Tolerance(Strict):
    """Agreement: |ours - reported| <= max(absolute, relative * reported)."""

    absolute: float = Field(default=0.1, ge=0)
    relative: float = Field(default=0.05, ge=0)


class Table(Strict):
    kind: Kind = Field(
        description="table; curve: metric against NFE; ranking: rows by metric; price: metric against "
        "training cost; sweep: metric against a parameter; training: a logged "
        "column against steps; grid: samples; scatter: samples that are points of the plane"
    )
    title: str
    paper: str
    caption: str = ""
    metric: str = Field(default="fid", description="column of the metrics, or of train.jsonl")
    metrics: list[str] = Field(
        default=[],
        description="table, sweep: other metrics, in columns of ours, from the first protocol that has them",
    )
    parameter: str | None = Field(
        default=None,
        description="sweep: of the rows' losses, e.g. loss.flow_matching_fraction; rows without it are "
        "horizontal lines",
    )
    axis: str = Field(default="", description="sweep: what a reader calls the parameter")
    seeds: list[int] | None = Field(default=None, min_length=1, description="instead of the configuration's")
    unit: str | None = Field(
        default=None,
        description="id of the row whose training step is the unit of cost: the rows' counted operations "
        "relative to it are a column",
    )
    by_name: bool = Field(
        default=False, description="made when asked for by its name only, not among `targets: all`"
    )
    ranked: bool = Field(default=False, description="order the rows by what is measured, best first")
    steps: list[int] | None = None
    tolerance: Tolerance = Tolerance()
    columns: int = Field(default=10, gt=0, description="grid: images of each class")
    classes: list[int] | None = Field(default=None, description="grid: which classes; default the first ten")
    rows: list[Row] = []
    rows_of: str | None = Field(default=None, description="the rows of another table instead, by its stem")

    @model_validator(mode="after")
    def _consistent(self) -> Table:
        ids = [row.id for row in self.rows]
        if not ids and self.rows_of is None:
            raise ValueError("no rows: give rows, or rows_of")
        if self.kind == "price" and self.unit is None:
            raise ValueError("kind: price needs unit, the row that costs are relative to")
        if ids and self.unit is not None and self.unit not in ids:
            raise ValueError(f"unit: no row has the id {self.unit!r}")
        if self.metrics and self.kind not in ("table", "sweep"):
            raise ValueError(f"metrics are columns of kind: table, sweep, not of {self.kind}")
        if len({self.metric, *self.metrics}) != 1 + len(self.metrics):
            raise ValueError(f"metrics {self.metrics} name one twice, or the table's own metric")
        if (self.kind == "sweep") != (self.parameter is not None):
            raise ValueError("parameter belongs to, and is needed by, kind: sweep")
        if len(ids) != len(set(ids)):
            raise ValueError(f"row ids stand twice: {sorted({i for i in ids if ids.count(i) > 1})}")
        for row in self.rows:
            steps = row.steps or self.steps
            if steps is None and self.kind != "training":
                raise ValueError(f"row {row.id}: no steps, neither in the row nor in the table")
            if self.kind in ("sweep", "scatter") and len(steps or []) != 1:
                raise ValueError(f"row {row.id}: kind {self.kind} shows one number of steps, not {steps}")
            for metric, values in row.reported.items():
                if steps is not None and len(values) != len(steps):
                    raise ValueError(
                        f"row {row.id}: {len(values)} reported {metric} values for {len(steps)} NFE {steps}"
                    )
            if row.nfe_label and steps is not None and len(row.nfe_label) != len(steps):
                raise ValueError(f"row {row.id}: nfe_label and steps differ in length")
        return self


class CellName(Strict):
    """A cell by name, as the claims refer to it."""

    method: Annotated[str, Ref("methods")]
    variant: str = "base"
    sampler: Annotated[str, Ref("samplers")]
    steps: int = Field(gt=0)


class Claim(Strict):
    """``left`` relation ``factor`` x every one of ``right``, for each seed."""

    id: Name
    statement: str
    source: str
    left: CellName
    relation: Literal["<", "<=", ">", ">="]
    right: list[CellName] = Field(min_length=1)
    factor: float = Field(default=1.0, gt=0)
    metric: str = "fid"
    seeds: Literal["all", "first"] | list[int] = Field(
        default="all",
        description="first: only the tables' seeds, for ablations too dear to repeat; or seeds of its own",
    )
    miniature: Literal["holds", "fails", "varies"] = Field(
        default="holds", description="what the demo is known to show; the paper's claim stays as it is"
    )
    note: str = ""
