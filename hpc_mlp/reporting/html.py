"""Building blocks of the page: escaped text in, HTML text out. Nothing here knows about runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape as html_escape
from importlib.resources import files

from hpc_mlp.errors import printable
from hpc_mlp.reporting.figures import Drawn

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # load nothing from anywhere
GROWN = 1.2  # a figure may be drawn this much larger than it was made, to fill its column


class Html(str):
    """Text that is HTML already; everything else is escaped."""


def escape(value: str) -> str:
    """Text, or an attribute, in which nothing acts: no tag, no control character, no change of direction."""
    return html_escape(printable(value, keep="\n"))


def text(value: object) -> str:
    return value if isinstance(value, Html) else escape(str(value))


def join(*parts: object) -> Html:
    return Html("\n".join(text(part) for part in parts if part != ""))


def paragraph(*parts: object, kind: str = "") -> Html:
    attribute = f' class="{kind}"' if kind else ""
    return Html(f"<p{attribute}>{''.join(text(part) for part in parts)}</p>")


def bullets(items: Iterable[object]) -> Html:
    return Html("<ul>" + "".join(f"<li>{text(item)}</li>" for item in items) + "</ul>")


def code(value: object) -> Html:
    return Html(f"<code>{text(value)}</code>")


def preformatted(value: object) -> Html:
    return Html(f"<pre>{text(value)}</pre>")


def heading(value: object) -> Html:
    return Html(f"<h3>{text(value)}</h3>")


def details(summary: object, *parts: object) -> Html:
    return Html(f"<details><summary>{text(summary)}</summary>{join(*parts)}</details>")


def swatch(color: int) -> Html:
    """A dot in the colour that the figures give a group."""
    return Html(f'<span class="swatch" style="background:var(--c{color})"></span>')


def table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "", marked: int = -1
) -> Html:
    """A table that scrolls in itself where the page is narrow. Columns whose name starts with `#` hold
    numbers and stand at the right; row `marked` is set off."""
    kinds = ["num" if column.startswith("#") else "" for column in columns]
    head = "".join(_cell("th", kind, column.lstrip("#")) for kind, column in zip(kinds, columns, strict=True))
    body = "".join(
        f"<tr{' class=' + chr(34) + 'marked' + chr(34) if number == marked else ''}>"
        + "".join(_cell("td", kind, value) for kind, value in zip(kinds, row, strict=True))
        + "</tr>"
        for number, row in enumerate(rows)
    )
    head = f"<thead><tr>{head}</tr></thead>" if any(columns) else ""
    above = f"<caption>{escape(caption)}</caption>" if caption else ""
    return Html(f'<div class="scroll" tabindex="0"><table>{above}{head}<tbody>{body}</tbody></table></div>')


def _cell(tag: str, kind: str, value: object) -> str:
    attribute = f' class="{kind}"' if kind else ""
    return f"<{tag}{attribute}>{text(value)}</{tag}>"


def figure(drawn: Drawn) -> Html:
    """A figure, as wide as the page allows up to its own size; a wide one scrolls on a phone."""
    least = f"min-width:{0.9 * drawn.width:.0f}px;" if drawn.wide else ""
    size = f"{least}max-width:{GROWN * drawn.width:.0f}px"
    return Html(
        f'<figure class="{"wide" if drawn.wide else "panel"}" id="figure-{escape(drawn.name)}">'
        f'<div class="scroll"><div style="{size}">{drawn.svg}</div></div></figure>'
    )


def panels(items: Iterable[Drawn | Html]) -> Html:
    """Figures and tables side by side where there is room. A wide figure has a row of its own."""
    inside = join(*(figure(item) if isinstance(item, Drawn) else item for item in items))
    return Html(f'<div class="panels">{inside}</div>') if inside else Html("")


@dataclass(frozen=True)
class Picture:
    uri: str
    alt: str
    caption: Html


def gallery(pictures: Iterable[Picture], kind: str = "") -> Html:
    items = "".join(
        f'<figure><img src="{picture.uri}" alt="{escape(picture.alt)}">'
        f"<figcaption>{picture.caption}</figcaption></figure>"
        for picture in pictures
    )
    return Html(f'<div class="gallery {kind}">{items}</div>')


@dataclass(frozen=True)
class Section:
    anchor: str
    title: str
    body: Html


def page(title: str, subtitle: str, sections: Sequence[Section], footer: str) -> str:
    """The whole document. Its policy lets a browser load nothing that is not inside the file."""
    css = files("hpc_mlp.reporting").joinpath("page.css").read_text(encoding="utf-8")
    links = "".join(f'<a href="#{section.anchor}">{escape(section.title)}</a>' for section in sections)
    bodies = "\n".join(
        f'<section id="{section.anchor}"><h2>{escape(section.title)}</h2>\n{section.body}\n</section>'
        for section in sections
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{css}</style>
</head>
<body>
<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header>
<nav aria-label="Sections">{links}</nav>
<main>
{bodies}
</main>
<footer>{escape(footer)}</footer>
</body>
</html>
"""
