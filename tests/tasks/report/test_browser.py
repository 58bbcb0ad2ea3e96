"""The report page in a real Chromium: no error, no outside request, sorting, phone, paper, light and dark."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.browser import Browser

from ctclip_model.config import Recipe
from tasks.report.evidence import EvidenceExample, EvidenceFinding
from tasks.report.examples import Example, RankedVolume, draw_slices
from tasks.report.render import OperatingPoints, PageFacts, render_page

pytestmark = pytest.mark.browser
SCRIPT = "<script>document.title = 'taken over'</script>"
SCORES = {"Emphysema": 0.9, "Atelectasis": 0.7, "Lung nodule": None, "Cardiomegaly": 0.8}
LABEL = dict.fromkeys(("ci_low", "ci_high", "average_precision", "f1", "weighted_f1", "accuracy", "precision"), 0.5) | {
    "n_positive": 1,
    "n": 2,
}

POINTS = [(0.1, 1.0, 0.2), (0.5, 0.7, 0.8), (0.9, 0.4, 1.0)]  # (threshold, sensitivity, specificity)


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Browser:
    """An open page that has every section."""
    volume = np.random.default_rng(0).integers(-1000, 400, (16, 32, 32), np.int16)
    pictures = draw_slices(volume, Recipe(spacing_mm=(3.0, 1.5, 1.5), shape=volume.shape))
    panels = [(plane, uri, f"{plane} slice of v") for plane, uri in pictures]
    line = {"Emphysema": [(0.0, 0.0), (1.0, 1.0)]}
    facts = PageFacts(
        "a model", [("0.9", "macro AUROC")],
        labels=[LABEL | {"abnormality": name, "auroc": score} for name, score in SCORES.items()],
        operating_points={"Emphysema": OperatingPoints(POINTS, chosen=0.45, count_positive=10, count=40)},
        curves={"ROC": line, "precision and recall": line, "calibration": line},
        training={"text": [(1, 2.0), (2, 1.0)]},
        against="b", differences=[dict(LABEL, abnormality="Emphysema", difference=0.1)],
        evidence=[EvidenceFinding("Emphysema", 0.9, 0.5, [EvidenceExample("v", 2, 0.8, True, panels)] * 3)],
        examples=[Example("valid_1_a", SCRIPT, 1, 2, [RankedVolume("valid_1_a_1", 1, 0.5, True, pictures)])],
        projection=[(0.0, 0.0, 1), (1.0, 2.0, 3)],
        provenance=[("revision", "abc")],
    )  # fmt: skip
    path = tmp_path / "page.html"
    path.write_text(render_page(facts), encoding="utf-8")
    browser.problems.clear()
    browser.look(width=1200)
    browser.open(path)
    return browser


def first_column(page: Browser) -> list[str]:
    return page.evaluate(
        "[...document.querySelectorAll('table.sortable tbody tr')].map(row => row.cells[0].textContent)"
    )


def test_page_opens_without_an_error_or_an_outside_request(page):
    assert page.evaluate("document.querySelectorAll('svg').length") == 5
    assert page.problems == []


def test_report_that_holds_a_script_stays_text(page):
    assert page.evaluate("document.title") == "a model"
    assert page.evaluate("document.querySelector('blockquote').textContent") == SCRIPT


def test_heading_sorts_the_table_both_ways_with_missing_values_last(page):
    page.evaluate("document.querySelectorAll('th button')[1].click()")
    assert first_column(page) == ["Emphysema", "Cardiomegaly", "Atelectasis", "Lung nodule"]
    page.evaluate("document.querySelectorAll('th button')[1].click()")
    assert first_column(page) == ["Atelectasis", "Cardiomegaly", "Emphysema", "Lung nodule"]
    assert page.evaluate("document.querySelectorAll('table.sortable th')[1].getAttribute('aria-sort')") == "ascending"


def test_table_is_sorted_by_the_keyboard_alone(page):
    page.evaluate("document.querySelector('table.sortable th button').focus()")
    page.press("Tab", 9)
    assert page.evaluate("document.activeElement.textContent") == "AUROC"
    page.press("Enter", 13, "\r")
    assert first_column(page)[0] == "Emphysema"


def test_contents_lead_to_sections_that_fold(page):
    page.evaluate("document.querySelector('nav a[href$=by-abnormality]').click()")
    assert page.evaluate("location.hash") == "#by-abnormality"
    names = "[...document.querySelectorAll('nav li + li a')].map(link => link.textContent)"
    heads = "[...document.querySelectorAll('.section > summary')].map(summary => summary.textContent.trim())"
    assert page.evaluate(names) == page.evaluate(heads)
    page.evaluate("document.querySelector('#by-abnormality > summary').focus()")
    page.press("Enter", 13, "\r")
    assert page.evaluate("document.querySelector('#by-abnormality').open") is False


def test_slider_moves_sensitivity_specificity_and_the_counts(page):
    text = "document.querySelector('.threshold output').textContent"
    assert page.evaluate(text).startswith("0.500: sensitivity 0.700, specificity 0.800; true positives 7, false neg")
    page.evaluate("document.querySelector('.threshold input').focus()")
    page.press("ArrowRight", 39)
    assert page.evaluate(text) == (
        "0.900: sensitivity 0.400, specificity 1.000; true positives 4, false negatives 6, false positives 0, "
        "true negatives 30"
    )
    mark = "[...document.querySelectorAll('svg .mark')].map(mark => +mark.getAttribute('cx'))"
    assert page.evaluate(mark) == [52]  # a false positive rate of 0 is the left end of the ROC curve


def test_chart_names_the_value_under_the_pointer(page):
    place = "(r => [r.left + r.width * 0.98, r.top])(document.querySelector('svg[data-frame]').getBoundingClientRect())"
    x, y = page.evaluate(place)
    event = f"new PointerEvent('pointermove', {{clientX: {x}, clientY: {y}}})"
    page.evaluate(f"document.querySelector('svg[data-frame]').dispatchEvent({event})")
    assert page.evaluate("document.querySelector('svg[data-frame]').nextElementSibling.textContent") == "1.00, 1.00"
    marks = "document.querySelectorAll('svg[data-frame]')[0].querySelectorAll('.mark').length"
    assert page.evaluate(marks) == 2  # the pointer leaves the slider's mark where it is
    page.evaluate("document.querySelector('svg[data-frame]').dispatchEvent(new PointerEvent('pointerleave'))")
    assert page.evaluate(marks) == 1


@pytest.mark.parametrize("width", [360, 1200])
def test_page_is_no_wider_than_the_screen(page, width):
    page.look(width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_every_picture_loads_and_has_a_description(page):
    pictures = page.evaluate("[...document.images].map(image => [image.naturalWidth > 0, image.alt])")
    planes = ("axial", "coronal", "sagittal")
    names = [
        *[f"{plane} slice of v" for plane in planes] * 3,
        *(f"mid-{plane} slice of valid_1_a_1" for plane in planes),
    ]
    assert pictures == [[True, name] for name in names]


def test_colours_follow_the_reader_and_paper_is_white(page):
    colour = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(colour) == "rgb(255, 255, 255)"
    page.look(width=1200, is_dark=True)
    assert page.evaluate(colour) == "rgb(21, 24, 28)"
    page.look(width=1200, is_dark=True, is_print=True)
    assert page.evaluate(colour) == "rgb(255, 255, 255)"
