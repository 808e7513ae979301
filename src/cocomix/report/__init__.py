"""Tables, charts, statistics and the templates that every report shares."""

from cocomix.report.page import write_report
from cocomix.report.tables import summary_table

__all__ = [
    "summary_table",
    "write_report",
]
