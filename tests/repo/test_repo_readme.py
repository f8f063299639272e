"""What the README and the other pages tell people to type exists."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from configs import ROOT, dry_run, make_plan, raw_config
from own_images import draw
from source_files import modules, text, tracked

from fewstep.bench.estimate import estimate, with_totals
from fewstep.plan import Plan
from fewstep.plan.jobs import maker

PAGES = [path for path in tracked() if path.suffix == ".md"]


@pytest.fixture(scope="module", params=PAGES, ids=str)
def page(request) -> Path:
    return request.param


@pytest.fixture(scope="module")
def readme() -> str:
    return text(Path("README.md"))


def commands(readme: str) -> list[list[str]]:
    """Calls of snakemake, from code blocks and from inline code."""
    found = []
    for code in re.findall(r"```(?:bash|console|sh)\n(.*?)```|`(snakemake [^`]+)`", readme, re.DOTALL):
        for line in "\n".join(code).splitlines():
            for part in line.split("&&"):
                if part.strip().startswith("snakemake "):
                    found.append(shlex.split(part, comments=True)[1:])
    return found


def test_links(page):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text(page))
    folder = (ROOT / page).parent
    missing = [link for link in links if "://" not in link and not (folder / link).exists()]
    assert not missing


def test_commands_exist(page):
    for name in re.findall(r"python -m (fewstep[\w.]*)", text(page)):
        if not name.endswith("."):
            assert name in modules()


def test_snakemake_calls(page, tmp_path, monkeypatch):
    """Profiles are there, and targets are files that the plan can make."""
    monkeypatch.chdir(tmp_path)  # with images where the preset for one's own looks for them
    draw({".": 1})
    calls = [call for call in commands(text(page)) if "--profile" in call]
    assert len(calls) >= 3 or page != Path("README.md")
    for call in calls:
        profile = call[call.index("--profile") + 1]
        assert (ROOT / profile / "config.yaml").is_file(), profile
        preset = Path(profile).name
        plan = make_plan(raw_config(preset if (ROOT / f"config/{preset}.yaml").is_file() else None))
        targets = [*plan.config.tables, *plan.names["claims"], "report"]
        made = {file for name in targets for file in plan.parts_of(name)}
        made |= {plan.metrics(key) for table in plan.tables.values() for key in table.all_cells}
        made |= {plan.path("<results>/plan.csv"), plan.path("<results>/bench.csv")}
        made |= {plan.model(run.method, run.variant) for run in plan.runs.values()}
        for word in call:
            if word.startswith("results/") and word not in made:
                assert maker(plan, word).stage in ("export", "pipeline"), f"snakemake {' '.join(call)}"


@pytest.mark.slow
def test_dry_runs(readme, tmp_path, monkeypatch):
    """Snakemake accepts every call of the README, in a folder without results."""
    monkeypatch.chdir(tmp_path)
    draw({".": 1})
    calls = {tuple(call) for call in commands(readme) if "--profile" in call}
    for call in sorted(calls):
        if "--report" not in call and "TARGET" not in call:  # a report is of what was made
            dry_run(call, tmp_path)


def test_extras_exist(page):
    assert set(re.findall(r"\.\[(\w+)\]", text(page))) <= {"dashboard", "dev", "t2i"}


def test_the_price_of_table_1(readme):
    """As results/plan.csv has it."""
    raw = raw_config()
    lines = estimate(make_plan({**raw, "targets": ["table1"]}).spec("costs", "costs"))
    totals = [row for row in with_totals(lines) if row.kind == "total"]
    (hours,) = [row.time for row in totals if row.unit == "GPU-hours"]
    kept = sum(row.kept for row in totals) / 1e9
    told = re.search(r"about ([\d,]+) GPU-hours \(H100\) and keeps (\d+) GB", readme)
    assert [float(number.replace(",", "")) for number in told.groups()] == pytest.approx(
        [hours, kept], rel=0.03
    )


def test_the_example_of_a_table(readme, tmp_path):
    section = readme.split("### Add a table\n")[1]
    example = re.search(r"```yaml\n(.*?)```", section, re.DOTALL)[1]
    shutil.copytree(ROOT / "config", tmp_path / "config")
    (tmp_path / "config/tables/mine.yaml").write_text(example)
    plan = Plan(raw_config(), tmp_path)
    assert {(key.variant, key.steps) for key in plan.tables["mine"].all_cells} == {
        ("freq-4", 1),
        ("freq-4", 4),
    }
    assert plan.parts_of("mine") == ["results/mine.csv", "results/mine.md"]
