"""Report pages that a model can have, and the writing of one page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ctclip_model.config import VERSIONS, compute_fingerprint
from ctclip_model.files import whole_file
from tasks.models.find import ModelReference
from tasks.run.fingerprints import VERSION, Fingerprint
from tasks.run.stage_run import StageRun
from warehouse import store


@dataclass(frozen=True)
class Page:
    """A page about the evaluations of a model on one split."""

    dataset: str
    split: str
    fingerprint: str

    @property
    def key(self) -> str:
        return f"{self.dataset}/{self.split}"


def list_pages(data_root: Path, model: ModelReference) -> dict[str, Page]:
    """Lists the pages that a model can have, by key. A page's fingerprint changes with any row that the page shows."""
    rows = store.query(data_root, store.load_sql(__package__, "evaluations"), [model.model_id])
    pages = []
    for dataset, split, fingerprints in rows:
        parts = {"metrics": fingerprints, VERSION: VERSIONS["report"]}
        fingerprint = Fingerprint(compute_fingerprint(VERSIONS["report"], fingerprints), parts)
        pages.append(Page(dataset, split, fingerprint))
    return {page.key: page for page in pages}


def make_page(run: StageRun, model: ModelReference, page: Page) -> Path:
    """Writes and records one page, and returns its path."""
    from tasks.report.facts import collect_facts  # not at the top: the planning of pages needs no PyTorch
    from tasks.report.render import render_page

    with store.read(run.data_root) as connection:
        html = render_page(collect_facts(connection, run.data_root, model, page.dataset, page.split))
    path = run.data_root / "reports" / f"{model.model_id}-{page.dataset}-{page.split}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(html.encode())
    row = {
        "model_id": model.model_id, "dataset": page.dataset, "split": page.split, "fingerprint": page.fingerprint,
        "path": str(path.relative_to(run.data_root)), "size_bytes": path.stat().st_size,
    }  # fmt: skip
    run.record("pages", [row])
    run.count_done += 1
    return path
