"""A tiny SD3 with all that SD3.5 has, captions for it, and trainings of it on images of digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_pipeline import Call, TinyPipeline
from torch import Tensor, nn

from fewstep.backbones import build, use_text
from fewstep.backbones.model_file import save_model
from fewstep.backbones.reembedding import EMBEDDER
from fewstep.config import dump, read_spec
from fewstep.config.backbones import Lora, Sd3
from fewstep.config.specs import TextCard, TrainSpec
from fewstep.config.text import TextEncoder
from fewstep.data.text_encoders import CaptionEncoder
from fewstep.data.text_encoding import text_content, write_store
from fewstep.data.text_store import Text

TOKENS, CONTEXT, POOLED = 5, 24, 12
CAPTIONS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
CARD = TextCard(
    name="digits",
    captions=len(CAPTIONS),
    encoder=TextEncoder(kind="clip", weights={"method": "clip"}, length=3, t5_length=2, dtype="float32"),
)
ADAPTERS = Lora(rank=4)


def sd3(**changes: Any) -> Sd3:
    """A tiny network of SD3.5's kind: dual attention in its first block, query-key norm, three blocks."""
    values = {
        "kind": "sd3",
        "shape": [1, 8, 8],
        "layers": 3,
        "heads": 2,
        "head_width": 8,
        "dual_attention": 1,
    }
    values |= {"positions": 6, "context": CONTEXT, "pooled": POOLED, "time_scale": 20.0}
    return Sd3(**values | changes)


class Encoder:
    """Stands for a text encoder: normal numbers of a generator that the caption seeds."""

    weights = {"encoder": "0" * 64}
    vocabulary: list[str] = []
    context = [TOKENS, CONTEXT]
    pooled = POOLED

    def __call__(self, caption: str) -> Text:
        draws = torch.Generator().manual_seed(int.from_bytes(b"1" + caption.encode()) % 2**31)
        context = torch.randn(1, TOKENS, CONTEXT, generator=draws)
        return Text(context, torch.randn(1, POOLED, generator=draws))

    def too_long(self, captions: list[str]) -> dict[str, int]:
        return {}


class Store:
    """The same embeddings in memory; it notes what it is asked to load."""

    digest = "0" * 64

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        rows = [Encoder()(caption) for caption in (*CAPTIONS, "")]
        self.text = Text(*(torch.cat(part).to(dtype) for part in zip(*rows)))
        self.loaded: list[list[int]] = []

    def __call__(self, y: Tensor) -> Text:
        return Text(self.text.context[y], self.text.pooled[y])

    def __deepcopy__(self, memo: dict[int, Any]) -> Store:
        return self

    def load(self, y: Tensor) -> None:
        self.loaded.append(y.tolist())


def write_captions(folder: Path, card: TextCard = CARD, encoder: CaptionEncoder | None = None) -> Path:
    """A store of the captions on the disk; the path of its manifest."""
    encoder = encoder or Encoder()
    folder.mkdir(parents=True, exist_ok=True)
    write_store(
        text_content(card, CAPTIONS, encoder, "captions"), CAPTIONS, encoder, folder / "manifest.json"
    )
    return folder / "manifest.json"


def awake(net: nn.Module, frozen: bool = False) -> nn.Module:
    """A network in which no path is switched off by a trained weight, or frozen one, that starts at zero."""
    with torch.no_grad():
        for weight in net.parameters():
            if weight.requires_grad or frozen:
                weight.add_(torch.randn_like(weight), alpha=0.05)
    return net


def network(
    spec: Sd3, dtype: torch.dtype = torch.float32, store: Store | None = None, seed: int = 3
) -> nn.Module:
    """A network, for a seed always the same, with nothing at zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build(spec)
        awake(net, frozen=True)
    use_text(net, store or Store())
    return net.to(dtype)


def calm_time(tensors: dict[str, Tensor]) -> None:
    """Let a state dict embed time as smoothly as a trained one does: fast sinusoids count for little."""
    speed = 1000 * 10_000 ** (-torch.arange(128) / 128)
    with torch.no_grad():
        tensors[f"{EMBEDDER}linear_1.weight"].mul_((1 / (1 + (speed / 8) ** 2)).repeat(2))


def inputs(spec: Sd3, rows: int = 4, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Random (x, t, s, y); the last caption is the empty one."""
    draws = torch.Generator().manual_seed(4)
    x = torch.randn(rows, *spec.shape, generator=draws, dtype=torch.float64).to(dtype)
    t, s = torch.rand(2, rows, generator=draws, dtype=torch.float64).to(dtype)
    return x, t, s, torch.arange(rows) % len(CAPTIONS) - (torch.arange(rows) == rows - 1).long() * rows


class TinyTrainings:
    """A base, captions and latents, and trainings on them."""

    def __init__(self, folder: Path) -> None:
        self.pipeline = TinyPipeline(folder)
        self.pipeline.fetch("digits")()
        self.pipeline.encode("digits-pixels", shard=0)()
        self.latents = self.pipeline.encode("digits-pixels")()
        self.text = write_captions(folder / "text")
        self.base = folder / "base.safetensors"
        self.write_base(self.base)

    def write_base(self, path: Path, **changes: Any) -> Path:
        """A model file of a network below adapters."""
        spec = sd3(target_time=False, **changes)
        card = {"latents": self._demo("digits-autoencoder").latents.model_dump(mode="json")}
        save_model(path, network(spec).state_dict(), spec, card)
        return path

    def _demo(self, method: str) -> TrainSpec:
        path = self.pipeline.spec("train", f"{method}/base/0", self.pipeline.folder / "specs")
        return read_spec(TrainSpec, path)

    def spec(self, method: str = "decm", backbone: Sd3 | None = None, **train: Any) -> TrainSpec:
        """The demo's training of a method, of adapters on the base, in five steps."""
        demo, pixels = self._demo(method), self._demo("digits-autoencoder").latents
        schedule = {"steps": 5, "global_batch_size": 12, "log_every": 1} | train
        changes = {
            "backbone": backbone or sd3(lora=ADAPTERS),
            "latents": pixels,
            "text": CARD,
            "train": demo.train.model_copy(update=schedule),
        }
        return TrainSpec.model_validate(demo.model_copy(update=changes).model_dump())

    def train(self, spec: TrainSpec, folder: Path, base: Path | None = None) -> Call:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "spec.json").write_text(dump(spec), encoding="utf-8")
        out, curve = folder / "model.safetensors", folder / "train.jsonl"
        words = ["--spec", folder / "spec.json", "--latents", self.latents, "--text", self.text]
        words += ["--teacher", base or self.base] if spec.teacher else []
        words += ["--out", out, "--curve", curve]
        return Call("train", [str(word) for word in words], [out, curve])
