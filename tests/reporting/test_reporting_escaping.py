"""Text of a configuration is shown as it is, whatever it contains: page, Markdown, spreadsheets, figures."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import markdown
import pytest
from PIL import Image

from fewstep import claims, figure, report, table
from fewstep.common.csv_files import read_csv, to_csv
from fewstep.config.base import sealed
from fewstep.plan import Plan
from fewstep.reporting.markdown import escaped

PLANTED = (
    '<script>alert("x")</script>',
    "</td></table><img src=x onerror=alert(1)>",
    "a|b | c",
    "[click](javascript:alert(1)) ![](http://x/y.png)",
    "*bold* __strong__ `lone <i>",
    "&lt;b&gt; & Co",
    "# heading",
    "1. item",
    "- item\n\n## two lines",
    r"back\slash \| pipe",
    "=HYPERLINK(\"http://x\"; 'y')",
    "+1+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(A1)",
    "'=1",
    "$\\frac{ $",
    '" onmouseover="alert(1)',
)
TEXTS = {"label", "title", "caption", "note", "paper", "group", "params", "statement", "source", "axis"}


def plant(value: Any, number: list[int], key: str = "") -> Any:
    """The value with planted text behind or in place of each text of a user."""
    if isinstance(value, dict):
        return {name: plant(inner, number, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [plant(inner, number, key) for inner in value]
    if key in TEXTS and isinstance(value, str):
        number[0] += 1
        return PLANTED[number[0] % len(PLANTED)]
    return value


class Found(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(text)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def made(demo_plan: Plan, tmp_path: Path) -> Path:
    """Every file that readers open, of a plan with planted text everywhere."""
    number = [-1]

    def spec(stage: str, name: str) -> str:
        raw = json.loads(demo_plan.spec_text(stage, name))
        raw.pop("digest")
        path = tmp_path / f"{stage}-{name}.json"
        path.write_text(sealed(plant(raw, number)))
        return str(path)

    parts = []
    for name in ("table1", "dumo-table1", "ucgm-table", "zoo"):
        out = tmp_path / f"{name}.csv"
        words = ["--spec", spec("table", name), "--out", str(out), "--markdown", str(out.with_suffix(".md"))]
        table.main(words)
        parts.append(out)
    out = tmp_path / "claims.csv"
    claims.main(
        ["--spec", spec("claims", "claims"), "--out", str(out), "--markdown", str(tmp_path / "claims.md")]
    )
    picture = tmp_path / "figure1.png"
    figure.main(
        ["--spec", spec("table", "figure1"), "--out", str(picture), "--csv", str(tmp_path / "figure1.csv")]
    )
    parts += [out, picture]
    page = tmp_path / "report.html"
    report.main(["--spec", spec("report", "report"), "--parts", *map(str, parts), "--out", str(page)])
    assert number[0] > 5 * len(PLANTED)
    return tmp_path


def test_the_page_shows_it(made):
    text = (made / "report.html").read_text()
    found = Found(text)
    assert not found.tags & {"script", "i", "a b"} and found.attributes <= {
        *("lang", "charset", "name", "content", "class", "id", "href", "scope", "colspan", "title"),
        *("aria-label", "src", "alt"),
    }
    assert not re.search(r'src="(?!data:image/(png|svg\+xml);base64,)', text)
    assert not re.search(r'href="(?!#|https://arxiv\.org/abs/|(?!/)[\w./%-]+")', text)
    for planted in PLANTED:
        assert " ".join(planted.split()).replace("`", "") in found.text.replace("`", ""), planted


def test_markdown_shows_it(made):
    shown = ""
    for path in made.glob("*.md"):
        found = Found(markdown.markdown(path.read_text(), extensions=["tables"]))
        allowed = {"h1", "p", "strong", "em", "table", "thead", "tbody", "tr", "th", "td", "code"}
        assert found.tags <= allowed, path
        columns = {
            len(re.findall(r"(?<!\\)(?:\\\\)*\|", line))
            for line in path.read_text().splitlines()
            if line[:1] == "|"
        }
        assert columns and min(columns) > 2
        shown += found.text
    for planted in PLANTED:
        assert " ".join(planted.split()) in shown, planted


def test_spreadsheets_show_it(made):
    for path in made.glob("*.csv"):
        assert not re.search(r'(?m)(^|,)"?[=+@\t]', path.read_text()), path
        for cell in re.findall(r'(?m)(?:^|,)"?(-[^,\n]*)', path.read_text()):
            float(cell)
    cells = {cell for path in made.glob("*.csv") for row in read_csv(path)[1] for cell in row.values()}
    assert {text for text in PLANTED if text[0] in "=+-@'"} <= cells, "and they are read back as they were"


def test_figures_show_it(made):
    Image.open(made / "figure1.png").verify()


def test_numbers_of_csv_files_stay_numbers():
    text = to_csv(["x", "y"], [["-0.1", "+3"], ["-1e-05", "-x"], ["-inf", "'-x"]])
    assert text == "x,y\n-0.1,+3\n-1e-05,'-x\n-inf,''-x\n"


def refuse(made: Path, part: Path, reason: str) -> None:
    words = ["--spec", str(made / "report-report.json"), "--parts", str(part), "--out", str(made / "r.html")]
    with pytest.raises(ValueError, match=f"{part.name}: {reason}"):
        report.main(words)


@pytest.mark.parametrize("fault", ["digit", "row", "cell", "header", "empty"])
def test_damaged_tables_and_claims_are_refused(made, fault):
    for name in ("table1.csv", "claims.csv"):
        path = made / name
        whole = path.read_text()
        lines = whole.splitlines(keepends=True)
        path.write_text(
            {
                "digit": re.sub(r"(?m)^(.*[^\d])(\d)(\D)", r"\g<1>\g<2>7\g<3>", whole, count=1),
                "row": "".join(lines[:-1]),
                "cell": whole.replace(",", ",,", 1),
                "header": lines[0],
                "empty": "",
            }[fault]
        )
        words = [
            "--spec",
            str(made / "report-report.json"),
            "--parts",
            str(path),
            "--out",
            str(made / "r.html"),
        ]
        with pytest.raises(ValueError, match=f"{name}: not a CSV file as it was made"):
            report.main(words)


def test_a_damaged_picture_is_refused(made):
    path = made / "figure1.png"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    refuse(made, path, "not a whole picture")


def test_code_stays():
    assert escaped("`a_b` and ``c < d``, 3 < 4 & snake_case _x_") == (
        r"`a_b` and ``c < d``, 3 &lt; 4 & snake_case \_x\_"
    )
