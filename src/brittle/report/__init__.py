"""Stored cells -> tables, figures and one self-contained page. Reads the store only: needs no model and no data set.

`gather` collects what a study's finished cells say, `table`, `claims_table` and `audit_table` show it in a terminal,
`write` makes a folder of files. matplotlib and jinja2 are imported when a page is written, not before.
"""

from __future__ import annotations

from brittle.report.audited import table as audit_table
from brittle.report.contents import Report
from brittle.report.gather import gather
from brittle.report.page import write
from brittle.report.tables import claims_table, table
from brittle.report.verdicts import verdict_sentences

__all__ = ["Report", "audit_table", "claims_table", "gather", "table", "verdict_sentences", "write"]
