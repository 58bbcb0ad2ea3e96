"""The page of `ctclip predict --page`: pictures, decisions, failures; in Chromium: phone, paper, light and dark."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.command_line import run_ctclip
from support.models import save_random_model
from support.volumes import save_nifti

from ctclip_model.config import tiny
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.evaluation.decisions import Cohort, DecisionRule, Decisions, write_decisions
from ctclip_model.files import sha256_of
from tasks.report import own_ct

BAD_NAME = "<script>document.title = 1<" + "\n.nii"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with and one without an evaluation, a study of two volumes and a truncated one, and its page."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "study").mkdir()
    for number, name in enumerate((BAD_NAME, "b.nii.gz")):
        voxels = np.random.default_rng(number).integers(-1000, 500, (30, 30, 20), dtype=np.int16)
        save_nifti(folder / "study" / name, voxels, (9.0, 9.0, 9.0))
    (folder / "study" / "cut.nii.gz").write_bytes((folder / "study" / "b.nii.gz").read_bytes()[:2000])
    for name in ("plain", "evaluated"):
        save_random_model(folder / "models" / name, tiny())
    cohort = Cohort("ct-rate", "valid", "zero-shot", "published", "20261127T000000000000-abc", 652, 651)
    rules = tuple(
        DecisionRule(name, float(index > 3), 1.0, 0.0, 0.83, 0.79, 900, 100)
        for index, name in enumerate(ABNORMALITIES) if index != 7
    )  # fmt: skip
    model = folder / "models" / "evaluated"
    write_decisions(model, Decisions(sha256_of(model / "model.safetensors"), cohort, rules))
    return folder


def make_page(folder: Path, model: str = "evaluated") -> Path:
    path = folder / f"{model}.html"
    result = run_ctclip("predict", folder / "study", "--data-root", folder, "--model", model, "--page", path)
    assert result.returncode == 1  # for the truncated one
    return path


def test_page_escapes_names_and_says_what_it_is(folder):
    html = make_page(folder).read_text()
    assert "<script" not in html
    assert "This is not a medical device" in html
    assert "fitted on 651 patients, counted on 652 others" in html
    assert html.count("<img ") == 2 * 3 * 3  # volumes, present abnormalities shown, planes
    plain = make_page(folder, "plain").read_text()
    assert "uncalibrated softmax scores, and nothing is decided" in plain
    assert '<th scope="col">decision' not in plain


def test_pictures_end_at_the_bound_and_the_page_says_so(folder, monkeypatch):
    monkeypatch.setattr(own_ct, "PICTURE_BYTES", 0)
    html = make_page(folder).read_text()
    assert html.count("<img ") == 0
    assert html.count("The page holds no more pictures.") == 2


def test_a_full_disk_is_one_line_and_the_old_page_stays(folder, tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        result = run_ctclip(
            "predict", folder / "study" / "b.nii.gz", "--data-root", folder, "--model", "plain", "--page", path
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert result.returncode == 1
    assert result.stderr == f"ctclip: {path}: the page cannot be written: File too large\n"
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("page.html", "old")]


def test_a_page_needs_a_place(folder, tmp_path):
    result = run_ctclip("predict", folder / "study", "--data-root", folder, "--model", "plain", "--page", tmp_path)
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (1, "", 1)


def test_a_page_beside_rows_shows_every_volume_also_those_with_a_row(folder, tmp_path):
    page, rows, maps = tmp_path / "a.html", tmp_path / "a.csv", tmp_path / "maps"
    call = ["predict", folder / "study", "--data-root", folder, "--model", "evaluated"]
    call += ["--page", page, "--output", rows, "--evidence", maps]
    assert "2 rows added, 0 were there, 1 of 3 failed" in run_ctclip(*call).stdout
    assert page.read_text() == make_page(folder).read_text()
    whole, written = page.read_text(), rows.read_bytes()
    rows.write_bytes(b"".join(written.splitlines(keepends=True)[:2]))  # as a killed call leaves it
    shutil.rmtree(maps / "b")
    assert "1 rows added, 1 were there" in run_ctclip(*call).stdout
    assert page.read_text() == whole
    assert rows.read_bytes() == written
    assert len(list(maps.iterdir())) == 2


@pytest.mark.browser
def test_page_fits_a_phone_and_a_screen_and_has_pictures_with_descriptions(browser, folder):
    path = make_page(folder)
    browser.problems.clear()
    for width in (360, 1280):
        browser.look(width=width)
        browser.open(path)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
    pictures = browser.evaluate("[...document.images].map(image => [image.naturalWidth > 0, image.alt])")
    assert all(is_loaded and "slice through the strongest patch" in alt for is_loaded, alt in pictures)
    words = "[...document.querySelectorAll('table.decisions')].map(table => table.rows[1].cells[2].textContent)"
    assert browser.evaluate(words) == ["present", "present"]
    assert browser.evaluate("document.querySelector('nav').textContent.includes('failed: ')")
    assert browser.problems == []


@pytest.mark.browser
def test_colours_follow_the_reader_and_paper_is_white(browser, folder):
    browser.open(make_page(folder))
    colour = "getComputedStyle(document.body).backgroundColor"
    for is_dark, is_print, expected in (
        (False, False, "255, 255, 255"),
        (True, False, "21, 24, 28"),
        (True, True, "255, 255, 255"),
    ):
        browser.look(width=1280, is_dark=is_dark, is_print=is_print)
        assert browser.evaluate(colour) == f"rgb({expected})"
