"""Damaged files of every kind, given to the stages that read them.

Each is refused in one line that names the file, or has no effect on the result.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from child_processes import child, signal_at_step
from tiny_pipeline import Call, TinyPipeline, replaced

COUNT = int(os.environ.get("FEWSTEP_FAULTS", "12"))
"""Faults of each kind of file; for a campaign FEWSTEP_FAULTS=1000."""


def flip(content: bytearray, draws: random.Random) -> None:
    content[draws.randrange(len(content))] ^= 1 << draws.randrange(8)


def flip_early(content: bytearray, draws: random.Random) -> None:
    content[draws.randrange(min(len(content), 2048))] ^= 1 << draws.randrange(8)


def flip_late(content: bytearray, draws: random.Random) -> None:
    content[-1 - draws.randrange(min(len(content), 1024))] ^= 1 << draws.randrange(8)


def truncate(content: bytearray, draws: random.Random) -> None:
    del content[draws.randrange(len(content)) :]


def zero_half(content: bytearray, draws: random.Random) -> None:
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)


def zero_part(content: bytearray, draws: random.Random) -> None:
    start = draws.randrange(len(content))
    part = content[start : start + 64]
    content[start : start + 64] = bytes(len(part))


def text_digit(content: bytearray, draws: random.Random) -> None:
    """Another digit in place of one: JSON stays JSON."""
    digits = [place for place, byte in enumerate(content) if 48 <= byte <= 57]
    place = draws.choice(digits)
    content[place] = draws.choice([byte for byte in range(48, 58) if byte != content[place]])


FAULTS = (flip, flip_early, flip_late, truncate, zero_half, zero_part, text_digit)


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
    "asset": lambda p, f: in_folder(pixels(p, f), "--source", f, "digits/digits.npz"),
    "curve": curve,
    "tensors of a saved state": lambda p, f: state(p, f, "step-*/*.safetensors"),
    "record of a saved state": lambda p, f: state(p, f, "step-*/state.json"),
    "curve of a saved state": lambda p, f: state(p, f, "train.jsonl"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_named_or_without_effect(pipeline: TinyPipeline, tmp_path, capsys, kind):
    case = KINDS[kind](pipeline, tmp_path)
    case.before()
    case.call()
    expected = case.result()
    whole = case.path.read_bytes() if case.path.exists() else b""
    if not whole:
        case.before()
        whole = case.path.read_bytes()
    outcomes: Counter[str] = Counter()
    draws = random.Random(kind)
    for number in range(COUNT):
        content = bytearray(whole)
        fault = FAULTS[number % len(FAULTS)]
        fault(content, draws)
        for path in case.call.outputs:
            path.unlink(missing_ok=True)
        case.before()
        case.path.write_bytes(content)
        try:
            case.call()
        except (ValueError, OSError) as error:
            text = str(error)
            assert case.path.name in text and "\n" not in text, f"{kind}: {fault.__name__} {number}: {text!r}"
            outcomes["refused"] += 1
        else:
            assert case.result() == expected, f"{kind}: {fault.__name__} {number}: another result"
            told = case.path.name in capsys.readouterr().out
            outcomes["told, and made again" if told else "without effect"] += 1
    with capsys.disabled():
        print(f"\n{kind}: {COUNT} faults: {dict(outcomes)}", end="")
