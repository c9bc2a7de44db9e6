"""Held-out conversations are not learned, and their figures say how good a draft is."""

from dataclasses import replace

import pytest

from fspad_bench.training import evaluation as heldout
from fspad_bench.training.trainer import Trainer


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
    part = heldout.HeldOut(made.target, made.features, made.sayable)
    assert (part.sequences, len(part.measured)) == (made.held_out.sequences, 1)


@pytest.mark.parametrize("vocabulary", ["head", "prompt"])
def test_the_ceiling_is_the_share_of_choices_that_the_draft_can_say(trainer, vocabulary):
    made = trainer()
    few, recipe = (
        made.vocabulary[made.vocabulary % 3 > 0],
        replace(made.recipe, vocabulary=vocabulary),
    )
    part = Trainer(made.target, made.features, few, made.network.shape, recipe)
    said = []
    for s in part.held_out.measured:
        batch = made.features.load([s])
        for row, choice in zip(
            batch.rows[0].nonzero()[:, 0].tolist(), batch.choice.tolist(), strict=True
        ):
            heard = batch.ids[0, : row + 2].tolist() if vocabulary == "prompt" else []
            said.append(choice % 3 > 0 or choice in heard)
    assert made.evaluate()["vocabulary_ceiling"] == 1
    assert part.evaluate()["vocabulary_ceiling"] == pytest.approx(sum(said) / len(said))
    assert 0 < sum(said) < len(said)
