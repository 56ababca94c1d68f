"""What the runs of a sweep are called where there is little room: by what differs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from hpc_mlp.terminal.text import last_parts, without_middle

# Before each key of `dropout-optim.lr=0.1-model.dropout=0.2`, as `config.plan` writes it.
_SETTING = re.compile(r"-(?=\w+(?:\.\w+)+=)")
# Letters of a key that stay where room lacks, or more where keys begin alike.
_LETTERS = 3


def short_names(groups: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Group → its variant, and `lr=0.1 dropout=0.2` of what differs between the variant's groups:
    in all of them in the same order, "" where nothing does."""
    parts = {group: _SETTING.split(group) for group in dict.fromkeys(groups)}
    found: dict[tuple[str, str], set[str]] = {}
    for variant, *settings in parts.values():
        for key, _, value in (setting.partition("=") for setting in settings):
            found.setdefault((variant, key), set()).add(value)
    differ = list(dict.fromkeys(key for (_, key), values in found.items() if len(values) > 1))
    short = dict(zip(differ, last_parts(differ), strict=True))
    names = {}
    for group, (variant, *settings) in parts.items():
        pairs = (setting.split("=", 1) for setting in settings)
        shown = (f"{short[k]}={v}" for k, v in pairs if len(found[variant, k]) > 1)
        names[group] = (variant, " ".join(shown))
    return names


def fitted(titles: Sequence[str], width: int) -> list[str]:
    """`titles` of at most `width` characters: where one is longer, keys lose their ends in all of
    them, and what is still too long its middle, as names differ at their ends."""
    if max(map(len, titles), default=0) > width:
        keys = {key for title in titles for key in re.findall(r"(\S+)=", title)}
        short = {key: _prefix(key, keys) for key in keys}
        titles = [re.sub(r"(\S+)=", lambda m: f"{short[m[1]]}=", title) for title in titles]
    return [without_middle(title, width) for title in titles]


def _prefix(key: str, keys: Iterable[str]) -> str:
    others = [other for other in keys if other != key]
    starts = (key[:n] for n in range(_LETTERS, len(key)))
    return next((s for s in starts if not any(o.startswith(s) for o in others)), key)
