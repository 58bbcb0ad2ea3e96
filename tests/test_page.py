"""The report page: self-contained, escaped, and complete from few facts."""

import re

from tasks.page import PageFacts, render_page

LABEL = {
    "abnormality": "Emphysema", "auroc": 0.91234, "ci_low": 0.85, "ci_high": None, "average_precision": 0.5, "f1": 0.4,
    "weighted_f1": 0.8, "accuracy": 0.75, "precision": 0.3, "n_positive": 12, "n": 40,
}  # fmt: skip
BOARD = {"model": "x", "dataset": "d", "protocol": "p", "auroc": 0.5, "weighted_f1": None, "accuracy": None, "n": 3}


def test_page_makes_no_outside_request():
    html = render_page(PageFacts("t", [("0.9", "AUROC")], labels=[LABEL], roc={"Emphysema": [(0, 0), (1, 1)]}))
    assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?!data:)[^"'>\s]+""", html)
    assert "http" not in html


def test_text_of_the_data_stays_text():
    attack = "<script>alert(1)</script>"
    row = LABEL | {"abnormality": attack}
    html = render_page(
        PageFacts(attack, [], labels=[row], roc={attack: [(0, 0), (1, 1)]}, provenance=[(attack, attack)])
    )
    assert attack not in html
    assert "&lt;script&gt;" in html


def test_numbers_are_rounded_and_missing_ones_are_dashes():
    html = render_page(PageFacts("t", [], labels=[LABEL]))
    assert "<td>0.912</td>" in html
    assert "<td>\N{EN DASH}</td>" in html


def test_our_rows_stand_out_from_the_published():
    rows = [BOARD | {"is_published": True}, BOARD | {"model": "ours", "is_published": False}]
    html = render_page(PageFacts("t", [], leaderboard=rows))
    assert re.findall(r'<tr class="ours">\s*<td>(\w+)', html) == ["ours"]


def test_every_chart_says_what_it_shows():
    html = render_page(PageFacts("t", [], roc={"Emphysema": [(0, 0), (1, 1)]}, training={"text": [(1, 2.0), (2, 1.0)]}))
    charts = re.findall(r'<svg[^>]*role="img" aria-label="([^"]+)"', html)
    assert charts == ["ROC curve of Emphysema", "loss of the text phase, 2.000 at first, 1.000 at last"]


def test_page_without_any_result_is_still_a_page():
    assert "Nothing was rejected" in render_page(PageFacts("t", []))
