"""Where every hyper-parameter of a training comes from: paper, released code, or a choice made here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any

from ..config.backbones import Sd3
from ..config.base import Strict, require_known
from ..config.settings import Mark
from ..config.specs import HyperParameter
from .runs import BASE, Run

BOOKKEEPING = {"loss.name", "train.log_every", "train.max_skipped_updates", "reembed.of"}
"""Keys that no weight depends on."""


def hyperparameter_sources(run: Run) -> list[HyperParameter]:
    """The hyper-parameters whose source is known, in the order of the configuration.

    The marks of recipe and entry come first, then those that the method's folder gives to the defaults of its
    loss. The latter also hold for what a table's variant changes.
    """
    if run.only_pipeline:
        return []
    marks = {**run.recipe.provenance, **run.entry.provenance}
    defaults = dict(_leaves("loss", type(run.loss).model_validate({}).model_dump()))
    found = []
    for key, value in values(run):
        mark = mark_of(key, marks)
        if mark is None and (run.variant != BASE or defaults.get(key) == value):
            mark = mark_of(key, run.loss.provenance)
        if mark is not None:
            found.append(HyperParameter(key=key, value=_text(value), mark=mark))
    return found


def hyperparameters_by_scale(run: Run, published: Run | None) -> dict[str, list[HyperParameter]]:
    """Those of the same method at the paper's scale with their sources, and all of this run's, if smaller.

    A value of a smaller run has a mark where it is the paper's own, else it was chosen for that scale.
    """
    found: dict[str, list[HyperParameter]] = {}
    if published is not None and not (published.adopted or published.pipeline):
        found[published.recipe.scale] = hyperparameter_sources(published)
    scale = run.recipe.scale
    if scale not in found and not (run.adopted or run.pipeline):
        marked = {(entry.key, entry.value): entry.mark for entries in found.values() for entry in entries}
        texts = [(key, _text(value)) for key, value in values(run)]
        found[scale] = [
            HyperParameter(key=key, value=text, mark=marked.get((key, text))) for key, text in texts
        ]
    return found


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def parts(run: Run) -> dict[str, Strict | None]:
    """What an entry's marks may be of."""
    return {
        "loss": run.loss,
        "train": run.train,
        "guidance": run.guidance,
        "lora": run.backbone.lora if isinstance(run.backbone, Sd3) else None,
        "reembed": run.entry.reembed,
    }


def values(run: Run) -> Iterator[tuple[str, Any]]:
    """Key and value of everything that is set in a run's training, or in the fit that takes its place."""
    trained = {"loss", "train", "lora", *(["guidance"] if run.has_teacher else [])}
    used = {"reembed"} if run.reembedded else trained
    for part, model in parts(run).items():
        if part not in used or run.only_pipeline:
            continue
        for key, value in _leaves(part, model.model_dump() if model else {}):
            if value is not None and key not in BOOKKEEPING:
                yield key, value


def check(marks: Mapping[str, Mark], parts: Mapping[str, Strict | None], file: str, key: str) -> None:
    """Refuse marks of keys that ``parts`` do not have.

    Raises:
        ConfigError: naming the key, and the nearest that exists.
    """
    leaves = [name for part, model in parts.items() if model for name, _ in _leaves(part, model.model_dump())]
    keys = {above for name in leaves for above in _above(name)}
    for name in marks:
        require_known(name, keys, file, key)


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}", inner)
    else:
        yield key, value


def _above(key: str) -> Iterator[str]:
    """A key and all above it, from the highest down."""
    return accumulate(key.split("."), "{}.{}".format)


def mark_of(key: str, marks: Mapping[str, Mark]) -> Mark | None:
    """The mark of the longest key that covers this one."""
    covering = [above for above in _above(key) if above in marks]
    return marks[covering[-1]] if covering else None
