"""Jinja2's templates for foreign text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def environment(package: str, show: Callable[[Any], str], **options: Any) -> Environment:
    """Of the templates that lie in `package`. Whatever one prints is made harmless by `show`,
    unless it is `Markup`."""
    found = Environment(
        loader=PackageLoader(package, ""),
        undefined=StrictUndefined,
        trim_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else show(value),
        **options,
    )
    found.filters |= {
        "percent": lambda share: f"{100 * share:.1f}",
        "thousands": lambda number: f"{number:,}",
    }
    return found
