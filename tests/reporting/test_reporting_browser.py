"""The page as a browser shows it, made of the demo's plan with invented numbers."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from configs import dry_run, make_plan, raw_config
from PIL import Image

from fewstep import figure, report, table
from fewstep.common.device_time import Part, measured_time
from fewstep.common.files import write_lines
from fewstep.config.base import merge
from fewstep.plan.jobs import report_trainings
from fewstep.reporting.formatting import format_number

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install Debian's chromium")
SCHEMES = ("light", "dark")
WIDTHS = (390, 1440)
MEASURE = """<script>
window.addEventListener("load", () => {
  const root = document.documentElement;
  parent.postMessage({
    width: root.clientWidth,
    needed: root.scrollWidth,
    background: getComputedStyle(document.body).backgroundColor,
    broken: [...document.images].filter(image => !image.naturalWidth).length,
    ours: [...document.querySelectorAll("#table1 ~ .scroll td:nth-child(4)")].map(
      cell => cell.getBoundingClientRect().right)[0],
  }, "*");
});
</script></body>"""
FRAME = """<!doctype html><html><body style="margin:0">
<script>window.addEventListener("message", event => {{
  const found = document.createElement("pre");
  found.id = "found";
  found.textContent = JSON.stringify(event.data);
  document.body.append(found);
}});</script>
<iframe src="{page}" style="width:{width}px; height:6000px; border:0; color-scheme:{scheme}"></iframe>
</body></html>"""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """The page of the demo's Tables 1 and 4 and Figure 1, among the files that it leads to."""
    folder = tmp_path_factory.mktemp("page")
    places = {name: str(folder / name) for name in ("results", "logs", "assets", "latents")}
    plan = make_plan(merge(raw_config("demo"), {"pathvars": places}))

    def write(path: str, text: str) -> str:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text, encoding="utf-8")
        return path

    def spec(stage: str, name: str) -> str:
        return write(f"{folder}/results/specs/{stage}/{name}.json", plan.spec_text(stage, name))

    tables = ("table1", "table4")
    for position, key in enumerate(
        key for name in (*tables, "figure1") for key in plan.tables[name].all_cells
    ):
        numbers = {"fid": 1.0 + position / 100, "kid": 0.01, "precision": 0.7, "recall": 0.5}
        told = {"cell": key.model_dump(), "images": 2000, "evaluations": key.steps, "status": "trained"}
        write(plan.metrics(key), json.dumps({**told, **numbers, "code": None}))
    parts = []
    for name in tables:
        csv, markdown = plan.parts_of(name)
        files = plan.inputs("table", {"table": name})["metrics"]
        table.main(["--spec", spec("table", name), "--metrics", *files, "--out", csv, "--markdown", markdown])
        parts.append(csv)
    png, csv = plan.parts_of("figure1")
    files = plan.inputs("figure", {"table": "figure1"})["metrics"]
    figure.main(["--spec", spec("table", "figure1"), "--metrics", *files, "--out", png, "--csv", csv])
    curves = []
    for run, seed in report_trainings(plan)[:3]:
        lines = [{"step": step, "update": 0, "loss": 1 / (1 + step), "grad_norm": 0.5} for step in range(50)]
        curve = plan.file("curve", run=run, seed=seed)
        curves.append(curve)
        Path(curve).parent.mkdir(parents=True, exist_ok=True)
        write_lines(curve, "".join(f"{json.dumps(line)}\n" for line in lines))
        part = Part("a processor", gpu=False, count=2, seconds=60.0, memory=0.5)
        with pytest.raises(KeyboardInterrupt), measured_time(record(curve), run, part, lambda: 0.25):
            raise KeyboardInterrupt
        with measured_time(record(curve), run, part, lambda: 0.5):
            pass
    out = folder / "results/report.html"
    report.main(
        [
            "--spec",
            spec("report", "report"),
            "--parts",
            *parts,
            png,
            csv,
            "--curves",
            *curves,
            "--out",
            str(out),
        ]
    )
    return out


def record(curve: str) -> Path:
    """Where a training says how long it took."""
    return Path(curve).with_name("time.json")


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if tag == "a":
            self.links.append(found["href"])
        if "id" in found:
            self.ids.append(found["id"])


def test_links(made):
    """Local files and anchors are there; links to the outside have the form of an address."""
    reader = Links()
    reader.feed(made.read_text(encoding="utf-8"))
    assert len(reader.ids) == len(set(reader.ids))
    kinds = {"anchor": 0, "outside": 0, "file": 0}
    for link in reader.links:
        if link.startswith("#"):
            kinds["anchor"] += 1
            assert link[1:] in reader.ids, link
        elif "://" in link:
            kinds["outside"] += 1
            assert re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{4,5}", link), link
        else:
            kinds["file"] += 1
            assert (made.parent / unquote(link)).is_file(), link
    assert all(kinds.values())


def test_what_leads_to_files(made):
    text = made.read_text(encoding="utf-8")
    assert '<a href="decm/base/0/cm-2/digits.json">1.' in text
    assert 'href="table1.csv"' in text and 'href="table1.md"' in text and 'href="figure1.png"' in text
    points = text.partition("Numbers of the figure, and the files behind each")[2]
    name = "teacher/base/0/euler-guided-4/digits"
    assert f'<a href="{name}.json">{name}</a>' in points
    assert re.search(rf'>4</td><td class="number" title="[^"]*"><a href="{name}\.json">\d', points)
    assert '<a href="decm/base/0/cm-2/digits.json">0.500</a>' in text, "a further metric of Table 1"
    assert "data:image/svg+xml" in text
    spent = (
        "trained for 2 min in 2 parts, lost steps included, on 2 cores: 0.067 core-hours, 0.5 GB of memory"
    )
    assert text.count(spent) == 3
    assert "<dt>Core-hours</dt><dd>0.2</dd>" in text and "<dt>Trained on</dt><dd>a processor</dd>" in text
    assert re.search(
        r"<dt>Trainings</dt><dd>\d+ behind this page; \d+ without a record of their time</dd>", text
    )
    assert "LightningDiT, 3 layers" in text
    ours = [line for line in text.splitlines() if "digits.json" in line and 'class="number' in line]
    assert ours and not any(word in line for line in ours for word in ("675M", "XL/", "SD3.5-Medium"))


def test_each_number_is_that_of_the_file_it_leads_to(made):
    """In tables, and below figures; what has no link is no number."""
    text = made.read_text(encoding="utf-8")
    cells = re.findall(r'<td class="(?:number|linked)[^>]*>(.*?)</td>', text)
    assert {cell for cell in cells if "<a " not in cell} == {"–"}
    numbers = re.findall(r'<td class="number[^>]*><a href="(.*?)">(.*?)</a>', text)
    figure1 = re.findall(r'<td class="number[^>]*><a href="(.*?)">', text.partition('id="figure1"')[2])
    assert len(numbers) > len(figure1) > 10
    for path, shown in numbers:
        found = json.loads((made.parent / unquote(path)).read_text(encoding="utf-8"))["fid"]
        assert shown == format_number(found), path


@pytest.mark.slow
def test_dry_runs(made, tmp_path):
    """Snakemake accepts the targets of all commands that the page prints, asked for at once."""
    text = made.read_text(encoding="utf-8")
    found = [shlex.split(unescape(line)) for line in re.findall(r"<pre><code>(.*?)</code></pre>", text)]
    results = str(made.parent)
    targets = [words[-1].replace(results, "results/demo") for words in found]
    assert {tuple(words[:-1]) for words in found} == {("snakemake", "--profile", "profiles/demo")}
    assert targets[-1] == "results/demo/report.html" and len(set(targets)) == len(targets) > 5
    dry_run(["--profile", "profiles/demo", *targets], tmp_path)


def browse(*options: str | Path) -> subprocess.CompletedProcess[str]:
    words = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr")
    command = [str(CHROMIUM), *words, *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=180)


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_in_a_browser(made, tmp_path, width, scheme):
    """No overflow, no broken picture, nothing on the console; a screenshot is kept.

    The page stands in a frame, because a window of Chromium is at least 500 pixels wide.
    """
    page, frame = tmp_path / "page.html", tmp_path / "frame.html"
    page.write_text(made.read_text(encoding="utf-8").replace("</body>", MEASURE), encoding="utf-8")
    frame.write_text(FRAME.format(page=page.as_uri(), width=width, scheme=scheme), encoding="utf-8")
    folder = Path(os.environ.get("FEWSTEP_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / f"report-{width}-{scheme}.png"
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    seen = browse(profile, "--virtual-time-budget=5000", "--dump-dom", frame.as_uri())
    (found,) = re.findall(r'<pre id="found">(.*?)</pre>', seen.stdout)
    measured = json.loads(unescape(found))
    assert measured["width"] == width and measured["needed"] <= width, measured
    assert measured["broken"] == 0
    assert measured["ours"] <= width, "our number and the paper's are within the window"
    assert (measured["background"] == "rgb(255, 255, 255)") == (scheme == "light")
    assert "CONSOLE" not in seen.stderr, seen.stderr
    browse(profile, f"--window-size={max(width, 500)},6000", f"--screenshot={picture}", frame.as_uri())
    with Image.open(picture) as shot:
        assert shot.size == (max(width, 500), 6000)
