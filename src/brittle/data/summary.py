"""What results say of themselves in a notebook or an interpreter."""

from __future__ import annotations

import html
from collections.abc import Mapping


def as_text(title: str, facts: Mapping[str, object]) -> str:
    """The title, then a line for each fact."""
    width = max(map(len, facts), default=0)
    return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in facts.items())])


def as_html(title: str, facts: Mapping[str, object]) -> str:
    """A small table of the facts, everything escaped."""
    rows = "".join(
        f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
        f"<td style='text-align:left'>{html.escape(str(value))}</td></tr>"
        for name, value in facts.items()
    )
    return f"<table><caption>{html.escape(title)}</caption>{rows}</table>"
