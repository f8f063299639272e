"""How sampling and scoring use a device: nothing waits for it, and nothing but last bits depends on it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import ldm_reference
import numpy as np
import pytest
import torch
from archive_contents import card_of, images_of
from configs import make_plan, raw_config
from recorded_operations import Recorder
from tiny_pipeline import Call, TinyPipeline, refused, replaced
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from fewstep.backbones import build
from fewstep.config.backbones import ConvAutoencoder, LightningDiT, UNet
from fewstep.config.settings import Guidance, Sampler
from fewstep.core.capture import CapturedNetwork
from fewstep.core.guidance import guided_field
from fewstep.core.memory import FittingBatches, place
from fewstep.data import normalisation as normalisations
from fewstep.data.tokenizers import ConvCodec, Decoding, KlCodec, build_ldm_autoencoder
from fewstep.evaluation import features, generation, generator, kept_chunks, samplers
from fewstep.evaluation.kept_chunks import ChunkWriter, KeptChunks
from fewstep.evaluation.quantization import quantize

CELLS = [("cd", "cm-2"), ("teacher", "euler-4"), ("teacher", "euler-guided-4")]
MORE_CELLS = [*CELLS, ("cd", "gamma-2"), ("cd", "mix-3"), ("cd", "ucgm-few-2")]
BACKBONES = [
    LightningDiT(shape=[4, 8, 8], classes=10, depth=2, width=16, heads=2),
    UNet(kind="unet", shape=[4, 8, 8], classes=10, width=32, multipliers=[1, 1], depth=1, attention=[8]),
]
HALF = {"settings": {"protocols": {"digits": {"network_dtype": "bfloat16", "decoder_dtype": "bfloat16"}}}}
LEVELS = 1
"""Most levels of 255 between two ways of the same arithmetic."""
SHARE = 0.005
"""Most pixels that differ between them at all."""


def same_but_rounding(one: Tensor, two: Tensor, share: float = SHARE, levels: int = LEVELS) -> bool:
    apart = (one.int() - two.int()).abs()
    return int(apart.max()) <= levels and float((apart > 0).float().mean()) <= share


def sampled(call: Call, *words: str) -> Tensor:
    call.more(*words)()
    return images_of(call.out)


def on_host(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function, which works for the host alone, past every recorder."""

    def call(*given: Any) -> Tensor:
        with _disable_current_modes():
            return function(*given)

    return call


@pytest.mark.parametrize(("method", "cell"), MORE_CELLS)
def test_nothing_waits_while_a_chunk_is_made(pipeline: TinyPipeline, tmp_path, monkeypatch, method, cell):
    """Network, guidance, sampler, decoder and bytes; noise and times are made on the host."""
    call = pipeline.sample(method, cell, tmp_path)
    expected = sampled(call)
    for module, name in ((generator, "indexed_noise"), (samplers, "time_grid"), (samplers, "ucgm_grid")):
        monkeypatch.setattr(module, name, on_host(getattr(module, name)))
    seen = []

    def recorded(items: Iterable[range], total: int) -> Iterator[range]:
        for item in items:
            with Recorder() as recorder:
                yield item
            seen.append(len(recorder.seen))

    monkeypatch.setattr(kept_chunks, "progress", recorded)
    monkeypatch.setattr(kept_chunks, "ChunkWriter", lambda kept, thread: ChunkWriter(kept, thread=True))
    call.out.unlink()
    assert torch.equal(sampled(call), expected)
    assert len(seen) == 1 and seen[0] > 100


def moved(self: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """`nn.Module._apply`, which cannot exchange tensors without content."""
    for module in self.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(function(weight), requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, function(buffer))
    return self


@pytest.mark.parametrize("kind", ["cm", "mix", "ucgm"])
@pytest.mark.parametrize("backbone", BACKBONES, ids=lambda backbone: backbone.kind)
def test_every_tensor_is_on_the_gpu(monkeypatch, backbone, kind):
    """Tensors of a GPU without content: none meets one of the host, and none is asked for its content."""
    monkeypatch.setattr(nn.Module, "_apply", moved)
    for name in ("time_grid", "ucgm_grid"):
        monkeypatch.setattr(samplers, name, lambda *_: SimpleNamespace(tolist=lambda: [0.0, 0.4, 0.7, 1.0]))
    gpu, guidance = torch.device("cuda"), Guidance(scale=2.0, interval=[0.1, 1.0])
    sampler = Sampler(kind=kind, ucgm={"condition": "end", "rho": 1.0} if kind == "ucgm" else None)
    normalisations._channels.cache_clear()
    with FakeTensorMode(), torch.no_grad():
        velocity = generation.prepared_velocity(build(backbone).eval(), generation.PLAIN, gpu, "float32")
        field = guided_field(velocity, guidance, 10, torch.zeros(6, dtype=torch.long, device=gpu))
        noise = torch.zeros(6, 4, 8, 8, device=gpu)
        latents = samplers.integrate(sampler, field, noise, 3, lambda _: noise)
        vae = build_ldm_autoencoder(ldm_reference.TINY, 4)
        codec = KlCodec(vae, "mean", gpu, Decoding(channels_last=True))
        normalisation = normalisations.Normalisation(mean=[0.0] * 4, std=[1.0] * 4, multiplier=1.0)
        images = quantize(codec.decode(normalisation.denormalise(latents)), "round")
    normalisations._channels.cache_clear()
    assert images.is_cuda and images.dtype == torch.uint8 and images.shape == (6, 3, 16, 16)


def test_decoders_do_not_wait():
    for codec, latents in codecs(Decoding()):
        with torch.no_grad(), Recorder() as recorder:
            codec.decode(latents)
        assert len(recorder.seen) > 5


def codecs(decoding: Decoding) -> Iterator[tuple[KlCodec | ConvCodec, Tensor]]:
    """Both kinds of decoders with random weights, and latents for them."""
    torch.manual_seed(0)
    vae = build_ldm_autoencoder(ldm_reference.TINY, 4)
    yield KlCodec(vae, "mean", "cpu", decoding), torch.randn(6, 4, 8, 8)
    spec = ConvAutoencoder(kind="conv-autoencoder", shape=[1, 8, 8], width=8, latent=4)
    network = build(spec).eval().requires_grad_(False)
    yield ConvCodec(network, "cpu", decoding), 10 * torch.randn(200, 4, 4, 4)


@pytest.mark.parametrize(
    ("decoding", "share", "levels"),
    [
        (Decoding(channels_last=True), SHARE, LEVELS),
        (Decoding(compile="aot_eager"), SHARE, LEVELS),
        (Decoding(channels_last=True, compile="aot_eager"), SHARE, LEVELS),
        (Decoding(dtype=torch.bfloat16), 0.9, 6),
    ],
)
def test_decoded_bytes_are_those_of_the_plain_decoder(decoding, share, levels):
    torch.compiler.reset()
    with torch.no_grad():
        for (plain, latents), (other, _) in zip(list(codecs(Decoding())), codecs(decoding), strict=True):
            one, two = plain.decode(latents), other.decode(latents)
            assert two.dtype == torch.float32 and two.std() > 0.05
            assert same_but_rounding(quantize(one, "round"), quantize(two, "round"), share, levels)
            assert decoding.dtype == torch.float32 or not torch.equal(one, two)


def test_options_of_sampling_leave_the_images(pipeline, tmp_path):
    torch.compiler.reset()
    plain = images_of(pipeline.sample("cd", "cm-2").out)
    call = pipeline.sample("cd", "cm-2", tmp_path)
    assert same_but_rounding(sampled(call, "--compile", "aot_eager", "--channels-last"), plain)
    assert card_of(call.out) == card_of(pipeline.sample("cd", "cm-2").out)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--capture",), "--capture: a CUDA graph needs a GPU"),
        (("--compile", "inductor"), "--compile: no compiler g++ (variable CXX)"),
    ],
)
def test_what_the_machine_lacks_is_told_before_anything_is_loaded(
    pipeline, tmp_path, monkeypatch, words, told
):
    def loaded(*arguments: Any) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(generation, "load_network", loaded)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    refused(pipeline.sample("cd", "cm-2", tmp_path).more(*words), told)
    assert not list(tmp_path.glob("*.chunks-*"))


def test_a_tensor_goes_to_any_device():
    """Pinned memory is CUDA's alone."""
    tensor = torch.ones(2)
    assert place(tensor, "cpu") is tensor
    assert place(tensor, torch.device("meta")).device.type == "meta"


class Replayed:
    """Steps as a graph replays them: the closure of the first call of a kind, with its memory."""

    def __init__(self) -> None:
        self.steps: dict[Any, tuple[Callable[[], Tensor], Tensor]] = {}
        self.forgotten = 0

    def run(self, kind: Any, step: Callable[[], Tensor]) -> Tensor:
        if kind not in self.steps:
            self.steps[kind] = step, step()
        replay, result = self.steps[kind]
        return result.copy_(replay())

    def forget(self) -> None:
        self.steps.clear()
        self.forgotten += 1


@pytest.mark.parametrize(("method", "cell"), CELLS)
def test_a_replayed_network_gives_the_same_images(pipeline, tmp_path, monkeypatch, method, cell):
    """One graph for each number of rows, which reads its inputs from memory of its own."""
    monkeypatch.setattr(generation, "CHUNK", 15)
    plain = sampled(pipeline.sample(method, cell, tmp_path / "plain"))
    steps, prepared = Replayed(), generation.prepared_velocity
    monkeypatch.setattr(
        generation, "prepared_velocity", lambda *given: CapturedNetwork(prepared(*given), steps)
    )
    assert torch.equal(sampled(pipeline.sample(method, cell, tmp_path / "replayed")), plain)
    rows = {kind[0][0][0] for kind in steps.steps}
    assert rows == ({30, 20} if "guided" in cell else {15, 10})


def test_what_a_replayed_network_returns_stays():
    net = CapturedNetwork(lambda x: (x + 1, x - 1), ReplayedPairs())
    first = net(torch.zeros(3))
    assert torch.equal(net(torch.ones(3))[0], torch.full((3,), 2.0))
    assert torch.equal(first[0], torch.ones(3)) and torch.equal(first[1], -torch.ones(3))


class ReplayedPairs(Replayed):
    def run(self, kind: Any, step: Any) -> Any:
        if kind not in self.steps:
            self.steps[kind] = step, step()
        replay, result = self.steps[kind]
        return tuple(old.copy_(new) for old, new in zip(result, replay(), strict=True))


def short_of_memory(most: int, sizes: list[int]) -> Callable[[range], Tensor]:
    def function(part: range) -> Tensor:
        sizes.append(len(part))
        if len(part) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.tensor(part)

    return function


def test_parts_are_halved_until_they_fit(capsys):
    sizes: list[int] = []
    released = []
    fitting = FittingBatches("sampling", 250, lambda: released.append(0))
    function = short_of_memory(70, sizes)
    assert torch.equal(torch.cat(fitting(function, range(250))), torch.arange(250))
    assert sizes == [250, 125, 63, 63, 63, 61] and len(released) == 2
    assert torch.equal(torch.cat(fitting(function, range(250, 300))), torch.arange(250, 300))
    assert sizes[6:] == [50], "what was learnt is kept"
    assert capsys.readouterr().out.splitlines()[-1].startswith("sampling: 63 at a time, as more do not fit")
    with pytest.raises(torch.OutOfMemoryError):
        fitting(short_of_memory(0, sizes), range(4))


def test_images_do_not_depend_on_the_memory(pipeline, tmp_path, monkeypatch, capsys):
    whole = images_of(pipeline.sample("cd", "cm-2").out)
    original = generator.integrate

    def short(sampler: Any, field: Any, x0: Tensor, *rest: Any) -> Tensor:
        if len(x0) > 7:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(sampler, field, x0, *rest)

    monkeypatch.setattr(generator, "integrate", short)
    call = pipeline.sample("cd", "cm-2", tmp_path)
    assert same_but_rounding(sampled(call), whole, 0.01)
    assert "sampling: 5 at a time" in capsys.readouterr().out
    assert card_of(call.out) == card_of(pipeline.sample("cd", "cm-2").out)


def test_features_do_not_depend_on_the_memory(pipeline, tmp_path, monkeypatch):
    whole = pipeline.score("cd", "cm-2").out.read_text()
    monkeypatch.setattr(features, "ROWS", 40)
    call = pipeline.score("cd", "cm-2", tmp_path)
    call()
    assert call.out.read_text() == whole
    monkeypatch.setattr(features, "ROWS", 9)
    call()
    ours, theirs = json.loads(call.out.read_text()), json.loads(whole)
    assert ours["fid"] == pytest.approx(theirs["fid"], rel=1e-5)


def test_the_extractor_in_channels_last(pipeline, tmp_path):
    """Features of the miniature's classifier differ by rounding alone."""
    call = pipeline.score("cd", "cm-2", tmp_path)
    call.more("--channels-last")()
    ours, theirs = json.loads(call.out.read_text()), json.loads(pipeline.score("cd", "cm-2").out.read_text())
    assert ours["fid"] == pytest.approx(theirs["fid"], rel=1e-4)
    assert ours.keys() == theirs.keys() and ours["spec"] == theirs["spec"]


def test_chunks_are_written_while_the_next_is_made(tmp_path):
    kept = KeptChunks(tmp_path / "images.tar", {})
    chunks = [range(first, first + 2) for first in range(0, 12, 2)]
    with ChunkWriter(kept, thread=True) as writer:
        for indices in chunks:
            images = torch.full((2, 1, 1, 1), indices.start, dtype=torch.uint8)
            writer.write(indices, images, torch.tensor(False))
    assert kept.missing(chunks) == []
    assert [int(kept.read(indices)[0].item()) for indices in chunks] == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize("thread", [False, True])
def test_a_chunk_with_nan_is_not_kept(tmp_path, thread):
    kept = KeptChunks(tmp_path / "images.tar", {})
    chunks = [range(2), range(2, 4)]
    images = torch.zeros(2, 1, 1, 1, dtype=torch.uint8)
    with (
        pytest.raises(ValueError, match="NaN; did the training diverge"),
        ChunkWriter(kept, thread) as writer,
    ):
        for indices, nan in zip(chunks, (False, True), strict=True):
            writer.write(indices, images, torch.tensor(nan))
    assert kept.missing(chunks) == [range(2, 4)]


def test_float32_leaves_every_digest_and_name():
    plan = make_plan(raw_config("demo"))
    assert not [name for name in plan.image_sets if "float" in name]
    for protocol in plan.parts.protocols.values():
        assert not {"network_dtype", "decoder_dtype"} & protocol.model_dump(mode="json").keys()
    text = plan.spec_text("sample", f"cd/base/cm-2/{plan.image_set('digits')}")
    assert "dtype" not in text.replace('"latents"', "")


def test_bfloat16_is_part_of_the_images_and_of_the_score(pipeline, tmp_path):
    half = pipeline.varied(HALF)
    call = half.sample("cd", "cm-2", tmp_path)
    assert call.out.name != pipeline.sample("cd", "cm-2").out.name and "bfloat16" in call.out.name
    images, plain = sampled(call), images_of(pipeline.sample("cd", "cm-2").out)
    assert images.dtype == torch.uint8 and not torch.equal(images, plain)
    assert (images.int() - plain.int()).abs().float().mean() < 3
    card = card_of(call.out)
    assert card["network_dtype"] == card["decoder_dtype"] == "bfloat16"
    # Neither is scored as the other.
    refused(
        replaced(pipeline.score("cd", "cm-2", tmp_path), "--images", str(call.out)),
        "network_dtype: these images have bfloat16, but float32 is asked for",
    )
    own = str(pipeline.sample("cd", "cm-2").out)
    refused(
        replaced(half.score("cd", "cm-2", tmp_path / "half"), "--images", own),
        "network_dtype: these images have float32, but bfloat16 is asked for",
    )
    score = replaced(half.score("cd", "cm-2", tmp_path / "half"), "--images", str(call.out))
    score()
    assert json.loads(score.out.read_text())["protocol"]["network_dtype"] == "bfloat16"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
class TestOnGpu:
    """Not run without a GPU. Small networks; the tiny pipeline is built on the GPU as well."""

    @pytest.mark.parametrize(("method", "cell"), CELLS)
    def test_captured_is_not_captured(self, pipeline, tmp_path, monkeypatch, method, cell):
        monkeypatch.setattr(generation, "CHUNK", 5)
        plain = sampled(pipeline.sample(method, cell, tmp_path / "plain"))
        captured = sampled(pipeline.sample(method, cell, tmp_path / "captured"), "--capture")
        assert torch.equal(captured, plain)

    @pytest.mark.parametrize(
        "words", [("--channels-last",), ("--compile",), ("--compile", "inductor", "--capture")]
    )
    def test_bytes_of_the_options(self, pipeline, tmp_path, words):
        plain = sampled(pipeline.sample("cd", "cm-2", tmp_path / "plain"))
        assert same_but_rounding(sampled(pipeline.sample("cd", "cm-2", tmp_path), *words), plain, 0.01)

    def test_the_devices_agree(self, pipeline, tmp_path, monkeypatch):
        gpu = sampled(pipeline.sample("cd", "cm-2", tmp_path / "gpu"))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert same_but_rounding(gpu, sampled(pipeline.sample("cd", "cm-2", tmp_path / "cpu")), 0.01)

    def test_a_chunk_never_waits(self, pipeline, tmp_path):
        torch.cuda.set_sync_debug_mode("default")
        sampled(pipeline.sample("cd", "cm-2", tmp_path / "warm"))
        original = generation.progress

        def strict(items: Iterable[range], total: int) -> Iterator[range]:
            for item in original(items, total):
                torch.cuda.set_sync_debug_mode("error")
                try:
                    yield item
                finally:
                    torch.cuda.set_sync_debug_mode("default")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(generation, "progress", strict)
            sampled(pipeline.sample("cd", "cm-2", tmp_path / "strict"))

    def test_memory_that_runs_out(self, pipeline, tmp_path):
        """A real failure to allocate, of a part of more than ten rows."""
        held = torch.ones(1, device="cuda")

        def function(part: range) -> Tensor:
            if len(part) > 10:
                torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
            return held * torch.tensor(part, device="cuda")

        found = torch.cat(FittingBatches("test", 250)(function, range(250)))
        assert np.array_equal(found.cpu().numpy(), np.arange(250))
