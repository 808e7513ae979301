"""The report of a run: one HTML page, one JSON file, one table for the terminal."""

from cocomix.report.page import write_report
from cocomix.report.table import summary_table

__all__ = ["summary_table", "write_report"]
