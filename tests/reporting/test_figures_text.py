"""Text on the figures, as PNG: none of it is cut off, and none runs into another."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from support.page import Images, digits, write_shards, write_sweep

from hpc_mlp.cli import main
from hpc_mlp.errors import printable
from hpc_mlp.reporting.fonts import width_of
from hpc_mlp.reporting.lettering import all_shortened, shortened, wrapped

LONG = "a_rather_long_class_name_"


@given(st.text(st.characters(max_codepoint=0x17F), max_size=60), st.sampled_from([30, 90, 400]))
def test_wrapped_text_fits_and_keeps_every_letter(text: str, width: int) -> None:
    lines = wrapped(text, width, 8.5).split("\n")
    kept = printable(text, keep="\n")
    assert "".join("".join(lines).split()) == "".join(kept.split())
    assert all(width_of(line, 8.5) <= width or len(line) == 1 for line in lines)
    assert width_of(shortened(text, 90, 8.5), 8.5) <= 90


def test_names_that_act_take_the_room_that_they_are_shown_in() -> None:
    """Cut off by what is drawn (`\\u202e`), or labels run over their neighbours."""
    for name in ("\u202e" * 30, "a\x1b[31m" * 9):
        shown = shortened(name, 70, 8.5)
        assert width_of(shown, 8.5) <= 70 and shown == printable(shown) and "…" in shown


def test_names_that_begin_alike_stay_apart() -> None:
    names = [f"class_of_the_digits_{a}-{b}" for a in ("one", "nine") for b in ("three", "one")]
    shown = all_shortened(names, 60, 8.5)
    assert shown == ["…one-three", "…one-one", "…nine-three", "…nine-one"]
    assert all_shortened(["cat", "car"], 60, 8.5) == ["cat", "car"]
    assert len({*all_shortened(["a_" * 40 + "x", "b_" * 40 + "y"], 60, 8.5)}) == 2


def test_names_break_where_people_would() -> None:
    assert wrapped("dropout lr=0.001 hidden=512-256", 90, 8.5).split("\n") == [
        "dropout lr=0.001",
        "hidden=512-256",
    ]
    assert wrapped("a_variant_of_mine", 50, 8.5).split("\n") == ["a_variant_", "of_mine"]
    assert shortened("class_number_12", 50, 8.5).endswith("12")


@pytest.mark.slow
def test_no_text_is_cut_or_runs_into_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = digits(100)
    images = Images(tuple(LONG + name for name in plain.classes), plain.splits)
    write_shards(tmp_path / "shards", images)
    write_sweep(tmp_path / "runs", tmp_path / "shards", images, 12)
    drawn: dict[Any, dict[Text, Bbox]] = defaultdict(dict)
    draw = Text.draw

    def watched(self: Text, renderer: Any, *args: Any, **named: Any) -> None:
        draw(self, renderer, *args, **named)
        shown = self.get_visible() and self.get_text().strip()
        if isinstance(renderer, RendererAgg) and shown and renderer.dpi == 144:
            drawn[self.get_figure(root=True)][self] = self.get_window_extent(renderer)

    monkeypatch.setattr(Text, "draw", watched)
    result = CliRunner().invoke(main, ["report", str(tmp_path / "runs")])
    assert result.exit_code == 0, result.output
    assert len(drawn) > 15
    wrong = []
    for figure, found in drawn.items():
        texts = [(text.get_text(), box) for text, box in found.items()]
        width, height = 144 * figure.get_size_inches()
        for i, (text, box) in enumerate(texts):
            if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1:
                wrong.append(f"cut: {text}")
            wrong += [
                f"{text!r} over {other!r}"
                for other, at in texts[:i]
                if min(box.x1, at.x1) - max(box.x0, at.x0) > 2
                and min(box.y1, at.y1) - max(box.y0, at.y0) > 2
            ]
    assert wrong == []
