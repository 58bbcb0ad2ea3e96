"""Label new and changed reports, once per scan, and score the labeller on hand labels."""

from __future__ import annotations

from typing import Any

from ctclip_model.errors import ConfigurationError
from flows.flow_taking import flow_taking
from flows.options import LabelOptions
from flows.train_labeller import train_labeller
from tasks.labels.labellers import TFIDF, find_labeller_folder, find_newest_labeller, find_questionnaire
from tasks.run.publish import publish_leftovers
from tasks.run.selection import Selection
from tasks.run.splits import require_split
from tasks.settings import LIMITS
from tasks.stages.label import (
    choose_work,
    label_reports,
    note_training_reports,
    plan_hand_scoring,
    plan_labelling,
    score_on_hand_labels,
)
from tasks.stages.stage import as_opaque, stage_run


@flow_taking(LabelOptions, timeout_seconds=LIMITS.stage_timeout_s)
def label(options: LabelOptions) -> dict[str, Any]:
    data_root = options.data_root
    selection = Selection(options.split, None, options.limit)
    publish_leftovers(data_root)
    if options.split is not None:
        require_split(data_root, options.split, items="reports")
    questionnaire = find_questionnaire(options.labeller, options.findings)
    if options.findings is not None and options.hand_labels is not None:
        raise ConfigurationError("--hand-labels scores the 18 abnormalities: leave --findings out")
    if options.labeller == TFIDF and find_newest_labeller(data_root, TFIDF) is None:
        train_labeller(data_root, kind=TFIDF)
    labeller = questionnaire or find_labeller_folder(data_root, options.labeller)
    work = choose_work(labeller, options)
    with stage_run(data_root, "label", labeller.labeller_id) as run:
        if options.trained_on is not None:
            note_training_reports(run, labeller, options.trained_on)
        reports = plan_labelling(run, labeller, work.dtype, selection, options.force, options.retry_rejects)
        if reports:
            label_reports(run, labeller, as_opaque(reports), work)
    if options.hand_labels is None:
        return run.summary()
    with stage_run(data_root, "evaluate", labeller.labeller_id) as evaluation:
        scoring = plan_hand_scoring(evaluation, labeller, options.hand_labels, work.dtype, options.force)
        if scoring is not None:
            score_on_hand_labels(evaluation, labeller, as_opaque(scoring), work)
    return run.summary() | {"hand_labels": evaluation.summary()}
