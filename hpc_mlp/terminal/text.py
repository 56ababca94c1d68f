"""Numbers as people write them, foreign text that is safe to show, and values as JSON and YAML."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hpc_mlp.errors import ACTING, printable


def csv_cell(text: object) -> str:
    """Foreign text for CSV: what a spreadsheet would take for a formula begins with `'`."""
    cell = printable(text)
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@")) else cell


def markdown(text: object) -> str:
    """Foreign text for Markdown, as it is: no HTML, link, emphasis, further cell or line."""
    return _MARKDOWN.sub(
        lambda found: f"\\{found[0]}",
        html.escape(printable(text).replace("\\", "\\\\"), quote=False),
    )


def markdown_code(text: object) -> str:
    """Foreign text as a Markdown code span, in a table's cell too."""
    return "`" + printable(text).replace("`", "'").replace("|", "\\|") + "`"


def front_matter(values: Mapping[str, Any]) -> str:
    """The YAML head of a Markdown file, as hubs read it, and the blank line after it. Where it is
    shown as Markdown, no name in it acts: what would is written as a number, as in `"\\x3Cimg"`."""
    # Late: few commands write one.
    import yaml

    def quoted(dumper: Any, text: str) -> Any:
        style = '"' if _ACTIVE.search(text) else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    dumper: Any = type("Dumper", (yaml.SafeDumper,), {})
    dumper.add_representer(str, quoted)
    head = yaml.dump(dict(values), Dumper=dumper, sort_keys=False, allow_unicode=True, width=10**6)
    return f"---\n{_ACTIVE.sub(_in_yaml, head)}---\n\n"


def _in_yaml(found: re.Match[str]) -> str:
    code = ord(found[0])
    return "\n" if found[0] == "\n" else f"\\x{code:02X}" if code < 0x100 else f"\\u{code:04X}"


# But for `<` in sizes such as 1K<n<10K.
_ACTIVE = re.compile(rf"{ACTING.pattern}|[`\[\]]|<(?!n<|\d)")
# An underscore within a word is one.
_MARKDOWN = re.compile(r"[`*\[\]|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def count(number: int, word: str) -> str:
    """`1 run`, `1,000 runs`, `2 classes`"""
    end = "" if number == 1 else "es" if word.endswith("s") else "s"
    return f"{number:,} {word}{end}"


def one_of(number: int, one: str, several: str) -> str:
    """The verb's form: `one` of 1 run *is*, several *are*."""
    return one if number == 1 else several


def listed(names: Sequence[str], most: int) -> str:
    """`["a", "b", "c", "d"]`, 2 → `"a, b and 2 more"`"""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def last_parts(keys: Sequence[str]) -> list[str]:
    """`["optim.lr", "model.dropout"]` → `["lr", "dropout"]`; as they are where two end alike."""
    last = [key.rpartition(".")[2] for key in keys]
    return last if len(set(last)) == len(last) else list(keys)


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts `2` before `10`."""
    # Python makes no number of more than 4,300 digits.
    parts = re.findall(r"[0-9]{1,999}|[^0-9]+", text)
    return (*((0, int(p), "") if p[0] in "0123456789" else (1, 0, p) for p in parts), (2, 0, text))


def without_middle(text: str, most: int) -> str:
    """At most `most` characters: names differ at their ends."""
    if len(text) <= most or most < 3:
        return text
    tail = (most - 1) // 2
    return f"{text[: most - 1 - tail]}…{text[-tail:]}"


def spans(numbers: Iterable[int]) -> str:
    """`[0, 1, 2, 5]` → `"0-2,5"`; the other way round: `config.plan.parse_seeds`."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in found)


def duration(seconds: float) -> str:
    """`3725` → `"1:02:05"`, `65` → `"1:05"`."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def json_text(value: Any, indent: int | None = None) -> str:
    """Strict JSON: what is not finite (the losses of a run that diverged) is null, as JSON has no
    NaN. Characters that act are `\\u` escapes, so that it may be shown, and reads back."""
    text = json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)
    return ACTING.sub(lambda found: "\n" if found[0] == "\n" else f"\\u{ord(found[0]):04x}", text)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
