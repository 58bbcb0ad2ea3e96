"""Sources of labels: the published labels, labellers, and imported files. Each has labels of one label set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ctclip_model.data.label_sets import BUILT_IN, CT_RATE_18, Finding, LabelSet
from ctclip_model.errors import MissingInputError
from tasks.run.stage_run import StageRun
from tasks.settings import PUBLISHED_LABELS
from warehouse import store

BY = " by "  # between a key of work, or a variant, and the labels that it is by


def mark_labels(name: str) -> str:
    """The end of a key of work by labels of a name. Empty for the published ones."""
    return "" if name == PUBLISHED_LABELS else f"{BY}{name}"


def split_mark(key: str) -> tuple[str, str]:
    """A key without its `mark_labels`, and the labels."""
    unmarked, _, name = key.partition(BY)
    return unmarked, name or PUBLISHED_LABELS


@dataclass(frozen=True)
class LabelSource:
    """A source of labels, by its name in `--labels`, and the set of its findings."""

    name: str
    label_set: LabelSet

    @property
    def is_default(self) -> bool:
        return self.name == PUBLISHED_LABELS

    @property
    def mark(self) -> str:
        """The end of a key of work by these labels. Empty for the published ones."""
        return mark_labels(self.name)

    @property
    def parts(self) -> tuple[str, ...]:
        """Parts of a training's fingerprint: the source and, of other findings than the 18, the set's fingerprint."""
        return (self.name,) if self.label_set.is_built_in else (self.name, self.label_set.fingerprint)


DEFAULT_SOURCE = LabelSource(PUBLISHED_LABELS, CT_RATE_18)


def find_label_source(data_root: Path, name: str) -> LabelSource:
    """Finds a source of labels by its name. Raises `MissingInputError` that lists all names for an unknown one."""
    if name == PUBLISHED_LABELS:
        return DEFAULT_SOURCE
    sources = list_label_sources(data_root)
    if name not in sources:
        raise MissingInputError(
            f"there are no labels {name!r}: `ctclip import-labels FILE --name {name}` imports some, and "
            f"`ctclip label` makes some. There are: {', '.join(sources)}"
        )
    return LabelSource(name, read_recorded_sets(data_root)[sources[name]])


def list_label_sources(data_root: Path) -> dict[str, str]:
    """Label set of each source of labels, by the source's name: published, imported ones, labellers."""
    rows = store.query(
        data_root,
        "select label_source, label_set from current_label_sources union "
        "select distinct labeller_id, ? from current_labels where label_set is null order by all",
        [BUILT_IN],
    )
    return {PUBLISHED_LABELS: BUILT_IN} | dict(rows)


def read_recorded_sets(data_root: Path) -> dict[str, LabelSet]:
    """Label sets of the data root by name: the built-in one, and those of imports."""
    if not store.query(data_root, "select 1 from duckdb_views() where view_name = 'current_label_sets'"):
        return {BUILT_IN: CT_RATE_18}  # a warehouse of an earlier version, until its next publish
    rows = store.query(
        data_root,
        "select label_set, finding, prompt_present, prompt_absent from current_label_sets order by label_set, position",
    )
    findings: dict[str, list[Finding]] = {}
    for name, *finding in rows:
        findings.setdefault(name, []).append(Finding(*finding))
    return {BUILT_IN: CT_RATE_18} | {name: LabelSet(name, tuple(ones)) for name, ones in findings.items()}


def record_set(run: StageRun, label_set: LabelSet) -> None:
    """Records the findings and prompts of a set, unless they are recorded."""
    known = store.query(
        run.data_root, "select distinct fingerprint from current_label_sets where label_set = ?", [label_set.name]
    )
    if known == [(label_set.fingerprint,)]:
        return
    common = {"label_set": label_set.name, "fingerprint": label_set.fingerprint}
    run.record(
        "label_sets",
        [
            common | {"position": position, "finding": one.name, "prompt_present": one.present,
                      "prompt_absent": one.absent}
            for position, one in enumerate(label_set.findings)
        ],
    )  # fmt: skip
