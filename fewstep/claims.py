"""Check the paper's claims, inequalities between cells, on measured numbers, seed by seed."""

from __future__ import annotations

from collections.abc import Sequence
from operator import ge, gt, le, lt
from statistics import mean, stdev

from .common.cli import metrics_parser, run
from .common.files import write_text
from .config import read_spec
from .config.specs import CellKey, ClaimsSpec
from .config.tables import CellName, Claim
from .results import Line, Metrics, load_metrics, number, spread, to_csv, value_of

_RELATIONS = {"<": lt, "<=": le, ">": gt, ">=": ge}
EXPECTED = {"holds": "yes", "fails": "no"}


def check(spec: ClaimsSpec, metrics: Metrics) -> list[Line]:
    """One line per claim.

    A seed counts when all cells of the claim are there for it. ``worst_ratio`` is left / right where the
    claim is nearest to failing, to be compared with ``factor``. ``holds``: `yes` when every seed holds, `no`
    when one that is there fails, `missing` when none fails but a seed lacks a cell.
    """
    return [_check(spec, claim, metrics) for claim in spec.claims]


def _check(spec: ClaimsSpec, claim: Claim, metrics: Metrics) -> Line:
    relation = _RELATIONS[claim.relation]
    left: list[float] = []
    right: dict[str, list[float]] = {_name(cell): [] for cell in claim.right}
    ratios: list[float] = []
    held = 0
    # With every cell trained once (say, the teacher against itself) there is one seed to compare.
    cells = [claim.left, *claim.right]
    own = {"first": spec.first_seeds, "all": spec.seeds}
    asked = claim.seeds if isinstance(claim.seeds, list) else own[claim.seeds]
    seeds = [0] if all(cell.method in spec.once for cell in cells) else asked
    for seed in seeds:
        keys = [_key(spec, claim, cell, seed) for cell in cells]
        if any(key not in metrics for key in keys):
            continue
        ours, *others = (value_of(metrics[key], claim.metric) for key in keys)
        left.append(ours)
        for values, other in zip(right.values(), others, strict=True):
            values.append(other)
        held += all(relation(ours, claim.factor * other) for other in others)
        ratios += [ours / other if other else float("inf") for other in others]
    worst = (max if claim.relation in ("<", "<=") else min)(ratios) if ratios else None
    complete = len(left)
    verdict = "no" if held < complete else "yes" if complete == len(seeds) else "missing"
    small = spec.scale != "paper" or claim.id in spec.toys
    expected = claim.miniature if small else "holds"
    return {
        "id": claim.id,
        "statement": claim.statement,
        "source": claim.source,
        "metric": claim.metric,
        "left": _name(claim.left),
        "left_mean": number(mean(left)) if left else "",
        "left_std": _std(left),
        "relation": claim.relation,
        "factor": number(claim.factor),
        "right": "; ".join(right),
        "right_mean": "; ".join(number(mean(values)) if values else "" for values in right.values()),
        "right_std": "; ".join(map(_std, right.values())),
        "worst_ratio": number(worst),
        "seeds": f"{held}/{len(seeds)}",
        "holds": verdict,
        "expected": expected,
        "scale": "toy" if claim.id in spec.toys else spec.scale,
        "note": claim.note,
    }


def _key(spec: ClaimsSpec, claim: Claim, cell: CellName, seed: int) -> CellKey:
    return CellKey(
        method=cell.method,
        variant=cell.variant,
        seed=0 if cell.method in spec.once else seed,
        sampler=cell.sampler,
        steps=cell.steps,
        protocol=spec.protocols[claim.id],
    )


def _std(values: Sequence[float]) -> str:
    """Empty for a cell that is one and the same for all seeds."""
    return number(stdev(values)) if len(set(values)) > 1 else ""


def _name(cell: CellName) -> str:
    variant = "" if cell.variant == "base" else f"/{cell.variant}"
    return f"{cell.method}{variant} {cell.sampler} {cell.steps}"


def surprising(line: Line) -> bool:
    """Whether the verdict is not the one that is known for this scale (`varies` is never surprising)."""
    return line["holds"] != "missing" and EXPECTED.get(line["expected"], line["holds"]) != line["holds"]


def markdown(spec: ClaimsSpec, lines: Sequence[Line]) -> str:
    """The claims for a reader, holding or not."""
    count = {verdict: sum(line["holds"] == verdict for line in lines) for verdict in ("yes", "no", "missing")}
    parts = ["# Claims of the paper"]
    if spec.scale != "paper":
        parts.append(
            "**Miniature: a claim that fails here is neither proved nor refuted at the paper's scale; "
            "“known” says what earlier miniature runs showed.**"
        )
    parts.append(f"{count['yes']} hold, {count['no']} do not; numbers are missing for {count['missing']}.")
    head = ["Claim", "Source", "Left", "", "Right", "Worst ratio", "Seeds", "Holds"]
    rows = [head, ["---"] * 5 + ["---:"] * 2 + ["---"]]
    for line in lines:
        verdict = f"**{line['holds']}**" + (f" (known: {line['expected']})" if surprising(line) else "")
        rows.append(
            [
                line["statement"] + (f" *{line['note']}*" if line["note"] else ""),
                line["source"],
                f"{line['left']}: {spread(line['left_mean'], line['left_std']) or '–'}",
                bound(line),
                "; ".join(right_values(line)),
                f"{float(line['worst_ratio']):.3f}" if line["worst_ratio"] else "–",
                line["seeds"],
                verdict,
            ]
        )
    parts.append(
        "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
    )
    protocols = ", ".join(dict.fromkeys(spec.protocols.values()))
    parts.append(f"Protocol: {protocols}. Scale: {spec.scale}. Seeds: {', '.join(map(str, spec.seeds))}.")
    return "\n\n".join(parts) + "\n"


def bound(line: Line) -> str:
    """The relation with its factor, as `≥ 3 ×`."""
    sign = {"<=": "≤", ">=": "≥"}.get(line["relation"], line["relation"])
    return sign if line["factor"] == "1" else f"{sign} {line['factor']} ×"


def right_values(line: Line) -> list[str]:
    """`name: mean ± std` of every right side."""
    columns = (line[name].split("; ") for name in ("right", "right_mean", "right_std"))
    return [f"{name}: {spread(average, std) or '–'}" for name, average, std in zip(*columns, strict=True)]


def main(argv: list[str] | None = None) -> None:
    """Read spec and metrics, write CSV (``--out``) and Markdown."""
    options = metrics_parser(__doc__).parse_args(argv)
    spec = read_spec(ClaimsSpec, options.spec)
    lines = check(spec, load_metrics(options.metrics))
    if options.markdown:
        write_text(options.markdown, markdown(spec, lines))
    write_text(options.out, to_csv(lines))


if __name__ == "__main__":
    run(main)
