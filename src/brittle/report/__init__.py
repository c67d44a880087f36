"""Stored cells -> tables, figures and one self-contained page. Reads the store only: needs no model and no data set.

`gather` collects what a study's finished cells say, `table`, `claims_table` and `audit_table` show it in a terminal,
`write` makes a folder of files. matplotlib and jinja2 are imported when a page is written, not before.
"""

from __future__ import annotations

from brittle.report.claims_table import claims_table
from brittle.report.load import gather
from brittle.report.page import write
from brittle.report.sentences import verdict_sentences
from brittle.report.summary import table
from brittle.study.kinds.audit.view import table as audit_table
from brittle.study.store.results import Report

__all__ = ["Report", "audit_table", "claims_table", "gather", "table", "verdict_sentences", "write"]
