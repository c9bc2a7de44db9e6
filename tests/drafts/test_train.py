"""Training: it learns, and it resumes as if it had not been interrupted."""

import csv
from dataclasses import replace

import pytest
import torch

from fspad_bench.drafts.data import LiveFeatures
from fspad_bench.drafts.job import train_head
from fspad_bench.drafts.network import ARMS
from fspad_bench.drafts.objective import Recipe
from fspad_bench.drafts.train import Trainer
from fspad_bench.errors import BenchError


@pytest.mark.parametrize("decoder", ARMS)
def test_losses_fall(trainer, tmp_path, decoder):
    made = trainer(decoder)
    before = made.evaluate()
    made.run(tmp_path / decoder, checkpoint_every=1e9)
    after = made.evaluate()
    assert after["feature_loss"] < 0.8 * before["feature_loss"]
    assert after["logit_loss"] < before["logit_loss"]
    curve = list(csv.DictReader((tmp_path / decoder / "curve.csv").open()))
    assert int(curve[-1]["step"]) == len(made.plan)


@pytest.mark.parametrize("changes", [{"unroll": 3}, {"top_weight": 1.0}])
def test_the_options_of_hass_train_too(trainer, recipe, tmp_path, changes):
    made = trainer(recipe=replace(recipe, **changes))
    before = made.evaluate()
    made.run(tmp_path / "out", checkpoint_every=1e9)
    after = made.evaluate()
    assert after["logit_loss"] < before["logit_loss"]
    plain = trainer()
    plain.run(tmp_path / "plain", checkpoint_every=1e9)
    assert not torch.equal(plain.network.fuse.fc.weight, made.network.fuse.fc.weight)


def test_live_features_train_like_stored_ones(tiny, trainer, recipe):
    stored = trainer()
    live = Trainer(
        tiny,
        LiveFeatures(tiny, stored.features.conversations, stored.vocabulary),
        stored.vocabulary,
        stored.network.shape,
        recipe,
    )
    for made in (stored, live):
        made.seen_losses = [made._learn(group) for group in made.plan[:4]]
    assert live.plan == stored.plan
    torch.testing.assert_close(torch.tensor(live.seen_losses), torch.tensor(stored.seen_losses), rtol=1e-3, atol=1e-3)


def test_the_curve_is_drawn(trainer, recipe, tmp_path):
    made = trainer(recipe=replace(recipe, epochs=1))
    made.run(tmp_path, checkpoint_every=0)
    rows = list(csv.DictReader((tmp_path / "curve.csv").open()))
    assert [int(row["step"]) for row in rows] == list(range(1, len(made.plan) + 1))
    assert [int(row["tokens"]) for row in rows] == sorted(int(row["tokens"]) for row in rows)
    assert float(rows[-1]["tokens_per_step"]) >= 1
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"


def test_a_killed_training_ends_with_the_same_weights(trainer, tmp_path):
    whole = trainer()
    whole.run(tmp_path / "whole", checkpoint_every=1e9)
    trainer().run(tmp_path / "parts", checkpoint_every=1e9, stop_after=7)
    rest = trainer()
    rest.run(tmp_path / "parts", checkpoint_every=1e9)
    assert len(whole.plan) > 7
    for name, weight in whole.network.state_dict().items():
        assert torch.equal(weight, rest.network.state_dict()[name]), name


def test_a_checkpoint_of_another_recipe_is_refused(trainer, recipe, tmp_path):
    trainer().run(tmp_path, checkpoint_every=1e9, stop_after=1)
    with pytest.raises(BenchError, match="another recipe"):
        trainer(recipe=replace(recipe, lr=1e-3)).run(tmp_path, checkpoint_every=1e9)


def test_a_longer_plan_begins_like_a_shorter_one(trainer, recipe):
    shorter, longer = trainer().plan, trainer(recipe=replace(recipe, epochs=8.5)).plan
    assert longer[: len(shorter)] == shorter
    assert len(longer) > len(shorter)


def test_a_job_leaves_a_head_that_describes_itself(tiny, conversations, tmp_path, monkeypatch):
    monkeypatch.setenv("FSPAD_BENCH_CACHE", str(tmp_path / "cache"))
    head = train_head(tiny, "fspad", [conversations], tmp_path / "head", Recipe(epochs=1), draft_vocabulary=10)
    assert head.facts["answer_tokens"] > 0
    assert 0 < head.facts["held_out"]["vocabulary_mass"] < 1
    assert len(head.vocabulary) == 10
    with pytest.raises(BenchError, match="no draft network to train for 'vanilla'"):
        train_head(tiny, "vanilla", [conversations], tmp_path / "no", Recipe())
