"""Pages, figures and tables made from rows. Nothing here computes a score: a report is a function of its rows."""

from medpfl.reporting.flags import FLAGS
from medpfl.reporting.masks import mask_lines
from medpfl.reporting.pages import write_pages
from medpfl.reporting.patients import patient_lines
from medpfl.reporting.tables import terminal_table
from medpfl.reporting.verdict import verdict_sentences

__all__ = ["FLAGS", "mask_lines", "patient_lines", "terminal_table", "verdict_sentences", "write_pages"]
