"""The HTML page: complete, self-contained, escaped."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from fewstep import report as stage
from fewstep.config import dump
from fewstep.config.settings import Protocol, Weights
from fewstep.config.specs import CellKey, ClaimsSpec, ReportItem, ReportMethod, ReportSpec, SourceFiles
from fewstep.config.tables import CellName, Claim
from fewstep.reporting.claim_checks import check_claims, claims_csv
from fewstep.reporting.page import inline
from fewstep.reporting.rows import fill_table

PROTOCOL = Protocol(
    images=2000,
    labels="balanced",
    extractor="conv-classifier",
    features="features",
    logits="logits",
    weights=Weights(method="classifier"),
    reference_latents="digits",
)


class Checker(HTMLParser):
    """Every element closed in order, and nothing loaded from elsewhere."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        self.loaded += [
            value for name, value in attrs if name in ("src", "srcset") or (tag, name) == ("link", "href")
        ]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()


@pytest.fixture
def page(make_spec, metric, tmp_path):
    """Write parts and spec, run the stage, return the HTML text."""

    def make(
        scale="paper",
        caption="A <b> & c",
        names=("table1", "table3", "figure1"),
        parts=("table1", "table3", "figure1", "claims"),
    ) -> str:
        files = []
        items = []
        for name in names:
            spec = make_spec(name, scale=scale).model_copy(update={"extra_metrics": {"recall": "decm"}})
            keys = [key for row in spec.rows for column in row.cells["decm"] for key in column]
            metrics = {key: metric(key, 1.5, recall=0.625) for key in keys if key.variant != "freq-5"}
            path = tmp_path / f"{name}.csv"
            path.write_text(fill_table(spec, metrics, lambda *_: False).to_csv())
            if name == "figure1":
                path = tmp_path / f"{name}.png"
                Image.new("RGB", (4, 4), "red").save(path)
            if name in parts:
                files.append(path)
            items.append(
                ReportItem(
                    name=name,
                    kind=spec.table.kind,
                    title=spec.table.title,
                    paper=spec.table.paper,
                    caption=caption,
                    target=f"results/{name}.csv",
                )
            )
        one, two = (CellName(method="decm", sampler="cm", steps=steps) for steps in (1, 2))
        claims = [
            Claim(id=name, statement=f"one {sign} two", source="§1", left=one, relation=sign, right=[two])
            for name, sign in (("less", "<"), ("more", ">="))
        ]
        keys = [CellKey(**cell.model_dump(), seed=0, protocol="decm") for cell in (one, two)]
        spec = ClaimsSpec(claims=claims, cells={claim.id: [keys] for claim in claims}, seeds=[0], scale=scale)
        (tmp_path / "claims.csv").write_text(
            claims_csv(
                check_claims(spec, {key: metric(key, fid) for key, fid in zip(keys, (2.0, 1.0), strict=True)})
            )
        )
        if "claims" in parts:
            files.append(tmp_path / "claims.csv")
        report = ReportSpec(
            title="Few <steps>",
            scale=scale,
            command="snakemake --profile profiles/x",
            items=items,
            sources={
                name: SourceFiles(result=f"{name}.json", spec="report.json", log="")
                for name in ("claims", "gone")
            },
            claims={"less": ["claims", "gone"]},
            methods={"decm": ReportMethod(title="DE-CM", paper="arXiv:2602.10764", loss="decm")},
            protocols={"decm": PROTOCOL},
        )
        (tmp_path / "report.json").write_text(dump(report))
        out = tmp_path / "report.html"
        stage.main(["--spec", str(tmp_path / "report.json"), "--parts", *map(str, files), "--out", str(out)])
        return out.read_text()

    return make


@pytest.mark.parametrize("scale", ["paper", "demo"])
def test_the_page_holds_everything_and_loads_nothing(page, scale):
    text = page(scale)
    checker = Checker()
    checker.feed(text)
    assert checker.open == [] and all(
        source.startswith("data:image/png;base64,") for source in checker.loaded
    )
    assert len(checker.loaded) == 1 and "<script" not in text and "@import" not in text and "url(" not in text
    for name in ("table1", "table3", "figure1", "claims", "protocols", "methods", "rerun"):
        assert f'id="{name}"' in text
    for shown in ("BigGAN", "(o) freq = 5", "441.66", "snakemake --profile profiles/x results/table3.csv"):
        assert shown in text
    assert text.count("Recall, ours</th>") == 2 and ">0.625</td>" in text
    assert "<dt>extractor</dt><dd>conv-classifier</dd>" in text
    assert ("In miniature" in text) == (scale == "demo")
    assert ("within tolerance" in text) == (scale == "paper")
    assert ("reported at full scale" in text) == (scale == "demo")


def test_text_from_outside_is_escaped(page):
    text = page()
    assert "A &lt;b&gt; &amp; c" in text and "<b>" not in text
    assert "<title>Few &lt;steps&gt;</title>" in text
    assert "one &lt; two" in text and "one &gt;= two" in text


def test_claims_that_fail_are_shown(page):
    text = page()
    assert "Of 2 claims" in text and "<h3>Holding</h3>" in text and "<h3>Not holding</h3>" in text
    assert text.index("<h3>Holding</h3>") < text.index("one &gt;= two") < text.index("<h3>Not holding</h3>")


def test_claims_lead_to_their_files(page, tmp_path):
    """As far as these are here; the report's own spec stands for one."""
    (tmp_path / "claims.json").write_text("{}")
    behind = page().partition("Files behind each claim")[2].partition("</table>")[0]
    assert behind.count('<a href="claims.json">claims</a><a href="report.json">spec</a><br>gone') == 1
    assert "one &lt; two" in behind and "one &gt;= two" not in behind


def test_a_method_with_some_of_the_steps_has_blank_cells(page):
    text = page("demo", names=("zoo",), parts=("zoo",))
    checker = Checker()
    checker.feed(text)
    row = next(line for line in text.split("<tr>") if line.startswith("<td>GET<"))
    ours, *more = [re.sub("<.*?>", "", cell).strip() for cell in row.split("</td>")[1:-1]]
    assert checker.open == [] and ours == "1.50 (1)"
    assert more == ["–"] * 3 + ["–"] + ["0.625"] + ["–"] * 3, "columns of steps, the cost, another metric"


def test_a_part_that_was_not_given_is_said_to_be_missing(page):
    text = page(parts=("table1",))
    assert text.count("This part was not given to the report.") == 2 and 'id="claims"' not in text


def test_two_parts_of_one_name_are_refused(page, tmp_path):
    page()
    with pytest.raises(ValueError, match="same name"):
        stage.main(["--spec", str(tmp_path / "report.json"), "--parts", "a/x.csv", "b/x.csv", "--out", "o"])


def test_code_in_text():
    assert str(inline("one ``a < b``")) == "one <code>a &lt; b</code>"
