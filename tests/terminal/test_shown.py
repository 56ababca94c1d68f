"""What notebooks and prompts show of results: HTML in which nothing acts, text that fits."""

from __future__ import annotations

import sys

import pytest
from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.style import Style
from rich.table import Table
from rich.text import Text

from hpc_mlp.errors import UserError
from hpc_mlp.terminal.shown import Showable, as_html, as_text


class Two(Showable):
    def parts(self) -> list[Table | Text]:
        table = Table("name", title="a title")
        table.add_column("%", justify="right")
        table.add_row(Text("<b>bold</b>\u202e", "red"), "1\n2", style="bold")
        return [table, Text("a line", "dim")]

    def records(self) -> list[dict[str, object]]:
        return [{"name": "a", "share": 0.5}, {"name": "b", "share": None}]


def test_html_shows_what_the_table_holds_and_nothing_in_it_acts() -> None:
    text = Two()._repr_html_()
    assert "<b>" not in text and "\u202e" not in text
    assert "&lt;b&gt;bold&lt;/b&gt;\\u202e" in text and "1<br>2" in text
    assert "<caption>a title</caption>" in text and "text-align:right" in text
    assert "font-weight: bold" in text and "color: #800000" in text and "opacity" in text
    assert text.count("<tr") == text.count("</tr>") == 2


def test_bars_links_and_groups_have_their_element() -> None:
    table = Table("")
    table.add_row(ProgressBar(total=4, completed=1))
    text = as_html([Group(Text("a & b.html", Style(link='a & "b".html')), table)])
    assert '<a href="a%20%26%20%22b%22.html">a &amp; b.html</a>' in text
    assert '<progress value="1.000" max="4"></progress>' in text


def test_repr_is_the_tables_and_str_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert "a title" in repr(Two()) and "a line" not in repr(Two())
    assert str(Two()) == f"{Two()!r}\na line" and "\x1b" not in str(Two())
    assert max(map(len, as_text(Two().parts()).splitlines())) <= 40


def test_a_data_frame_has_the_records(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = Two().to_pandas()
    assert list(frame.columns) == ["name", "share"] and frame["share"].isna().tolist() == [
        False,
        True,
    ]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"pip install 'hpc-mlp\[pandas\]'"):
        Two().to_pandas()
