"""Says where two folders of `results.py` differ, but for times, machine and blanks; exit code 1 if anywhere.

    python tests/golden/compare.py BEFORE AFTER

Compared are the keys and everything that cells and studies hold, the sha256 of each cell's files, the JSON, CSV and
text of each page with its pictures, and what the commands printed. How a page's elements nest is not compared.
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from html.parser import HTMLParser
from itertools import islice
from pathlib import Path
from typing import Any

TIMES = {"seconds", "computing time", "begun"}  # keys of JSON, first words of facts, heads of a page's columns
CELLS = {"td", "th", "dt", "dd"}
NOT_COMPARED = TIMES | {"provenance", "seal"}  # of a record
MOST = 12  # lines that are shown of a difference
PATTERNS = ("store/cells/*/cell.json", "store/studies/*.json", "pages/*/*", "printed/*")


# What is compared of a file -----------------------------------------------------------------------------------------


def clean(value: Any) -> Any:
    """JSON without what differs between any two runs."""
    if isinstance(value, dict):
        return {key: clean(one) for key, one in value.items() if key not in NOT_COMPARED}
    if isinstance(value, list):
        return [clean(one) for one in value if not _is_time(one)]
    return value


def _is_time(fact: Any) -> bool:
    """Whether it is a pair of words such as ["computing time", "3 s"]."""
    return isinstance(fact, list) and len(fact) == 2 and isinstance(fact[0], str) and fact[0] in TIMES


class Page(HTMLParser):
    """The text of a page in pieces, its pictures among them; without times and style."""

    def __init__(self, html: str):
        super().__init__()
        self.pieces: list[str] = []
        self._hidden = 0  # open elements whose content is left out
        self._drawing = False
        self._cell = ""  # the element of a table or of a list of facts that is open, one of CELLS
        self._fact = ""  # text of the last <dt>
        self._heads: dict[int, str] = {}  # of the table's columns
        self._column = 0
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self._drawing |= tag == "svg"
        self._hidden += tag == "style"
        if self._drawing:
            self.pieces.append(self.get_starttag_text() or "")
        elif tag == "img":
            self.pieces.append(dict(attrs).get("src") or "")
        elif tag == "table":
            self._heads = {}
        elif tag == "tr":
            self._column = -1
        elif tag in CELLS:
            self._cell = tag
            self._column += 1

    def handle_endtag(self, tag: str) -> None:
        self._drawing &= tag != "svg"
        self._hidden -= tag == "style"
        if tag in CELLS:
            self._cell = ""

    def handle_data(self, data: str) -> None:
        words = " ".join(data.split())
        if not words or self._hidden:
            return
        if self._cell == "dt":
            self._fact = words
        if self._cell == "th":
            self._heads.setdefault(self._column, words)
        if not self._tells_time():
            self.pieces.append(words)

    def _tells_time(self) -> bool:
        if self._cell == "dd":
            return self._fact in TIMES
        return self._cell == "td" and self._heads.get(self._column) in TIMES


def as_json(file: Path) -> list[str]:
    return json.dumps(clean(json.loads(file.read_text(encoding="utf-8"))), indent=1, sort_keys=True).splitlines()


def as_page(file: Path) -> list[str]:
    return Page(file.read_text(encoding="utf-8")).pieces


def as_text(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


READERS: dict[str, Callable[[Path], list[str]]] = {".json": as_json, ".html": as_page}


# Comparing ----------------------------------------------------------------------------------------------------------


def differences(before: Path, after: Path) -> Iterator[str]:
    """A few lines for each file that is not the same in both folders, or is in one alone."""
    for pattern in PATTERNS:
        old, new = ({file.relative_to(folder) for file in folder.glob(pattern)} for folder in (before, after))
        if not old:
            yield f"{before} has no {pattern}: nothing was compared"
        yield from (f"{name} is in {before} alone{_title(before / name)}" for name in sorted(old - new))
        yield from (f"{name} is in {after} alone{_title(after / name)}" for name in sorted(new - old))
        for name in sorted(old & new):
            read = READERS.get(name.suffix, as_text)
            was, now = read(before / name), read(after / name)
            if _joined(was) != _joined(now):
                yield "\n".join([f"{name} differs{_title(before / name)}", *_shown(was, now)])


def _joined(lines: Sequence[str]) -> str:
    """The text without blanks: neither a line's width nor an element more or less is a difference."""
    return "".join("".join(lines).split())


def _title(file: Path) -> str:
    """What a cell is, in words."""
    return f": {json.loads(file.read_text())['title']}" if file.name == "cell.json" else ""


def _shown(was: Sequence[str], now: Sequence[str]) -> list[str]:
    """The first lines of what differs, cut to a width that can be read."""
    lines = (line for line in difflib.unified_diff(was, now, n=0, lineterm="") if line[:3] not in ("---", "+++"))
    return [f"    {line[:160]}" for line in islice(lines, MOST)]


def main() -> int:
    parser = argparse.ArgumentParser(description="Says where two folders of results.py differ.")
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    asked = parser.parse_args()
    found = list(differences(asked.before, asked.after))
    for one in found:
        print(one)
    files = sum(1 for pattern in PATTERNS for _ in asked.before.glob(pattern))
    print(f"{files} files compared, {len(found)} differences")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
