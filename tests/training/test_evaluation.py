"""Held-out conversations are never learned, and their figures measure the draft."""

from dataclasses import replace

import pytest

from fspad_bench.training import evaluation
from fspad_bench.training.networks import initial_network
from fspad_bench.training.trainer import Trainer


def test_held_out_conversations_are_never_learned(trainer):
    training = trainer()
    learned = {s for group in training.plan for s in group}
    assert not learned & set(training.held_out.sequences)
    assert len(training.held_out.sequences) >= 1


def test_a_better_draft_gives_more_tokens_per_step(trainer, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "PROBES", 8)
    monkeypatch.setattr(evaluation, "PROBE_TOKENS", 64)
    training = trainer()
    before = training.held_out.tokens_per_step(training.objective)
    training.run(tmp_path / "out", checkpoint_every=1e9)
    assert 1 <= before <= training.held_out.tokens_per_step(training.objective) <= 3


def test_a_large_data_set_is_measured_in_part(trainer, monkeypatch):
    training = trainer()
    monkeypatch.setattr(evaluation, "MOST_TOKENS", 1)
    held_out = evaluation.HeldOut(training.target, training.features, training.vocabulary)
    assert held_out.sequences == training.held_out.sequences
    assert len(held_out.measured) == 1


@pytest.mark.parametrize("vocabulary", ["head", "prompt"])
def test_the_ceiling_is_the_share_of_choices_that_the_draft_can_propose(trainer, vocabulary):
    full = trainer()
    usual = full.vocabulary.base_ids
    part = Trainer(
        full.target,
        full.features,
        usual[usual % 3 > 0],
        initial_network(full.target, "fspad", 0),
        replace(full.recipe, vocabulary=vocabulary),
    )
    proposable = []
    for s in part.held_out.measured:
        batch = full.features.load([s])
        positions = batch.supervised[0].nonzero()[:, 0].tolist()
        for position, choice in zip(positions, batch.choice.tolist(), strict=True):
            text = batch.ids[0, : position + 2].tolist() if vocabulary == "prompt" else []
            proposable.append(choice % 3 > 0 or choice in text)
    share = sum(proposable) / len(proposable)
    assert full.evaluate()["vocabulary_ceiling"] == 1
    assert part.evaluate()["vocabulary_ceiling"] == pytest.approx(share)
    assert 0 < share < 1
