"""DPG-Bench's table of questions: read prompt by prompt, or refused with file, line and column."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from data_factories import record_of

from fewstep.config import ConfigError
from fewstep.config.text import PromptSet
from fewstep.data.captions import read_prompts

COLUMNS = (
    *("item_id", "text", "keywords", "proposition_id", "dependency", "category_broad", "category_detailed"),
    *("tuple", "question_natural_language"),
)
DEFAULTS = {"item_id": "a", "text": "A red bag.", "dependency": "0", "tuple": "entity - whole (bag)"}
DEFAULTS |= {"question_natural_language": "Is there a bag?"}


def line(number: int | str, **given: str) -> dict[str, str]:
    return {"proposition_id": str(number), **DEFAULTS, **given}


def table(*rows: dict[str, str], columns: tuple[str, ...] = COLUMNS) -> bytes:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, restval="", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()


def read(folder: Path, content: bytes, count: int = 1) -> list[dict[str, Any]]:
    record = record_of(folder, {"dpg_bench.csv": content}).path
    return read_prompts(
        PromptSet(asset="mine", files=["dpg_bench.csv"], format="dpg-csv", prompts=count), record
    )


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_table(tmp_path, mark):
    """The first line is read, too; a comma and a line's end may stand in a prompt; parents may come later."""
    rows = [
        line(1),
        line(2, dependency="1", tuple="attribute - color (bag, red)", question_natural_language="Is it red?"),
        line(
            1, item_id="b", text="A \u201csign\u201d,\non a wall", dependency="3, 2", tuple="global - (photo)"
        ),
        line(2, item_id="b", text="A \u201csign\u201d,\non a wall", tuple='other - text (sign, "x")'),
        line(
            3, item_id="b", text="A \u201csign\u201d,\non a wall", tuple="relation - spatial (sign, wall, on)"
        ),
    ]
    assert read(tmp_path, mark + table(*rows), 2) == [
        {
            "id": "a",
            "prompt": "A red bag.",
            "questions": [
                {"id": 1, "question": "Is there a bag?", "category": "entity", "parents": []},
                {"id": 2, "question": "Is it red?", "category": "attribute", "parents": [1]},
            ],
        },
        {
            "id": "b",
            "prompt": "A \u201csign\u201d,\non a wall",
            "questions": [
                {"id": 1, "question": "Is there a bag?", "category": "global", "parents": [3, 2]},
                {"id": 2, "question": "Is there a bag?", "category": "other", "parents": []},
                {"id": 3, "question": "Is there a bag?", "category": "relation", "parents": []},
            ],
        },
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([line(1, item_id="b"), line(1), line(2, item_id="b")], "line 4: id: 'b' is that of "),
        ([line(1), line(1)], "line 3: proposition_id: 1 stands twice for 'a'"),
        ([line(1), line(2, text="Another.")], "line 3: text: differs from the line before, which has"),
        ([line("x")], "line 2: proposition_id: must be a whole number, not 'x'"),
        ([line(1, dependency="0,y")], "line 2: dependency: must be a whole number, not 'y'"),
        ([line(1, dependency="")], "line 2: dependency: is empty"),
        ([line(1), line(2, dependency="7")], "line 3: dependency: 7 is no proposition_id of 'a'"),
        ([line(1, dependency="1")], "line 2: dependency: 1 of 'a' depends on itself, or through others"),
        (
            [line(1), line(2, dependency="3"), line(3, dependency="1,2")],
            "line 3: dependency: 2 of 'a' depends on itself, or through others",
        ),
        ([line(1, tuple="mood - (sad)")], "line 2: tuple: begins with 'mood', not one of global, entity, "),
        ([line(1, question_natural_language=" ")], "line 2: question_natural_language: is empty"),
        ([line(1, text="")], "line 2: text: is empty"),
        ([line(1, item_id="")], "line 2: item_id: is empty"),
    ],
)
def test_lines_that_are_none_are_named(tmp_path, rows, message):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, table(*rows), len(rows))
    assert str(caught.value).startswith(f"{tmp_path / 'assets/mine/dpg_bench.csv'}: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (table(line(1), columns=COLUMNS[:-1]), "line 1: has no column question_natural_language"),
        (b"", "line 1: has no column item_id, text, "),
        (table(line(1)) + b"a,b\r\n", "line 3: has not the 9 values of line 1"),
        (table(line(1)) + b'a,"b', "line 2: not CSV: unexpected end of data"),
        (table(line(1, text="caf\u00e9")).replace(b"\xc3\xa9", b"\xe9"), "not UTF-8: byte 0xe9"),
    ],
)
def test_files_that_are_no_table(tmp_path, content, message):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, content)
    assert str(caught.value).startswith(f"{tmp_path / 'assets/mine/dpg_bench.csv'}: {message}")


def test_another_number_of_prompts(tmp_path):
    with pytest.raises(ConfigError, match=r"dpg_bench\.csv: found 1 prompts, the configuration says 1065"):
        read(tmp_path, table(line(1)), 1065)
