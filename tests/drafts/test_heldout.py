"""Held-out conversations are not learned, and their figures say how good a draft is."""

import pytest
import torch

from fspad_bench.drafts import heldout
from fspad_bench.drafts.train import Trainer


def test_held_out_conversations_are_never_learned(trainer):
    made = trainer()
    assert not {s for group in made.plan for s in group} & set(made.held_out.sequences)
    assert len(made.held_out.sequences) >= 1


def test_a_better_draft_makes_more_tokens_a_step(trainer, tmp_path):
    made = trainer()
    before = made.held_out.tokens_per_step(made.objective)
    made.run(tmp_path / "out", checkpoint_every=1e9)
    assert 1 <= before <= made.held_out.tokens_per_step(made.objective) <= 3


def test_a_large_data_set_is_measured_in_part(trainer, monkeypatch):
    made = trainer()
    monkeypatch.setattr(heldout, "MOST_TOKENS", 1)
    part = heldout.HeldOut(made.target, made.features, made.vocabulary)
    assert (part.sequences, len(part.measured)) == (made.held_out.sequences, 1)


def test_the_ceiling_is_the_share_of_choices_that_the_draft_can_say(trainer):
    made = trainer()
    few = made.vocabulary[made.vocabulary % 3 > 0]
    part = Trainer(made.target, made.features, few, made.network.shape, made.recipe)
    choices = torch.cat([made.features.load([s]).choice for s in part.held_out.measured])
    share = float((choices % 3 > 0).float().mean())
    assert made.evaluate()["vocabulary_ceiling"] == 1
    assert part.evaluate()["vocabulary_ceiling"] == pytest.approx(share)
    assert 0 < share < 1


def test_an_index_is_the_inverse_of_a_vocabulary():
    vocabulary = torch.tensor([1, 4, 5])
    index = heldout.index_of(vocabulary, 7)
    assert index.tolist() == [-1, 0, -1, -1, 1, 2, -1]
