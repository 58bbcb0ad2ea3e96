"""The transformer labeller: its training, its folder, and the published weights."""

import dataclasses
import json
import shutil
import textwrap

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.models import write_radbert
from support.reports import COLUMNS, SIGNS, write_reports

from ctclip_model.config import LabellerConfig, tiny
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.errors import CheckpointError, ConfigurationError, DivergedError
from ctclip_model.labelling.labeller import load_labeller
from ctclip_model.labelling.transformer import TextBags
from ctclip_model.models.held_out import read_held_out
from ctclip_model.training import labeller as labeller_training
from ctclip_model.training.labeller import train_labeller

CONFIG = dataclasses.replace(tiny().labeller, hidden_size=32, epochs=16, patience=16)


def validations(steps):
    return [step.validation_auroc for step in steps if step.validation_auroc is not None]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "labeller-1"
    steps = []
    result = train_labeller(*write_reports(400, seed=0), CONFIG, folder, on_step=steps.append)
    return folder, result, steps


def test_a_labeller_learns_negations_and_is_loaded_from_its_folder(trained):
    folder, result, steps = trained
    labeller = load_labeller(folder)
    reports, labels = write_reports(100, seed=1)
    agreement = ((labeller.label(reports) >= labeller.thresholds) == labels).mean()
    assert agreement > 0.99
    assert result.validation_agreement > 0.99
    assert len(validations(steps)) == CONFIG.epochs
    assert validations(steps)[-1] > 0.99
    assert labeller.labeller_id == "labeller-1"
    assert result.count_parameters == sum(p.numel() for p in labeller.model.parameters())


def test_a_labeller_that_has_learnt_nothing_warns_in_its_card(trained, tmp_path):
    config = dataclasses.replace(CONFIG, learning_rate=0.0, epochs=1)
    train_labeller(*write_reports(120, seed=0), config, tmp_path / "labeller-0")
    held_out = read_held_out(tmp_path / "labeller-0")
    assert held_out is not None
    assert set(held_out.baselines) == {"always absent", "always present", "tf-idf"}
    assert "tf-idf" in held_out.unbeaten
    assert "learnt no more than" in (tmp_path / "labeller-0" / "README.md").read_text()
    assert read_held_out(trained[0]).unbeaten == []
    assert "Warning" not in (trained[0] / "README.md").read_text()


def test_training_stops_early_and_keeps_the_best_epoch_of_the_group_held_out(tmp_path, monkeypatch):
    reports, labels = write_reports(60, seed=0)
    groups = ["a"] * 30 + ["b"] * 30
    config = dataclasses.replace(CONFIG, learning_rate=0.1, epochs=20, patience=2, validation_share=0.5)
    steps, losses_seen = [], []
    measure = labeller_training._Validation.measure
    monkeypatch.setattr(
        labeller_training._Validation, "measure",
        lambda held: losses_seen.append((found := measure(held)).loss) or found,
    )  # fmt: skip
    result = train_labeller(reports, labels, config, tmp_path / "a", groups=groups, on_step=steps.append)
    assert len(losses_seen) == losses_seen.index(min(losses_seen)) + 3 < 20
    assert result.validation_loss == pytest.approx(min(losses_seen))
    probabilities = torch.from_numpy(load_labeller(tmp_path / "a").label(reports)).double()
    losses = F.binary_cross_entropy(probabilities, torch.from_numpy(labels).double(), reduction="none").mean(dim=1)
    by_group = losses.reshape(2, 30).mean(dim=1).tolist()
    assert any(result.validation_loss == pytest.approx(loss, rel=1e-4) for loss in by_group)


def test_labels_do_not_depend_on_order_or_company(trained):
    labeller = load_labeller(trained[0])
    reports = [*write_reports(70, seed=2)[0], "", "There is emphysema. " * 40]
    together = labeller.label(reports)
    order = np.random.default_rng(0).permutation(len(reports))
    assert labeller.label([reports[index] for index in order]) == pytest.approx(together[order], abs=1e-5)
    assert np.concatenate([labeller.label([report]) for report in reports]) == pytest.approx(together, abs=1e-5)
    assert labeller.label([]).shape == (0, len(ABNORMALITIES))


def test_a_labeller_trained_here_reads_reports_without_their_layout(trained):
    labeller = load_labeller(trained[0])
    reports, _ = write_reports(20, seed=3)
    layouts = (str.upper, lambda text: textwrap.fill(text, 40), lambda text: text.replace(". ", ".<br/>"))
    for write in layouts:
        assert (labeller.label([write(report) for report in reports]) == labeller.label(reports)).all()


@pytest.mark.parametrize("form", ["The study is free of {}.", "One does not note {}.", "{} is not perceptible."])
def test_a_denial_in_words_that_no_training_report_has_denies(trained, form):
    labeller = load_labeller(trained[0])
    assert labeller.label([form.format(sign) for sign in SIGNS]).max() < 0.5


@pytest.mark.parametrize("form", ["Impression of {}.", "Evidence of {} is recognised.", "Zonal {} seen, fluffy."])
def test_words_that_no_training_report_has_change_no_label(trained, form):
    labeller = load_labeller(trained[0])
    probabilities = labeller.label([form.format(sign) for sign in SIGNS])
    assert ((probabilities >= 0.5).nonzero()[1] == COLUMNS).all()
    assert labeller.label(["Fluffy zones.", "", "Emphysema is absent."]).max() < 0.5


def test_an_abnormality_is_read_by_its_name_alone(trained):
    probabilities = load_labeller(trained[0]).label(ABNORMALITIES)
    assert (probabilities.argmax(axis=1)[COLUMNS] == COLUMNS).all()


def test_a_labeller_of_an_older_version_gets_reports_as_they_are(trained, tmp_path):
    folder = shutil.copytree(trained[0], tmp_path / "older")
    config = json.loads((folder / "config.json").read_text())
    assert config["config"].pop("normalised")
    assert config["config"].pop("asserted")
    (folder / "config.json").write_text(json.dumps(config))
    older = load_labeller(folder)
    assert (older.label(["There is<br/>emphysema."]) != older.label(["There is emphysema."])).any()


def test_one_text_cannot_both_train_and_validate(tmp_path):
    reports, labels = write_reports(1, seed=0)
    with pytest.raises(ConfigurationError, match="two different reports"):
        train_labeller(reports * 8, labels.repeat(8, axis=0), CONFIG, tmp_path / "a")


def test_the_same_seed_gives_the_same_labeller(tmp_path):
    reports, labels = write_reports(60, seed=0)
    config = dataclasses.replace(CONFIG, epochs=1)
    for name in ("a", "b"):
        train_labeller(reports, labels, config, tmp_path / name)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_killed_training_continues_to_the_same_labeller_bit_by_bit(tmp_path):
    reports, labels = write_reports(60, seed=0)
    config = dataclasses.replace(CONFIG, dropout=0.1, epochs=3, patience=1, learning_rate=0.02)
    losses = {"whole": {}, "killed": {}}

    def stop_after(count, name):
        def on_step(step):
            losses[name][step.step] = step.loss
            if step.step == count:
                raise KeyboardInterrupt

        return on_step

    train_labeller(reports, labels, config, tmp_path / "whole", on_step=stop_after(None, "whole"))
    for count in (2, 5):  # before the first checkpoint, which the end of an epoch of 3 steps leaves, and between two
        with pytest.raises(KeyboardInterrupt):
            train_labeller(reports, labels, config, tmp_path / "killed", on_step=stop_after(count, "killed"))
    train_labeller(reports, labels, config, tmp_path / "killed", on_step=stop_after(None, "killed"))
    assert losses["killed"] == losses["whole"]
    for name in ("model.safetensors", "tokenizer.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert "60 labelled reports" in (tmp_path / "killed/README.md").read_text()


def test_a_loss_that_is_not_finite_names_the_reports(tmp_path):
    reports, labels = write_reports(20, seed=0)
    names = [f"train_{number}_a" for number in range(20)]
    config = dataclasses.replace(CONFIG, learning_rate=torch.inf, batch_size=4, skipped_steps=1)
    with pytest.raises(DivergedError, match=r"after 1 skipped; its samples: ((train_\d+_a|the report '.*?')(, )?){4}$"):
        train_labeller(reports, labels, config, tmp_path / "a", names=names)
    assert not (tmp_path / "a").exists()


def test_labels_that_are_unknown_are_refused(tmp_path):
    reports, labels = write_reports(4, seed=0)
    with pytest.raises(ConfigurationError, match="0 or 1"):
        train_labeller(reports, labels - 1, CONFIG, tmp_path / "a")


def test_bags_hold_each_sentence_once():
    bags = TextBags.collect(["One. Two.", "Two.", ""], by_sentence=True)
    assert bags.texts == ["One.", "Two.", ""]
    assert bags.members.tolist() == [[0, 1], [1, 1], [2, 2]]
    assert TextBags.collect(["One. Two.", "One. Two."], by_sentence=False).members.tolist() == [[0], [0]]


@pytest.fixture
def radbert(tmp_path):
    return write_radbert(tmp_path / "radbert")


def test_the_published_labeller_is_loaded_and_reads_reports_whole(radbert, tmp_path):
    labeller = load_labeller(radbert)
    assert labeller.thresholds.tolist() == [LabellerConfig().threshold] * len(ABNORMALITIES)
    assert labeller.labeller_id.startswith("radbert-")
    report = "There is EMPHYSEMA.There is  no\nnodule."
    tokens = labeller.tokenizer(report, return_tensors="pt")
    with torch.inference_mode():
        expected = labeller.model(tokens["input_ids"], tokens["attention_mask"]).sigmoid()
    assert labeller.label([report, "Short."])[0] == pytest.approx(expected.numpy()[0], abs=1e-5)

    weights = tmp_path / "RadBertClassifier.pth"
    weights.write_bytes((radbert / "RadBertClassifier.pth").read_bytes())
    assert load_labeller(weights, base=radbert).label([report]) == pytest.approx(expected.numpy(), abs=1e-5)


def test_a_folder_without_a_labeller_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="model folder"):
        load_labeller(tmp_path)
