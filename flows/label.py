"""Label reports with a trained labeller: once a scan, and only those whose text or labeller changed.

With a file of hand labels, how well the labeller reads is scored as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow

from ctclip_model.device import Precision
from flows.train_labeller import train_labeller
from tasks.labels.labellers import TFIDF, find_labeller, find_newest_labeller
from tasks.run.pending import Selection
from tasks.run.publish import publish_leftovers
from tasks.settings import DATA_ROOT, LABELLER, LIMITS
from tasks.stages.label import (
    label_reports,
    note_training_reports,
    plan_hand_scoring,
    plan_labelling,
    score_on_hand_labels,
)
from tasks.stages.stage import as_opaque, stage_run


@flow(name="label", timeout_seconds=LIMITS.stage_timeout_s)
def label(
    data_root: Path = DATA_ROOT,
    labeller: str = LABELLER,
    split: str | None = None,
    limit: int | None = None,
    force: bool = False,
    retry_rejects: bool = False,
    device: str = "auto",
    dtype: Precision = Precision.float32,
    hand_labels: Path | None = None,
    trained_on: Path | None = None,
) -> dict[str, Any]:
    """Label reports; `labeller` is `radbert`, `tfidf`, the identifier of a trained labeller, or a path to one.

    `tfidf` is the labeller of that kind that was trained last; where none has been, one is trained first, in seconds.
    `hand_labels` is a CSV that scores the labeller, `trained_on` one of the reports that an imported labeller was
    trained on, which never score it.
    """
    publish_leftovers(data_root)
    if labeller == TFIDF and find_newest_labeller(data_root, TFIDF) is None:
        train_labeller(data_root, kind=TFIDF)
    opened = find_labeller(data_root, labeller)
    with stage_run(data_root, "label", opened.labeller_id) as run:
        if trained_on is not None:
            note_training_reports(run, opened, trained_on)
        texts = plan_labelling(run, opened, dtype, Selection(split, None, limit), force, retry_rejects)
        label_reports(run, opened, as_opaque(texts), device, dtype)
    if hand_labels is None:
        return run.summary()
    with stage_run(data_root, "evaluate", opened.labeller_id) as evaluation:
        scoring = plan_hand_scoring(evaluation, opened, hand_labels, dtype, force)
        score_on_hand_labels(evaluation, opened, as_opaque(scoring), device, dtype)
    return run.summary() | {"hand_labels": evaluation.summary()}
