"""Report pages that a model can have, and the writing of one page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ctclip_model.config import VERSIONS, compute_fingerprint
from ctclip_model.errors import ConfigurationError
from ctclip_model.files import whole_file
from tasks.labels.label_sources import DEFAULT_SOURCE, LabelSource
from tasks.models.find import ModelReference, find_model
from tasks.run.fingerprints import VERSION, Fingerprint
from tasks.run.stage_run import StageRun
from warehouse import store


@dataclass(frozen=True)
class Page:
    """A page about the evaluations of a model on one split."""

    dataset: str
    split: str
    fingerprint: str
    against: str | None = None  # model whose paired differences open the page
    source: LabelSource = DEFAULT_SOURCE

    @property
    def key(self) -> str:
        return f"{self.dataset}/{self.split}{self.source.mark}"

    @property
    def file_name(self) -> str:
        """The last part of the file's name, behind the model."""
        return self.key.replace("/", "-").replace(" ", "-")


def list_pages(
    data_root: Path, model: ModelReference, against: str | None = None, source: LabelSource = DEFAULT_SOURCE
) -> dict[str, Page]:
    """Lists the pages that a model can have by one source of labels, by key.

    A page's fingerprint changes with any row that the page shows. `against` is a model whose paired differences open
    each page that has them.
    """
    key = {"model_id": model.model_id, "label_source": source.name}
    rows = store.query(data_root, store.load_sql(__package__, "evaluations"), key)
    compared = _list_compared(data_root, model, against, source) if against else set()
    pages = []
    for dataset, split, fingerprints in rows:
        other = against if (dataset, split) in compared else None
        parts = {"metrics": fingerprints, "against": other or "", VERSION: VERSIONS["report"]}
        choice = () if other is None else (other,)
        fingerprint = Fingerprint(compute_fingerprint(VERSIONS["report"], fingerprints, *choice), parts)
        pages.append(Page(dataset, split, fingerprint, other, source))
    return {page.key: page for page in pages}


def check_against(
    data_root: Path, model: ModelReference, against: str | None, source: LabelSource = DEFAULT_SOURCE
) -> None:
    """Raises `ConfigurationError` unless a model has paired differences to the one that it is set against, or None."""
    if against is None:
        return
    refuse_itself(model.model_id, against)
    find_model(data_root, model.preset, against)
    if not _list_compared(data_root, model, against, source):
        raise ConfigurationError(
            f"--against {against}: it has no paired differences to {model.model_id}. They need one data set and split "
            f"on which both were scored by scan and by the labels {source.name!r}, each by its own protocol, and then "
            "`ctclip evaluate` of the newer model"
        )


def refuse_itself(model_id: str, against: str) -> None:
    """Raises `ConfigurationError` for a model that is set against itself."""
    if against == model_id:
        raise ConfigurationError(f"--against {against}: is the model of the page itself: name another one")


def _list_compared(data_root: Path, model: ModelReference, against: str, source: LabelSource) -> set[tuple[str, str]]:
    key = {"model_id": model.model_id, "other_model_id": against, "label_source": source.name}
    return {(dataset, split) for dataset, split in store.query(data_root, store.load_sql(__package__, "compared"), key)}


def make_page(run: StageRun, model: ModelReference, page: Page) -> Path:
    """Writes and records one page, and returns its path."""
    from tasks.report.facts import collect_facts  # not at the top: the planning of pages needs no PyTorch
    from tasks.report.render import render_page

    with store.read(run.data_root) as connection:
        facts = collect_facts(connection, run.data_root, model, page.dataset, page.split, page.against, page.source)
        html = render_page(facts)
    path = run.data_root / "reports" / f"{model.model_id}-{page.file_name}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(html.encode())
    row = {
        "model_id": model.model_id, "dataset": page.dataset, "split": page.split, "label_source": page.source.name,
        "fingerprint": page.fingerprint, "path": str(path.relative_to(run.data_root)),
        "size_bytes": path.stat().st_size,
    }  # fmt: skip
    run.record("pages", [row])
    run.count_done += 1
    return path
