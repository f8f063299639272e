"""One set of tiny models for all tests of exports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fewstep.config.backbones import Lora, Sd3

if TYPE_CHECKING:
    from sd3_files import Exported


@dataclass(frozen=True)
class Models:
    folder: Path
    teacher: Path
    smooth: Path
    """The teacher with a smooth time embedding."""
    student: Path
    """Adapters of the teacher."""
    student_spec: Sd3
    files: Exported
    smooth_student: Path
    """Adapters of the network with a smooth time."""
    smooth_spec: Sd3
    smooth_files: Exported
    pipeline: Path
    """A diffusers folder of the teacher."""


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Models:
    # they need the extra [t2i], without which the tests are skipped
    from sd3_files import exported, reembedded, save_student
    from tiny_pipeline_folder import save_pipeline

    folder = tmp_path_factory.mktemp("exports")
    pipeline, teacher = save_pipeline(folder)
    smooth = reembedded(folder, teacher)
    student, spec = save_student(folder / "student.safetensors", teacher)
    smooth_student, smooth_spec = save_student(folder / "smooth-student.safetensors", smooth, Lora(rank=16))
    return Models(
        folder=folder,
        teacher=teacher,
        smooth=smooth,
        student=student,
        student_spec=spec,
        files=exported(folder / "export", student, spec, teacher),
        smooth_student=smooth_student,
        smooth_spec=smooth_spec,
        smooth_files=exported(folder / "smooth-export", smooth_student, smooth_spec, smooth, teacher),
        pipeline=pipeline,
    )
