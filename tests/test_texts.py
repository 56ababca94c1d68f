"""Foreign text is shown, never obeyed; records are what they say or refused."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_mlp.checked import Record, parse, read
from hpc_mlp.errors import RunError
from hpc_mlp.texts import printable


class Point(Record):
    name: str
    x: float
    tags: tuple[int, ...] = ()


@given(st.text(st.characters()))
def test_nothing_that_acts_is_left(text: str) -> None:
    shown = printable(text)
    assert all(unicodedata.category(c) not in ("Cc", "Cs", "Zl", "Zp") for c in shown)
    assert not set(shown) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")
    shown.encode()


def test_ordinary_text_stays() -> None:
    for text in ("cats/001.jpg", "Straße", "猫", "क्षि", "👩\u200d🔬", "a b"):
        assert printable(text) == text
    assert printable("\x1b]52;c;\x07\x9b\u202egpj.exe\n") == r"\x1b]52;c;\x07\x9b\u202egpj.exe\x0a"
    assert printable("two\nlines\r", keep="\n") == "two\nlines\\x0d"


def test_a_record_is_read(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('{"name": "a", "x": 1, "tags": [1, 2], "newer": {}}')
    assert read(tmp_path / "p.json", Point, "Write it again.") == Point(name="a", x=1.0, tags=(1, 2))
    assert read(tmp_path / "none.json", Point, "") is None


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ([], "object"), ({"x": 1}, "name"), ({"name": 1, "x": 1}, "name"), ({"name": "a", "x": "1"}, "x"),
        ({"name": "a", "x": True}, "x"), ({"name": "a", "x": 1, "tags": ["1"]}, "tags.0"), (None, "object"),
    ],
)  # fmt: skip
def test_another_shape_is_damaged(value: Any, why: str) -> None:
    with pytest.raises(RunError, match=rf"p.json is damaged \(.*{why}.*\)\. Write it again\."):
        parse(json.dumps(value), Point, Path("p.json"), "Write it again.")


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"name": "\\ud800", "x": 1}'])
def test_what_is_no_json_is_damaged(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_bytes(data)
    with pytest.raises(RunError, match="damaged"):
        read(tmp_path / "p.json", Point, "")
    with pytest.raises(RunError, match="damaged"):
        read(tmp_path, Point, "")
