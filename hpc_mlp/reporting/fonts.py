"""Class names in any script on figures: an installed font that has the characters, else something
legible.

This is for PNG files; SVG files and the page name their characters, and the viewer's fonts draw
them."""

from __future__ import annotations

import re
import unicodedata
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.font_manager import FontProperties
from matplotlib.ft2font import FT2Font

# Comes with matplotlib; Greek, Cyrillic, Arabic and Hebrew too.
LATIN = "DejaVu Sans"
# Parts of the file names of fonts with Chinese, Japanese or Korean characters.
_EAST_ASIAN = re.compile(
    r"cjk|sourcehansans|wqy|ipa(ex)?g|takao|vlgothic|hiragino|yugoth|meiryo|msgothic|msyh|simhei"
    r"|malgun|nanumgothic|pingfang|applegothic|droidsansfallback|uming|ukai",
    re.IGNORECASE,
)


@cache
def families() -> list[str]:
    """For matplotlib's `font.family`, by the system's files: matplotlib remembers old ones."""
    found = [LATIN]
    known = {entry.fname: entry.name for entry in font_manager.fontManager.ttflist}
    for file in sorted(font_manager.findSystemFonts()):
        if not _EAST_ASIAN.search(Path(file).name):
            continue
        try:
            if file not in known:
                font_manager.fontManager.addfont(file)
                known[file] = font_manager.fontManager.ttflist[-1].name
        except (OSError, RuntimeError):
            # A file that is no font, or of a kind that FreeType does not read.
            continue
        if known[file] not in found:
            found.append(known[file])
    return found[:4]


@cache
def _characters() -> frozenset[int]:
    """What the fonts of `families` have."""
    files = {font_manager.findfont(name) for name in families()}
    return frozenset(code for file in files for code in FT2Font(file).get_charmap())


@lru_cache(maxsize=4096)
def legible(text: str) -> str:
    """`text` with what no font has told by name: 🐱 → `cat face`, カ → `ka`, 猫 → `U+732B`."""
    if text.isascii() or all(ord(char) in _characters() for char in text):
        return text
    words: list[str] = []
    kept = ""
    for char in text:
        # Joins emoji, chooses a variant.
        if char in "\u200d\ufe0f":
            continue
        if char.isascii() or ord(char) in _characters():
            kept += char
        elif not unicodedata.category(char).startswith("M"):
            words += [kept, _name(char)]
            kept = ""
    return " ".join(word for part in (*words, kept) if (word := part.strip()))


def _name(char: str) -> str:
    name = unicodedata.name(char, "")
    if not name or "CJK" in name:
        return f"U+{ord(char):04X}"
    if name.startswith(("HANGUL SYLLABLE", "HIRAGANA", "KATAKANA")):
        return name.split()[-1].lower()
    return name.lower()


class _Renderer(RendererAgg):  # type: ignore[misc]
    def draw_text(self, gc: Any, x: Any, y: Any, s: str, *others: Any, **more: Any) -> None:
        super().draw_text(gc, x, y, legible(s), *others, **more)

    def get_text_width_height_descent(self, s: str, prop: Any, ismath: Any) -> Any:
        return super().get_text_width_height_descent(legible(s), prop, ismath)


@lru_cache(maxsize=16384)
def width_of(line: str, size: float, bold: bool = False) -> float:
    """Points that a line takes, in letters of `size` points."""
    font = FontProperties(size=size, weight="bold" if bold else "normal")
    # Letters keep to whole pixels: four of them a point.
    width, _, _ = _Renderer(1, 1, 288).get_text_width_height_descent(line, font, False)
    return float(width) / 4


class Canvas(FigureCanvasAgg):  # type: ignore[misc]
    """Draws all text `legible`."""

    def get_renderer(self) -> RendererAgg:
        width, height = self.figure.bbox.size
        key = width, height, self.figure.dpi
        if key != getattr(self, "_key", None):
            self.renderer, self._key = _Renderer(*key), key
        return self.renderer
