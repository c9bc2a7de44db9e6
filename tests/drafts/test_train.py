"""Training: it learns, it resumes as if it had not been interrupted, and its noise and rates are the published ones."""

import csv
from dataclasses import replace

import pytest
import torch

from fspad_bench.drafts.data import FeatureStore, LiveFeatures, frequent_tokens, read_conversations
from fspad_bench.drafts.job import train_head
from fspad_bench.drafts.network import ARMS, Shape
from fspad_bench.drafts.train import Recipe, Trainer, uniform_noise
from fspad_bench.errors import BenchError

CPU = torch.device("cpu")
RECIPE = Recipe(epochs=6, batch_tokens=256, lr=3e-3, warmup=3)


@pytest.fixture
def trainer(tiny, conversations, tmp_path):
    def make(decoder="fspad", recipe=RECIPE):
        rows = read_conversations([conversations], 97, 64)
        vocabulary = frequent_tokens(rows, 97, 97)
        store = FeatureStore(tmp_path / "store", rows, 64)
        store.fill(tiny, vocabulary)
        return Trainer(tiny, store, vocabulary, Shape.of_target(tiny.config, decoder), recipe)

    return make


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
def test_the_options_of_hass_train_too(trainer, tmp_path, changes):
    made = trainer(recipe=replace(RECIPE, **changes))
    before = made.evaluate()
    made.run(tmp_path / "out", checkpoint_every=1e9)
    after = made.evaluate()
    assert after["logit_loss"] < before["logit_loss"]
    plain = trainer()
    plain.run(tmp_path / "plain", checkpoint_every=1e9)
    assert not torch.equal(plain.network.fuse.fc.weight, made.network.fuse.fc.weight)


def test_live_features_train_like_stored_ones(tiny, conversations, trainer):
    stored = trainer()
    live = Trainer(
        tiny,
        LiveFeatures(tiny, stored.features.conversations, stored.vocabulary),
        stored.vocabulary,
        stored.network.shape,
        RECIPE,
    )
    for made in (stored, live):
        made.seen_losses = [made._learn(group) for group in made.plan[:4]]
    assert live.plan == stored.plan
    torch.testing.assert_close(torch.tensor(live.seen_losses), torch.tensor(stored.seen_losses), rtol=1e-3, atol=1e-3)


def test_a_better_draft_makes_more_tokens_a_step(trainer, tmp_path):
    made = trainer()
    before = made.probe()
    made.run(tmp_path / "out", checkpoint_every=1e9)
    assert 1 <= before <= made.probe() <= 3


def test_the_curve_is_drawn(trainer, tmp_path):
    made = trainer(recipe=replace(RECIPE, epochs=1))
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


def test_a_checkpoint_of_another_recipe_is_refused(trainer, tmp_path):
    trainer().run(tmp_path, checkpoint_every=1e9, stop_after=1)
    with pytest.raises(BenchError, match="another recipe"):
        trainer(recipe=Recipe(epochs=6, batch_tokens=256, lr=1e-3, warmup=3)).run(tmp_path, checkpoint_every=1e9)


def test_a_longer_plan_begins_like_a_shorter_one(trainer):
    shorter, longer = trainer().plan, trainer(recipe=Recipe(epochs=8.5, batch_tokens=256, lr=3e-3, warmup=3)).plan
    assert longer[: len(shorter)] == shorter
    assert len(longer) > len(shorter)


def test_held_out_conversations_are_never_learned(trainer):
    made = trainer()
    assert not {s for group in made.plan for s in group} & set(made.test)
    assert len(made.test) >= 1


def test_rates_rise_and_fall_in_straight_lines():
    recipe = Recipe(lr=1.0, warmup=10)
    rates = [recipe.rate(step, 110) for step in range(110)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0.01)


def test_noise_is_uniform_and_scaled_by_length():
    noise = uniform_noise(torch.Size([2, 511, 400]), [512, 128], 0.2, [(3, 0), (3, 1)], CPU)
    assert noise[0].abs().max() == pytest.approx(0.1, rel=1e-3)
    assert noise[1].abs().max() == pytest.approx(0.4, rel=1e-3)
    assert not noise[1, 128:].any()
    assert abs(float(noise[0].mean())) < 1e-3


def test_noise_is_a_sequences_own():
    pair = uniform_noise(torch.Size([2, 30, 8]), [31, 20], 0.2, [(3, 0), (3, 1)], CPU)
    assert torch.equal(uniform_noise(torch.Size([1, 19, 8]), [20], 0.2, [(3, 1)], CPU)[0], pair[1, :19])
    assert not torch.equal(uniform_noise(torch.Size([1, 19, 8]), [20], 0.2, [(4, 1)], CPU)[0], pair[1, :19])


def test_a_job_leaves_a_head_that_describes_itself(tiny, conversations, tmp_path, monkeypatch):
    monkeypatch.setenv("FSPAD_BENCH_CACHE", str(tmp_path / "cache"))
    head = train_head(tiny, "fspad", [conversations], tmp_path / "head", Recipe(epochs=1), draft_vocabulary=10)
    assert head.facts["answer_tokens"] > 0
    assert 0 < head.facts["held_out"]["vocabulary_mass"] < 1
    assert len(head.vocabulary) == 10
    with pytest.raises(BenchError, match="no draft network to train for 'vanilla'"):
        train_head(tiny, "vanilla", [conversations], tmp_path / "no", Recipe())
