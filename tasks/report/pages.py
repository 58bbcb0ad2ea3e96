"""Which pages are due, and the writing of one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ctclip_model.config import VERSIONS, compute_fingerprint
from ctclip_model.files import whole_file
from tasks.models.find import ModelReference
from tasks.report.facts import collect_facts
from tasks.report.render import render_page
from tasks.run.fingerprints import VERSION, Fingerprint
from tasks.run.stage_run import StageRun
from warehouse import store


@dataclass(frozen=True)
class Page:
    """One page to write: the evaluations of a model on a data set's split."""

    dataset: str
    split: str
    fingerprint: str

    @property
    def key(self) -> str:
        return f"{self.dataset}/{self.split}"


def list_pages(data_root: Path, model: ModelReference) -> dict[str, Page]:
    """The pages that a model can have, by key; a page is due again when any of its rows moved."""
    with store.read(data_root) as connection:
        rows = connection.execute(_MARKS, [model.model_id]).fetchall()
    pages = [
        Page(
            dataset, split,
            Fingerprint(
                compute_fingerprint(VERSIONS["report"], fingerprints),
                {"metrics": fingerprints, VERSION: VERSIONS["report"]},
            ),
        )
        for dataset, split, fingerprints in rows
    ]  # fmt: skip
    return {page.key: page for page in pages}


def make_page(run: StageRun, model: ModelReference, page: Page) -> Path:
    """Writes one page, whole or not at all, records it, and returns its path."""
    with store.read(run.data_root) as connection:
        html = render_page(collect_facts(connection, run.data_root, model, page.dataset, page.split))
    path = run.data_root / "reports" / f"{model.model_id}-{page.dataset}-{page.split}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(html.encode())
    run.record(
        "pages",
        [
            {
                "model_id": model.model_id, "dataset": page.dataset, "split": page.split,
                "fingerprint": page.fingerprint, "path": str(path.relative_to(run.data_root)),
                "size_bytes": path.stat().st_size,
            }
        ],
    )  # fmt: skip
    run.count_done += 1
    return path


_MARKS = """
with shown as (
    select model_id, dataset, split, fingerprint from current_metrics
    union
    select model_id, dataset, split, fingerprint from model_comparisons
    union
    select model_id, dataset, split, hand.fingerprint
    from current_metrics
    cross join (select distinct fingerprint from current_metrics where label_source = 'hand') as hand
)
select dataset, split, string_agg(fingerprint, ',' order by fingerprint)
from shown
where model_id = ?
group by dataset, split
"""
