"""Foreign text is shown, never obeyed; records are what they say or refused."""

from __future__ import annotations

import io
import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_mlp.errors import HpcMlpWarning, RunError, UserError, printable
from hpc_mlp.files.checked import Record, parse, read
from hpc_mlp.terminal.console import Console
from hpc_mlp.terminal.text import csv_cell, json_text, markdown


class Point(Record):
    name: str
    x: float
    tags: tuple[int, ...] = ()


@given(st.text(st.characters()))
def test_nothing_that_acts_is_left(text: str) -> None:
    shown = printable(text)
    assert all(unicodedata.category(c) not in ("Cc", "Cs", "Zl", "Zp") for c in shown)
    assert not set(shown) & set(
        "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c"
    )
    shown.encode()


def test_ordinary_text_stays() -> None:
    for text in ("cats/001.jpg", "Straße", "猫", "क्षि", "👩\u200d🔬", "a b"):
        assert printable(text) == text
    assert printable("\x1b]52;c;\x07\x9b\u202egpj.exe\n") == r"\x1b]52;c;\x07\x9b\u202egpj.exe\x0a"
    assert printable("two\nlines\r", keep="\n") == "two\nlines\\x0d"


@given(st.text(st.characters(exclude_categories=["Cs"])), st.none() | st.just(1))
def test_json_is_safe_to_show_and_reads_back(text: str, indent: int | None) -> None:
    shown = json_text({text: [text, 1.5]}, indent)
    assert printable(shown, keep="\n") == shown
    assert json.loads(shown) == {text: [text, 1.5]}
    assert json.loads(json_text("\udc80")) == "\udc80"


def test_no_cell_is_a_formula() -> None:
    assert [csv_cell(text) for text in ("=1+1", "+1", "-1", "@A1", "\t=1", "cats", "a=b", "")] == [
        "'=1+1",
        "'+1",
        "'-1",
        "'@A1",
        r"\x09=1",
        "cats",
        "a=b",
        "",
    ]


def test_markdown_shows_text_as_it_is() -> None:
    assert markdown("dropout_batchnorm") == "dropout_batchnorm"
    assert markdown("<img src=x>|[a](b)`*_x_\\\n") == r"&lt;img src=x&gt;\|\[a\](b)\`\*\_x\_\\\\x0a"


HOSTILE = "cat\x1b]52;c;aGk=\x07\x9b31m\u202egpj.exe[red]:skull:"


def test_a_console_shows_text_as_it_is() -> None:
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    file = io.StringIO()
    console = Console(file=file, width=100, force_terminal=True, highlight=False)
    table = Table("name", title=HOSTILE)
    for cell in (HOSTILE, Text(HOSTILE), "x"):
        table.add_row(cell)
    console.print(table, Panel(HOSTILE), HOSTILE)
    console.out(HOSTILE)
    text = file.getvalue()
    assert text.count(r"cat\x1b]52;c;aGk=\x07\x9b31m\u202egpj.exe[red]:skull:") == 5
    # A Text has lost its BEL.
    assert text.count(r"cat\x1b]52;c;aGk=\x9b31m\u202egpj.exe[red]:skull:") == 1
    assert "\x1b]" not in text and not set(text) & set("\x07\x9b\u202e")


def test_errors_and_warnings_show_nothing_that_acts() -> None:
    for error in (
        UserError(f"{HOSTILE}:\n  bad"),
        RunError(f"{HOSTILE}:\n  bad"),
        HpcMlpWarning(f"{HOSTILE}:\n  bad"),
    ):
        assert str(error) == printable(HOSTILE) + ":\n  bad"


def test_a_record_is_read(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('{"name": "a", "x": 1, "tags": [1, 2], "newer": {}}')
    assert read(tmp_path / "p.json", Point, "Write it again.") == Point(
        name="a", x=1.0, tags=(1, 2)
    )
    assert read(tmp_path / "none.json", Point, "") is None


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ([], "object"),
        ({"x": 1}, "name"),
        ({"name": 1, "x": 1}, "name"),
        ({"name": "a", "x": "1"}, "x"),
        ({"name": "a", "x": True}, "x"),
        ({"name": "a", "x": 1, "tags": ["1"]}, "tags.0"),
        (None, "object"),
    ],
)
def test_another_shape_is_damaged(value: Any, why: str) -> None:
    with pytest.raises(RunError, match=rf"p.json is damaged \(.*{why}.*\)\. Write it again\."):
        parse(json.dumps(value), Point, Path("p.json"), "Write it again.")


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"name": "\\ud800", "x": 1}']
)
def test_what_is_no_json_is_damaged(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_bytes(data)
    with pytest.raises(RunError, match="damaged"):
        read(tmp_path / "p.json", Point, "")
    with pytest.raises(RunError, match="damaged"):
        read(tmp_path, Point, "")
