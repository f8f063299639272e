"""Calls of every stage with the demo's own specs, made small enough for tests."""

from __future__ import annotations

import importlib
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from configs import make_plan, raw_config

from fewstep.config.base import merge

TRAIN = {"steps": 8, "global_batch_size": 32, "optimizer": {"warmup": 2}}
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
NETWORK = {"depth": 1, "width": 16, "heads": 2}
TINY: dict[str, Any] = {
    "settings": {
        "latents": {"digits-latents": {"shards": 1}},
        "backbones": {
            "lightningdit-digits-teacher": NETWORK,
            "lightningdit-digits-scalar": NETWORK,
            "lightningdit-digits": NETWORK,
            "lightningdit-digits-dual": NETWORK,
            "lightningdit-digits-pixels": NETWORK,
            "lightningdit-digits-pyramid": NETWORK,
            "get-digits": NETWORK,
            "digits-autoencoder": {"width": 8},
            "digits-classifier": {"features": 16},
        },
        "protocols": {"digits": {"images": 40, "kid": {"subsets": 2, "size": 20}}},
        "recipes": {
            "digits": {"train": TRAIN, "guidance": {"calibration": 64}},
            "digits-pixels": {"train": TRAIN},
            "digits-autoencoder": {"train": TRAIN},
            "digits-classifier": {"train": TRAIN},
        },
    },
    "methods": {
        "teacher": {"train": {"steps": 8, "optimizer": {"warmup": 2}}},
        "twinflow": {"train": {"steps": 8}},
        # Where there is hardly a gradient but rounding, Adam would enlarge it to steps of full length.
        "get": {"train": {**TRAIN, "optimizer": {"warmup": 2, "eps": 1.0e-6}}},
        "afm": {
            "loss": {"players": {"discriminator": {"eps": 1.0e-5}}},
            "train": {**TRAIN, "optimizer": {"warmup": 2, "eps": 1.0e-5}},
        },
        "scm": {"loss": {"warmup": 4, "learned_weight": True}},
        "ayf": {"loss": {"warmup": 4}},
    },
}


@dataclass(frozen=True)
class Call:
    """One call of a stage, in a shell's words."""

    stage: str
    arguments: list[str]
    outputs: list[Path]

    @property
    def out(self) -> Path:
        return self.outputs[0]

    def more(self, *words: str) -> Call:
        return Call(self.stage, [*self.arguments, *words], self.outputs)

    def __call__(self) -> Path:
        """Run it in this process; what a training leaves behind in the process is put back."""
        with alone():
            importlib.import_module(f"fewstep.{self.stage}").main(self.arguments)
        return self.out


def replaced(call: Call, option: str, *values: str) -> Call:
    """The call with other values of one option."""
    words = call.arguments
    start = words.index(option) + 1
    stop = next((i for i in range(start, len(words)) if words[i].startswith("--")), len(words))
    return Call(call.stage, [*words[:start], *values, *words[stop:]], call.outputs)


def refused(call: Call, *words: str) -> None:
    """The call raises a ValueError that says these words, and writes nothing."""
    with pytest.raises(ValueError) as error:
        call()
    for word in words:
        assert word in str(error.value), str(error.value)
    assert not any(path.exists() for path in call.outputs)


@contextmanager
def alone() -> Iterator[None]:
    """Accelerate keeps its state in the process, and train takes over some signals."""
    from accelerate.state import AcceleratorState

    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        yield
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        for number, handler in handlers.items():
            signal.signal(number, handler)


class TinyPipeline:
    """Paths of the files that exist once, and calls that write into any folder."""

    def __init__(self, folder: Path, overrides: dict[str, Any] | None = None) -> None:
        self.folder = folder
        names = ("results", "logs", "assets", "latents")
        changes = {
            "pathvars": {name: str(folder / name) for name in names},
            "overrides": merge(TINY, overrides or {}),
        }
        self.plan = make_plan(merge(raw_config("demo"), changes))

    def varied(self, overrides: dict[str, Any]) -> TinyPipeline:
        """The same files under a changed configuration."""
        return TinyPipeline(self.folder, overrides)

    def spec(self, stage: str, name: str, folder: Path) -> Path:
        path = folder / f"{stage}-{name.replace('/', '-')}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.plan.spec_text(stage, name), encoding="utf-8")
        return path

    def fetch(self, asset: str, folder: Path | None = None) -> Call:
        out = Path(self.plan.file("record", asset=asset)) if folder is None else folder / f"{asset}.json"
        return self._call("fetch", asset, out)

    def encode(self, latents: str, folder: Path | None = None, shard: int | None = None) -> Call:
        """One shard, or with ``shard`` None the manifest of all of them."""
        manifest = Path(self.plan.file("manifest", latents=latents))
        out = manifest if folder is None else folder / manifest.name
        words = self._inputs("encode", latents=latents)
        if shard is not None:
            out = out.with_name(f"shard-{shard:05d}.tar")
            return self._call("encode", latents, out, *words, "--shard", str(shard))
        shards = self.plan.inputs("manifest", {"latents": latents})["shards"]
        merged = [str(out.with_name(Path(path).name)) for path in shards]
        return self._call("encode", latents, out, *words, "--merge", *merged)

    def train(self, method: str, folder: Path | None = None, seed: int = 0) -> Call:
        run = f"{method}/base"
        out = Path(self.plan.model(method)) if folder is None else folder / "model.safetensors"
        curve = out.with_name("train.jsonl")
        words = self._inputs("train", run=run, seed=str(seed))
        call = self._call("train", f"{run}/{seed}", out, *words, "--curve", str(curve))
        return Call("train", call.arguments, [out, curve])

    def sample(self, method: str, cell: str, folder: Path | None = None, protocol: str = "digits") -> Call:
        key = self._cell(method, cell, images=self.plan.image_set(protocol))
        default = Path(self.plan.file("images", **key))
        out = default if folder is None else folder / default.name
        return self._call(
            "sample", f"{method}/base/{cell}/{key['images']}", out, *self._inputs("sample", **key)
        )

    def reference(self, folder: Path | None = None, protocol: str = "digits") -> Call:
        default = Path(self.plan.file("statistics", protocol=protocol))
        out = default if folder is None else folder / default.name
        return self._call("reference", protocol, out, *self._inputs("reference", protocol=protocol))

    def score(self, method: str, cell: str, folder: Path | None = None, protocol: str = "digits") -> Call:
        key = self._cell(method, cell, protocol=protocol)
        default = Path(self.plan.file("metrics", **key))
        out = default if folder is None else folder / default.name
        words = self._inputs("score", **key)
        return self._call("score", f"{method}/base/0/{cell}/{protocol}", out, *words)

    def _cell(self, method: str, cell: str, **more: str) -> dict[str, str]:
        sampler, _, steps = cell.rpartition("-")
        return {"run": f"{method}/base", "seed": "0", "sampler": sampler, "steps": steps, **more}

    def _inputs(self, stage: str, **key: str) -> list[str]:
        """The options of a stage that name its input files, as the rules write them."""
        found = self.plan.inputs(stage, key)
        found.pop("spec")
        for path in map(Path, found.get("sampling", [])):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.plan.spec_text("sampling", key["run"]), encoding="utf-8")
        return [word for option, files in found.items() for word in (f"--{option}", *files)]

    def _call(self, stage: str, name: str, out: Path, *words: str) -> Call:
        spec = self.spec(
            stage, name, self.folder / "specs" if out.is_relative_to(self.folder) else out.parent
        )
        return Call(stage, ["--spec", str(spec), *words, "--out", str(out)], [out])

    def build(self) -> None:
        """Everything that the tests start from."""
        self.fetch("digits")()
        self.encode("digits-pixels", shard=0)()
        self.encode("digits-pixels")()
        self.train("digits-classifier")()
        self.train("digits-autoencoder")()
        self.encode("digits-latents", shard=0)()
        self.encode("digits-latents")()
        self.train("teacher")()
        self.train("cd")()
        self.sample("cd", "cm-2")()
        self.reference()()
        self.score("cd", "cm-2")()
