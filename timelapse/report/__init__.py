"""A run's or a study's numbers and videos on one self-contained HTML page; film strips."""

from timelapse.report.run_page import write_report
from timelapse.report.sheet import contact_sheet

__all__ = ["contact_sheet", "write_report"]
