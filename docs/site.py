"""Puts the repository's own pages (CHANGELOG, SECURITY, CONTRIBUTING) into the site, and corrects the links to them."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("CHANGELOG.md", "SECURITY.md", "CONTRIBUTING.md")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages of the repository's root."""
    for name in PAGES:
        text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links that leave the folder of the docs lead to the added pages."""
    return re.sub(rf"\]\((?:\.\./)+({'|'.join(PAGES)})", rf"]({'../' * page.file.src_uri.count('/')}\1", markdown)
