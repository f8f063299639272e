"""Trainings on captions: a CLIP by contrast, which is given the numbers of words."""

from __future__ import annotations

import pytest
import torch
from child_processes import ranks
from tiny_pipeline import replaced
from trained_files import CLOSE

pytest.importorskip("transformers")
from tiny_sd3 import CAPTIONS, CARD, TinyTrainings, write_captions

from fewstep.backbones.model_file import load_model
from fewstep.config.backbones import Clip
from fewstep.config.specs import TrainSpec
from fewstep.config.text import TextEncoder
from fewstep.data.text_encoders import Words, vocabulary
from fewstep.methods import parameter_classes
from fewstep.training.feed import Feed

WORDS = TextEncoder(kind="words", length=4)
CLIP = {"kind": "clip", "shape": [1, 8, 8], "patch": 4, "width": 8, "layers": 1, "heads": 2, "embedding": 8}


@pytest.fixture(scope="module")
def trainings(tmp_path_factory) -> TinyTrainings:
    return TinyTrainings(tmp_path_factory.mktemp("captions"))


def test_a_clip_by_contrast(trainings, tmp_path):
    """In one process and in two."""
    card = CARD.model_copy(update={"encoder": WORDS})
    text = write_captions(tmp_path / "text", card, Words(WORDS, vocabulary(CAPTIONS)))
    changes = {
        "backbone": Clip(**CLIP, length=4, vocabulary=20),
        "loss": parameter_classes()["contrast"](name="contrast", group=6),
        "text": card,
        "teacher": False,
        "guidance": None,
    }
    spec = TrainSpec.model_validate(trainings.spec().model_copy(update=changes).model_dump())
    alone, two = (
        replaced(trainings.train(spec, tmp_path / name), "--text", str(text)) for name in ("alone", "two")
    )
    alone()
    assert load_model(alone.out)[1]["text"]["encoder"]["kind"] == "words"
    assert ranks(two, tmp_path / "two") == [0, 0], (tmp_path / "two" / "rank0.log").read_text()
    ours, theirs = (load_model(call.out)[0] for call in (two, alone))
    for name, tensor in ours.items():
        # The gradient of a key's offset is zero, and Adam makes its rounding errors as large as any.
        if not name.endswith("k_proj.bias"):
            torch.testing.assert_close(tensor, theirs[name], **CLOSE)


def test_a_step_loads_its_captions_once():
    """All of the process's rows in one read, whatever the slices; y are numbers on the CPU."""

    class Rows:
        def rows(self, step, rows):
            from fewstep.core.method import Batch

            y = torch.arange(100)[rows] + step
            return Batch(torch.zeros(len(y), 1, 2, 2), torch.zeros(len(y), 1, 2, 2), y)

    loaded = []
    parts = [slice(4, 6), slice(6, 8)]
    feed = Feed(
        Rows(), 0, 8, parts, torch.device("cpu"), lambda _: (), 3, lambda y: loaded.append(y.tolist())
    )
    for step in range(2):
        feed.take(step)
    assert loaded == [[4, 5, 6, 7], [5, 6, 7, 8]]
