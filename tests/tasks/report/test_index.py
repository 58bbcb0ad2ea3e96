"""The index page: complete on any data root, escaped, bounded, linked. In Chromium: phone, screen, keyboard, paper."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from support.command_line import run_ctclip
from support.old_data_root import extract_old_data_root
from support.records import label_rows, report_row, volume_row, wanted_rows, write_run

from ctclip_model.data.abnormalities import ABNORMALITIES
from tasks.report import index as index_module
from tasks.report.index import collect_index, read_schedule, write_index
from tasks.upkeep import own_server
from warehouse import store

SCRIPT = "<script>document.title = 'taken over'</script>"
BAD_MODEL = "a: \"quoted\" 'model' & <b>more #1?"
VOLUMES = ("train_1_a_1", "train_1_a_2", "train_2_a_1", "valid_1_a_1")


def score(model: str, **columns: Any) -> dict[str, Any]:
    row = {
        "model_id": model, "dataset": "ct-rate", "split": "valid", "protocol": "zero-shot", "unit": "scan",
        "label_source": "published", "label_set": "ct-rate-18", "abnormality": "macro", "metric": "auroc",
        "value": 0.7, "ci_low": 0.6, "ci_high": 0.8, "n": 1564,
    }  # fmt: skip
    return row | columns


def model_row(model: str, **columns: Any) -> dict[str, Any]:
    return {"model_id": model, "kind": "ct-clip", "fingerprint": model} | columns


def write_root(root: Path) -> None:
    """A data root with pages, rejects, a stale model and hostile texts."""
    makers = (SCRIPT, "PNMS", "PNMS", None)
    spacings_mm = (0.7, 1.0, 5.0, float("nan"))
    volumes = [
        volume_row(
            name, manufacturer=maker, spacing_z_mm=spacing_mm, count_slices=300, patient_sex="M", patient_age_years=59
        )
        for name, maker, spacing_mm in zip(VOLUMES, makers, spacings_mm, strict=True)
    ]
    labels = [[1] + 17 * [0], [0] * 18, [1] * 18]
    reject = {"stage": "convert", "variant": "recipe", "fingerprint": "f", "is_permanent": True}
    write_run(
        root, 0, "ingest",
        volumes=volumes, reports=[report_row("train_1_a"), report_row("valid_1_a")],
        published_labels=label_rows(["train_1_a", "train_2_a", "valid_1_a"], labels),
        sources=[{"source": "ct-rate:/x", "revision": SCRIPT}],
    )  # fmt: skip
    write_run(
        root, 1, "convert", variant="recipe", wanted=wanted_rows("convert", "recipe", dict.fromkeys(VOLUMES, "f")),
        rejects=[reject | {"item": name, "reason": "bad_values", "detail": SCRIPT} for name in VOLUMES[:2]],
        shard_volumes=[{"volume_name": VOLUMES[2], "recipe_id": "recipe", "fingerprint": "f"}],
    )  # fmt: skip
    write_run(
        root, 2, "evaluate", variant=BAD_MODEL,
        models=[
            model_row(BAD_MODEL, warning=SCRIPT), model_row("plain", recipe_id="recipe", config="{}"),
            model_row("labeller-x", kind="labeller"),
        ],
        wanted=wanted_rows("train", "tiny", {"plain": "f"}),
        model_samples=[{"model_id": "plain", "sample_id": "train_9_a_1", "split": "train", "fingerprint": "f"}],
        metrics=[
            score(BAD_MODEL), score("plain", value=0.9), score("plain", protocol="published", unit="volume", n=3039),
            score("plain", label_source="radgraph", value=0.5),
        ],
        pages=[
            {"model_id": BAD_MODEL, "dataset": "ct-rate", "split": "valid", "path": f"reports/{BAD_MODEL}.html"},
            {"model_id": "plain", "dataset": "ct-rate", "split": "valid", "path": "reports/gone.html"},
        ],
    )  # fmt: skip
    (root / "reports").mkdir()
    (root / "reports" / f"{BAD_MODEL}.html").write_text("<title>the page</title>")
    store.publish(root)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index")
    write_root(folder)
    return folder


@pytest.fixture(scope="module")
def html(root: Path) -> str:
    return write_index(root).read_text()


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)


def find_section(html: str, name: str) -> str:
    (section,) = re.findall(rf'<section aria-labelledby="{name}">.*?</section>', html, re.DOTALL)
    return section


def find_bars(html: str, title: str) -> dict[str, str]:
    (figure,) = re.findall(rf"<figcaption>{title}</figcaption>.*?</figure>", html, re.DOTALL)
    return dict(re.findall(r"<li><span>(.*?)</span><b>(.*?)</b>", figure))


def test_text_of_the_data_stays_text_and_nothing_is_asked_for(html):
    assert "<script" not in html
    assert "<b>more" not in html
    assert html.count("&lt;script&gt;") >= 5  # manufacturer, revision, two rejects, a warning
    assert not re.findall(r"""(?:src|url)\s*[=(]\s*["']?(?!data:)[^"'>\s]+""", html)


def test_links_lead_to_pages_that_are_there(root, html):
    links = re.findall(r'<th scope="row"><a href="([^"]+)"', html)
    assert links == ["a%3A%20%22quoted%22%20%27model%27%20%26%20%3Cb%3Emore%20%231%3F.html"]
    assert "plain <span" in find_section(html, "models")
    assert "(page is gone)" in find_section(html, "models")


@pytest.mark.parametrize("path", ["../secret.html", "/etc/hostname", "warehouse.duckdb", "reports"])
def test_a_path_outside_the_pages_is_no_link(root, path):
    assert index_module._link(root, path) is None


def test_counts_of_the_catalogue_are_those_of_the_volumes(html):
    assert find_bars(html, "manufacturer") == {
        "PNMS": "2 · 50.0 %", "&lt;script&gt;document.title = &#39;taken over&#39;&lt;/script&gt;": "1 · 25.0 %",
        "unknown": "1 · 25.0 %",
    }  # fmt: skip
    assert find_bars(html, "slice spacing") == {
        "below 0.75 mm": "1 · 25.0 %", "1 to 1.5 mm": "1 · 25.0 %", "4 mm or more": "1 · 25.0 %",
        "unknown": "1 · 25.0 %",
    }  # fmt: skip
    assert find_bars(html, "slices") == {"300 to 399": "4 · 100.0 %"}
    assert find_bars(html, "age") == {"40 to 59": "4 · 100.0 %"}
    assert find_bars(html, "sex") == {"male": "4 · 100.0 %"}
    assert find_bars(html, "split") == {"train": "3 · 75.0 %", "valid": "1 · 25.0 %"}


def test_prevalence_counts_scans_of_all_splits(html):
    bars = find_bars(html, "published, ct-rate-18, 3 scans")
    assert len(bars) == len(ABNORMALITIES)
    assert bars[ABNORMALITIES[0]] == "2 · 66.7 %"
    assert bars[ABNORMALITIES[1]] == "1 · 33.3 %"


def test_stages_and_rejects_are_counted_with_examples(html):
    pipeline = find_section(html, "pipeline")
    assert "convert: 1 done, 1 pending, 2 rejected" in pipeline
    assert re.findall(r"<li><b>(.*?)</b>", pipeline)[:3] == ["ingest", "convert", "label"]
    assert "never run" in pipeline
    rejects = find_section(html, "rejects")
    assert "bad_values</th>" in rejects
    assert all(name in rejects for name in VOLUMES[:2])
    assert "with --retry-rejects" in rejects
    assert "file_missing" not in rejects


def test_stale_models_and_warnings_ask_for_attention(html):
    attention = find_section(html, "attention")
    assert "plain is stale: 1 samples moved; `train --retrain` trains anew" in attention
    assert "&lt;script&gt;" in attention  # the warning of a training
    assert "there is no volume of the" not in attention


def test_leaderboard_has_models_alone_that_were_scored_alike(html):
    boards = find_section(html, "leaderboard").split("<h3>")[1:]
    names = [re.findall(r'<th scope="row">(.*?)</th>', board) for board in boards]
    alike, other_labels, published = (
        [board for board in boards if board.startswith(start)]
        for start in ("ct-rate valid, scans-1564, labels published", "ct-rate valid, scans-1564, labels radgraph",
                      "ct-rate valid, volumes-3039, labels published")
    )  # fmt: skip
    assert len(boards) == len(alike) + len(other_labels) + len(published) == 3
    assert names[boards.index(other_labels[0])] == ["plain"]
    assert "plain" in names[boards.index(published[0])]
    together = names[boards.index(alike[0])]
    assert together.index("plain") < len(together) - 1
    assert "CT-CLIP zero-shot (publication)" in together  # the same cohort of 1,564 scans
    assert not any("publication" in name for name in names[boards.index(other_labels[0])])


def test_empty_root_and_root_without_models_have_a_page(tmp_path):
    assert "there is no warehouse in" in write_index(tmp_path / "empty").read_text().lower()
    write_run(tmp_path, 0, "ingest", volumes=[volume_row("train_1_a_1")])
    store.publish(tmp_path)
    html = write_index(tmp_path).read_text()
    for line in (
        "There is no model yet",
        "No model was evaluated yet",
        "There is no label yet",
        "Nothing was rejected",
    ):
        assert line in html


def test_data_root_of_an_earlier_version_has_a_page_with_links(tmp_path):
    old = extract_old_data_root(tmp_path)
    store.publish(old)
    models = find_section(write_index(old).read_text(), "models")
    pages = sorted(page.name for page in (old / "reports").glob("*.html") if page.name != "index.html")
    assert pages == sorted(re.findall(r'<a href="([^"]+)"', models))


def test_page_grows_by_facts_and_not_by_volumes(tmp_path):
    volumes = [volume_row(f"train_{n}_a_1", manufacturer=f"maker {n}") for n in range(500)]
    rejects = [
        {"stage": "convert", "variant": "r", "item": f"train_{n}_a_1", "fingerprint": "f", "reason": "bad_values",
         "detail": "x" * 10_000}
        for n in range(500)
    ]  # fmt: skip
    write_run(tmp_path, 0, "ingest", volumes=volumes, rejects=rejects)
    store.publish(tmp_path)
    html = write_index(tmp_path).read_text()
    assert "and 480 more" in html  # manufacturers
    assert len(set(re.findall(r"train_\d+_a_1", html))) < 10
    assert len(html) < 60_000


def test_run_whose_process_died_is_not_running(tmp_path):
    write_run(tmp_path, 0, "convert", status=None, variant="recipe")
    store.publish(tmp_path)
    assert [row["last_status"] for row in collect_index(tmp_path).runs] == ["died"]


def test_questions_and_the_page_leave_the_warehouse_as_it_is(root, html):
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if "reports" not in path.parts}
    write_index(root)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*") if "reports" not in path.parts} == before


@pytest.fixture
def silent_server() -> Iterator[int]:
    """Port of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_silent_server_leaves_the_schedule_out(silent_server, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{silent_server}/api")
    monkeypatch.setattr(index_module, "SCHEDULE_S", 0.1)
    runs, note = read_schedule()
    assert runs == []
    assert note.startswith("The schedule is left out: the Prefect server did not answer (took more than 0.1 s)")


def test_index_alone_starts_no_server_and_says_that_none_was_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(own_server, "ensure_server", lambda: pytest.fail("a server was started"))
    done = run_ctclip("report", "--index", "--json", "--data-root", tmp_path)
    assert (done.returncode, json.loads(done.stdout)["done"]) == (0, 1)
    (tmp_path / "full").mkdir()
    write_root(tmp_path / "full")
    for url in ("", "http://127.0.0.1:9/api"):
        monkeypatch.setenv("PREFECT_API_URL", url)
        monkeypatch.setenv("CTCLIP_TEMPORARY_SERVER", url)
        assert "so none was asked for a schedule" in write_index(tmp_path / "full").read_text()


@pytest.mark.browser
def test_page_fits_a_phone_and_a_screen_and_works_by_keyboard(browser, root, html):
    browser.problems.clear()
    for width in (360, 1280):
        browser.look(width=width)
        browser.open(root / "reports" / "index.html")
        for is_open in ("false", "true"):
            browser.evaluate(f"document.querySelectorAll('details').forEach(one => one.open = {is_open})")
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("document.title") != "taken over"
    names = browser.evaluate("[...document.querySelectorAll('svg')].map(one => one.getAttribute('aria-label'))")
    assert names
    assert all(names)
    browser.press("Tab", 9)
    assert browser.evaluate("document.activeElement.textContent") == "Pipeline"
    browser.evaluate("document.querySelectorAll('details')[0].open = false")
    browser.evaluate("document.querySelector('summary').focus()")
    browser.press("Enter", 13, "\r")
    assert browser.evaluate("document.querySelectorAll('details')[0].open")
    browser.open(Path(unquote(urlsplit(browser.evaluate("document.querySelector('th a').href")).path)))
    assert browser.evaluate("document.title") == "the page"
    assert browser.problems == []


@pytest.mark.browser
def test_paper_is_white_and_shows_what_is_folded(browser, root, html):
    browser.look(width=1280, is_dark=True, is_print=True)
    browser.open(root / "reports" / "index.html")
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.evaluate("document.querySelector('details table').getBoundingClientRect().height") > 0
