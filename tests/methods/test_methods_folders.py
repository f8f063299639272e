"""What is found in fewstep/methods without torch: parameters, sources of defaults, deviations, the table."""

from __future__ import annotations

import subprocess
import sys

import pytest
from configs import ROOT

from fewstep import methods
from fewstep.config.base import ConfigError, parse
from fewstep.config.methods import Method
from fewstep.methods.__main__ import rewritten, table
from fewstep.plan.marks import check, mark_of

CLASSES = methods.parameter_classes()


def leaves(value, key="loss"):
    if isinstance(value, dict):
        return [leaf for name, inner in value.items() for leaf in leaves(inner, f"{key}.{name}")]
    return [] if value is None or key == "loss.name" else [key]


@pytest.mark.parametrize("name", CLASSES)
def test_every_folder_holds_parameters_and_their_method(name):
    params = CLASSES[name]()
    assert params.name == name and params.title
    assert type(methods.build(params)) is methods.find(name)


@pytest.mark.parametrize("name", [name for name, params in CLASSES.items() if params.kind == "flow"])
def test_every_default_has_a_source(name):
    params = CLASSES[name]()
    check(params.provenance, {"loss": params}, f"methods/{name}/params.py", "provenance")
    assert params.papers
    assert not [key for key in leaves(params.model_dump()) if mark_of(key, params.provenance) is None]


def test_unknown_method_names_those_known():
    with pytest.raises(ValueError, match=r"unknown method 'demc'; known: .*decm"):
        methods.find("demc")


def test_a_module_with_two_methods_is_refused(monkeypatch):
    from fewstep.methods.cd import loss

    class Other(loss.CD):
        __module__ = loss.__name__

    monkeypatch.setattr(loss, "Other", Other, raising=False)
    with pytest.raises(ValueError, match=r"fewstep\.methods\.cd\.loss: defines 2 subclasses of Method"):
        methods.find("cd")


def test_parameters_can_be_imported_first_and_without_torch():
    for module in ("methods.decm.params", "methods", "config.methods", "config.objectives", "config.specs"):
        code = f"import sys; sys.modules['torch'] = sys.modules['numpy'] = None; import fewstep.{module}"
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_deviations_are_whole_sentences_of_the_docstring():
    found = methods.deviations("kd")
    assert len(found) == 4
    assert found[2].startswith("Without a teacher the ODE is that of the network's own velocity")
    assert found[0].endswith("that is 102 solutions for one of the paper's.")
    assert methods.deviations("classifier") == []


def test_the_readme_has_the_table():
    """`python -m fewstep.methods README.md` writes it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert rewritten(text) == text
    assert "| DE-CM | [`decm`](fewstep/methods/decm/loss.py) | arXiv 2602.10764 |\n" in table()
    with pytest.raises(ValueError, match="needs the lines"):
        rewritten("# no markers")


def entry(**loss):
    return parse(Method, {"title": "", "recipe": "r", "loss": loss}, "f.yaml", "m").loss


def test_a_time_distribution_says_what_differs_from_the_default():
    """With the default's law; with another law it stands alone."""
    assert entry(name="decm", times={"segments": 16}).times.segments == 16
    times = entry(name="imeanflow", times={"law": "logit-normal", "mean": 0.0}).times
    assert (times.law, times.mean, times.std) == ("logit-normal", 0.0, 1.0)
    assert entry(name="imeanflow", times={"law": "uniform"}).times.mean is None
    assert entry(name="decm") == CLASSES["decm"]()
    with pytest.raises(ConfigError, match=r"f\.yaml: m\.loss\.times: .*segments belongs to"):
        entry(name="imeanflow", times={"segments": 16})


def test_a_loss_needs_a_name_that_is_known():
    with pytest.raises(ConfigError, match=r"m\.loss: .*'name'"):
        entry(freq=3)
    with pytest.raises(ConfigError, match=r"m\.loss: .*'decm'"):
        entry(name="demc")
