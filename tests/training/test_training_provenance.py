"""Digests of code: what marks a training or a score stale, and what does not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from configs import ROOT

from fewstep.common import provenance
from fewstep.common.provenance import FEATURES, is_stale, sampling_digest, score_digest, training_digest
from fewstep.config.backbones import Backbone

TRAININGS = [("decm", "lightningdit"), ("scm", "lightningdit"), ("decm", "unet")]
SCORES = [("lightningdit", FEATURES), ("unet", FEATURES)]
PROMPT_SCORES = [("unet", "prompt-scores")]
UNET = {("unet", FEATURES), ("unet", "prompt-scores")}


@pytest.fixture
def package(tmp_path) -> Path:
    return Path(shutil.copytree(ROOT / "fewstep", tmp_path / "fewstep"))


def digests(package: Path) -> dict[object, str]:
    for function in (training_digest, sampling_digest, score_digest, provenance._source):
        function.cache_clear()
    found: dict[object, str] = {run: training_digest(*run, package) for run in TRAININGS}
    return found | {score: score_digest(*score, package) for score in [*SCORES, *PROMPT_SCORES]}


def changed(package: Path, *names: str, text: str = "\nADDED = 1\n") -> set[object]:
    """Runs and scores whose digest changes with this text at the end of the files of these names."""
    before = digests(package)
    found = [path for path in package.rglob("*.py") if path.relative_to(package).as_posix() in names]
    assert found, names
    for path in found:
        path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")
    after = digests(package)
    return {key for key in before if before[key] != after[key]}


def everything() -> set[object]:
    return {*TRAININGS, *SCORES, *PROMPT_SCORES}


def test_a_digest_has_sixteen_digits_and_is_the_code_s_own(package):
    found = digests(package)
    assert len(set(found.values())) == len(found) and {len(digest) for digest in found.values()} == {16}
    assert found == digests(ROOT / "fewstep")


@pytest.mark.parametrize(
    "name", ["training/calibration.py", "training/parallel.py", "training/trainer.py", "data/loader.py"]
)
def test_code_of_the_training_room_marks_trainings_only(package, name):
    assert changed(package, name) == set(TRAININGS)


def test_normalisation_of_latents_marks_trainings_and_scores(package):
    """data/manifest.py normalises for training, and undoes it before decoding."""
    assert changed(package, "data/manifest.py") == everything()


def test_metrics_mark_scores_only(package):
    assert changed(package, "core/frechet.py", "evaluation/frechet.py") == set(SCORES)
    assert changed(package, "evaluation/metrics_file.py") == {*SCORES, *PROMPT_SCORES}


def test_scorers_of_prompts_mark_their_own_scores_only(package):
    assert changed(package, "evaluation/scorers/geneval.py") == set(PROMPT_SCORES)
    assert changed(package, "evaluation/prompt_scoring.py") == set(PROMPT_SCORES)


def test_text_encoders_mark_trainings_on_captions_only(package):
    before = training_digest("decm", "sd3", package)
    assert changed(package, "data/text_encoders.py") == set(PROMPT_SCORES)
    assert training_digest("decm", "sd3", package) != before


def test_sampling_is_not_done_anew_for_another_metric(package):
    before = sampling_digest("unet", package)
    changed(package, "evaluation/frechet.py", "evaluation/scorers/geneval.py")
    assert sampling_digest("unet", package) == before
    changed(package, "evaluation/samplers.py")
    assert sampling_digest("unet", package) != before


def test_a_loss_marks_its_own_trainings_only(package):
    assert changed(package, "methods/decm/loss.py") == {run for run in TRAININGS if run[0] == "decm"}
    assert changed(package, "methods/ctm/loss.py") == set()


def test_a_backbone_marks_its_own_trainings_and_scores_only(package):
    assert changed(package, "backbones/unet.py") == {("decm", "unet"), *UNET}
    assert changed(package, "backbones/lightningdit.py") == everything() - {("decm", "unet"), *UNET}


@pytest.mark.parametrize(
    "name", ["common/files.py", "config/settings.py", "plan/runs.py", "doctor.py", "table.py"]
)
def test_what_a_spec_says_and_what_only_reads_results_marks_nothing(package, name):
    assert changed(package, name) == set()


def test_comments_docstrings_and_layout_do_not_count(package):
    assert changed(package, "core/path.py", text="\n\n# A comment.\n'A docstring of a constant.'\n") == set()
    path = package / "training/optimizer.py"
    source = path.read_text()
    assert source.count('"""Linear warm-up') == 1
    before = digests(package)
    path.write_text(source.replace('"""Linear warm-up', '"""Other words:').replace("    ", "  "))
    assert digests(package) == before


def test_a_module_that_is_imported_anew_counts(package):
    (package / "core/added.py").write_text("x = 1\n")
    lazily = "\ndef f():\n    from .added import x\n    return x\n"
    assert changed(package, "core/path.py", text=lazily) == everything()
    assert changed(package, "core/added.py") == everything()


def test_every_kind_of_backbone_has_modules():
    kinds = {get_args(model.model_fields["kind"].annotation)[0] for model in get_args(get_args(Backbone)[0])}
    assert all(score_digest(kind, FEATURES) for kind in kinds)


def test_a_method_or_backbone_without_source_is_refused(package):
    with pytest.raises(ValueError, match=r"unknown method 'unheard'"):
        training_digest("unheard", "lightningdit", package)
    with pytest.raises(ValueError, match="unknown backbone 'unheard'"):
        score_digest("unheard", FEATURES, package)


def test_what_is_stale():
    good = {"code": training_digest("decm", "unet"), "score_code": score_digest("unet", FEATURES)}
    good |= {"backbone_kind": "unet", "model": {"loss": "decm"}}
    assert not is_stale(good)
    assert is_stale(good | {"code": "0" * 16}) and is_stale(good | {"score_code": "0" * 16})
    assert is_stale(good | {"model": {"loss": "scm"}}) and is_stale(good | {"model": {}})
    assert not is_stale(good | {"code": None, "model": {}}), "released weights"
    prompts = good | {"protocol": {"kind": "prompt-scores"}}
    assert is_stale(prompts)
    assert not is_stale(prompts | {"score_code": score_digest("unet", "prompt-scores")})


def test_the_end_of_the_dag_runs_without_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import fewstep.table, fewstep.figure, fewstep.claims, fewstep.report, fewstep.common.provenance\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
