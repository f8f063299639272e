"""Sampling that is stopped goes on from its finished chunks, to the same bytes."""

from __future__ import annotations

import os
import signal

import pytest
from child_processes import child
from tiny_pipeline import TinyPipeline, replaced

from fewstep.backbones.model_file import load_model, save_model


def small_chunks(die_after: int | None = None, number: int = signal.SIGKILL) -> None:
    """Six chunks instead of one; the process gets a signal in the chunk after so many."""
    from fewstep.evaluation import generation, generator

    generation.CHUNK = 7
    original, made = generator.integrate, []

    def integrate(*arguments):
        if len(made) == die_after:
            os.kill(os.getpid(), number)
        made.append(0)
        print("chunk made", flush=True)
        return original(*arguments)

    generator.integrate = integrate


@pytest.fixture(scope="module")
def whole(pipeline: TinyPipeline, tmp_path_factory) -> bytes:
    """The archive of an uninterrupted stage."""
    folder = tmp_path_factory.mktemp("whole")
    call = pipeline.sample("cd", "cm-2", folder)
    assert child(call, folder / "log", small_chunks) == 0
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["log", call.out.name, call.arguments[1].rsplit("/")[-1]]
    )
    return call.out.read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_resumed_equals_uninterrupted(pipeline: TinyPipeline, tmp_path, whole, number):
    call = pipeline.sample("cd", "cm-2", tmp_path)
    log = tmp_path / "log"
    for made in (2, 1, 0):
        assert child(call, log, small_chunks, die_after=made, number=number) != 0
        assert not call.out.exists()
    chunks = sorted(tmp_path.glob("*.chunks-*/0*.tar"))
    assert len(chunks) == 3
    content = bytearray(chunks[1].read_bytes())
    content[1700] ^= 16  # in the images
    chunks[1].write_bytes(content)
    assert child(call, log, small_chunks) == 0
    assert call.out.read_bytes() == whole
    assert log.read_text().count("chunk made") == 3 + 4 and "made again" in log.read_text()
    assert not list(tmp_path.glob("*.chunks-*"))


def test_chunks_of_another_model_are_discarded(pipeline: TinyPipeline, tmp_path):
    call = pipeline.sample("cd", "cm-2", tmp_path)
    assert child(call, tmp_path / "log", small_chunks, die_after=3) != 0
    tensors, card = load_model(pipeline.plan.model("cd"))
    other = tmp_path / "other.safetensors"
    save_model(
        other,
        {name: 1.01 * tensor for name, tensor in tensors.items()},
        pipeline.plan.run("cd").backbone,
        card,
    )
    assert child(replaced(call, "--model", str(other)), tmp_path / "log", small_chunks) == 0
    text = (tmp_path / "log").read_text()
    assert "images of another model, spec or code discarded" in text and text.count("chunk made") == 3 + 6
