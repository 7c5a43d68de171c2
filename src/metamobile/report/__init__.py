"""A run as one HTML page: run -> charts, evaluation -> page (page.html, page.css, page.js). No torch."""

from metamobile.report.page import write_report

__all__ = ["write_report"]
