"""Every kind of file that stages read, and a call of a stage on a copy of it."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from child_processes import child, signal_at_step
from tiny_pipeline import Call, TinyPipeline, replaced


@dataclass
class Case:
    """A stage, and the copy of one of its inputs that is damaged."""

    call: Call
    path: Path
    before: Callable[[], None] = lambda: None
    """Puts everything but the damaged file in its place."""

    def result(self) -> list[bytes]:
        return [_without_hash(path) for path in self.call.outputs]


def _without_hash(path: Path) -> bytes:
    """Content of an output; metrics say by its hash which reference they are of."""
    content = path.read_bytes()
    if path.suffix != ".json" or b"reference_sha256" not in content:
        return content
    return json.dumps(
        {
            key: value
            for key, value in json.loads(content).items()
            if key not in ("reference_sha256", "digest")
        }
    ).encode()


def copied(call: Call, option: str, folder: Path, position: int = 0) -> Case:
    """The call on a copy of one input."""
    words = call.arguments
    source = Path(words[words.index(option) + 1 + position])
    copy = folder / "damaged" / source.name
    copy.parent.mkdir()
    shutil.copy(source, copy)
    return Case(replaced(call, option, str(copy)), copy)


def in_folder(call: Call, option: str, folder: Path, name: str) -> Case:
    """The call on a copy of the folder of its input, in which the file ``name`` is damaged."""
    source = Path(call.arguments[call.arguments.index(option) + 1])
    copy = folder / "damaged"
    shutil.copytree(source.parent, copy)
    return Case(replaced(call, option, str(copy / source.name)), copy / name)


def state(pipeline: TinyPipeline, folder: Path, name: str) -> Case:
    call = pipeline.train("cd", folder)
    assert child(call, folder / "log", signal_at_step, step=3, number=signal.SIGTERM) == 75
    (saved,) = folder.glob("state-*")
    shutil.copytree(saved, folder / "kept")

    def before() -> None:
        shutil.rmtree(saved, ignore_errors=True)
        shutil.copytree(folder / "kept", saved)

    return Case(call, next(saved.glob(name)), before)


def known(pipeline: TinyPipeline, folder: Path) -> Case:
    call = pipeline.fetch("digits", folder)
    call()
    return Case(call, folder / "digits/.known.json")


def curve(pipeline: TinyPipeline, folder: Path) -> Case:
    spec = json.loads(pipeline.plan.spec_text("table", "figure4"))
    spec.pop("digest")
    runs = spec["runs"]
    for run in runs.values():
        run["seeds"] = [0]
    (folder / "figure.json").write_text(json.dumps(spec))
    source = pipeline.train("cd").outputs[1]
    (folder / "damaged").mkdir()
    copy = folder / "damaged" / "train.jsonl"
    shutil.copy(source, copy)
    out, numbers = folder / "figure.png", folder / "figure.csv"
    words = ["--spec", str(folder / "figure.json"), "--curves", str(copy), *[str(source)] * (len(runs) - 1)]
    return Case(Call("figure", [*words, "--csv", str(numbers), "--out", str(out)], [numbers]), copy)


def table(pipeline: TinyPipeline, folder: Path) -> Call:
    spec = pipeline.spec("table", "table1", folder)
    metrics = str(pipeline.score("cd", "cm-2").out)
    return Call(
        "table",
        ["--spec", str(spec), "--metrics", metrics, "--out", str(folder / "t.csv")],
        [folder / "t.csv"],
    )


def claims(pipeline: TinyPipeline, folder: Path) -> Call:
    spec, out = pipeline.spec("claims", "claims", folder), folder / "claims.csv"
    metrics = str(pipeline.score("cd", "cm-2").out)
    return Call("claims", ["--spec", str(spec), "--metrics", metrics, "--out", str(out)], [out])


def drawn(pipeline: TinyPipeline, folder: Path) -> Call:
    spec, out = pipeline.spec("table", "figure1", folder), folder / "figure1.png"
    metrics = str(pipeline.score("cd", "cm-2").out)
    words = ["--spec", str(spec), "--metrics", metrics, "--out", str(out), "--csv", str(folder / "f.csv")]
    return Call("figure", words, [out])


def shown(part: Callable[[TinyPipeline, Path], Call], name: str) -> Callable[[TinyPipeline, Path], Case]:
    """The report with one part, which is damaged."""

    def case(pipeline: TinyPipeline, folder: Path) -> Case:
        made = part(pipeline, folder)()
        path, out = folder / name, folder / "report.html"
        made.rename(path)
        spec = pipeline.spec("report", "report", folder)
        words = ["--spec", str(spec), "--parts", str(path), "--out", str(out)]
        return Case(Call("report", words, [out]), path)

    return case


def pixels(pipeline: TinyPipeline, folder: Path) -> Call:
    return pipeline.encode("digits-pixels", folder, shard=0)


KINDS: dict[str, Callable[[TinyPipeline, Path], Case]] = {
    "spec of sampling": lambda p, f: copied(p.sample("cd", "cm-2", f), "--spec", f),
    "spec of scoring": lambda p, f: copied(p.score("cd", "cm-2", f), "--spec", f),
    "spec of a table": lambda p, f: copied(table(p, f), "--spec", f),
    "model": lambda p, f: copied(p.sample("cd", "cm-2", f), "--model", f),
    "decoder": lambda p, f: copied(p.sample("cd", "cm-2", f), "--tokenizer", f),
    "manifest": lambda p, f: in_folder(p.reference(f), "--latents", f, "manifest.json"),
    "index": lambda p, f: in_folder(p.reference(f), "--latents", f, "manifest.index.npz"),
    "shard": lambda p, f: in_folder(p.reference(f), "--latents", f, "shard-00000.tar"),
    "manifest for its normalisation": lambda p, f: copied(p.sample("cd", "cm-2", f), "--latents", f),
    "images": lambda p, f: copied(p.score("cd", "cm-2", f), "--images", f),
    "extractor": lambda p, f: copied(p.score("cd", "cm-2", f), "--extractor", f),
    "reference": lambda p, f: copied(p.score("cd", "cm-2", f), "--reference", f),
    "metrics": lambda p, f: copied(table(p, f), "--metrics", f),
    "record": lambda p, f: in_folder(pixels(p, f), "--source", f, "digits.json"),
    "what is known of an asset": known,
    "asset": lambda p, f: in_folder(pixels(p, f), "--source", f, "digits/digits.npz"),
    "table of the report": shown(table, "table1.csv"),
    "claims of the report": shown(claims, "claims.csv"),
    "picture of the report": shown(drawn, "figure1.png"),
    "curve": curve,
    "tensors of a saved state": lambda p, f: state(p, f, "step-*/*.safetensors"),
    "record of a saved state": lambda p, f: state(p, f, "step-*/state.json"),
    "curve of a saved state": lambda p, f: state(p, f, "train.jsonl"),
}
