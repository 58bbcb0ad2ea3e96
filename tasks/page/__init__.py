"""The HTML report: one self-contained file, from plain facts."""

from tasks.page.render import PageFacts, render_page

__all__ = ["PageFacts", "render_page"]
