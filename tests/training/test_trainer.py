"""Training: it learns, and it resumes as if it had not been interrupted."""

import csv
from dataclasses import replace

import pytest
import torch

from fspad_bench.drafts.head import load_head
from fspad_bench.drafts.network import ARMS, Shape
from fspad_bench.drafts.sizing.calibration import Calibration
from fspad_bench.errors import BenchError
from fspad_bench.training.features import Conversation, LiveFeatures
from fspad_bench.training.job import train_head
from fspad_bench.training.objective import Recipe
from fspad_bench.training.trainer import Trainer


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
        LiveFeatures(tiny, stored.features.conversations),
        stored.vocabulary,
        stored.network.shape,
        recipe,
    )
    for made in (stored, live):
        made.seen_losses = [made._learn(group) for group in made.plan[:4]]
    assert live.plan == stored.plan
    torch.testing.assert_close(
        torch.tensor(live.seen_losses), torch.tensor(stored.seen_losses), rtol=1e-3, atol=1e-3
    )


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


def test_a_setting_that_a_checkpoint_does_not_know_was_its_default(trainer, recipe, tmp_path):
    trainer().run(tmp_path, checkpoint_every=1e9, stop_after=1)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    del state["recipe"]["supervise"]
    torch.save(state, tmp_path / "checkpoint.pt")
    again = trainer()
    again.run(tmp_path, checkpoint_every=1e9, stop_after=2)
    assert again.step == 2
    with pytest.raises(BenchError, match="another recipe"):
        trainer(recipe=replace(recipe, supervise="all")).run(tmp_path, checkpoint_every=1e9)


def test_a_checkpoint_of_another_recipe_is_refused(trainer, recipe, tmp_path):
    trainer().run(tmp_path, checkpoint_every=1e9, stop_after=1)
    with pytest.raises(BenchError, match="another recipe"):
        trainer(recipe=replace(recipe, lr=1e-3)).run(tmp_path, checkpoint_every=1e9)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"origin": {"data": "b"}}, "another data"),
        ({"decoder": "eagle"}, "another network"),
        ({"vocabulary": 40}, "another draft vocabulary"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(trainer, tmp_path, changes, said):
    trainer(origin={"data": "a"}).run(tmp_path, checkpoint_every=1e9, stop_after=1)
    with pytest.raises(BenchError, match=said):
        trainer(**{"origin": {"data": "a"}} | changes).run(tmp_path, checkpoint_every=1e9)


def test_fewer_epochs_than_were_trained_are_refused(trainer, recipe, tmp_path):
    trainer().run(tmp_path, checkpoint_every=1e9)
    with pytest.raises(BenchError, match="has been trained for"):
        trainer(recipe=replace(recipe, epochs=1)).run(tmp_path, checkpoint_every=1e9)


def test_a_torn_checkpoint_is_said(trainer, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"half")
    with pytest.raises(BenchError, match="no checkpoint that can be read"):
        trainer().run(tmp_path, checkpoint_every=1e9)


def test_a_torn_curve_goes_on_with_its_whole_lines(trainer, recipe, tmp_path):
    trainer(recipe=replace(recipe, epochs=1)).run(tmp_path, checkpoint_every=0, stop_after=2)
    curve = tmp_path / "curve.csv"
    whole = curve.read_text()
    curve.write_text(whole[:-30])
    trainer(recipe=replace(recipe, epochs=1)).run(tmp_path, checkpoint_every=0)
    lines = curve.read_text().splitlines()
    assert lines[:2] == whole.splitlines()[:2]
    assert [line.split(",")[0] for line in lines[1:]] == [
        "1",
        *[str(n) for n in range(3, len(lines) + 1)],
    ]


def test_how_accelerate_is_configured_changes_nothing(trainer, tmp_path, monkeypatch):
    plain = trainer()
    plain.run(tmp_path / "plain", checkpoint_every=1e9, stop_after=3)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    configured = trainer()
    configured.run(tmp_path / "configured", checkpoint_every=1e9, stop_after=3)
    for name, weight in plain.network.state_dict().items():
        assert torch.equal(weight, configured.network.state_dict()[name]), name


def test_two_conversations_are_enough_and_one_is_not(tiny, recipe, tmp_path):
    rows = [
        Conversation(list(range(9)), [(4, 9)], held_out=True),
        Conversation(list(range(20, 28)), [(3, 8)]),
    ]
    for count in (2, 1):
        features = LiveFeatures(tiny, rows[:count])
        shape = Shape.of_target(tiny.config, "eagle")
        if count == 1:
            with pytest.raises(BenchError, match="too few"):
                Trainer(tiny, features, torch.arange(97), shape, recipe)
        else:
            Trainer(tiny, features, torch.arange(97), shape, recipe).run(
                tmp_path, checkpoint_every=1e9
            )


def test_answers_of_two_tokens_leave_no_calibration_but_a_head(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("FSPAD_BENCH_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "short.jsonl"
    data.write_text('{"prompt": [1], "response": [4, 5]}\n' * 40)
    head = train_head(tiny, "eagle", [data], tmp_path / "head", Recipe(epochs=1))
    assert Calibration.of(head.facts["calibration"]).greedy


def test_a_data_set_of_another_tokenizer_is_refused(tiny, conversations, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "shard-00000.jsonl").write_text(conversations.read_text())
    (folder / "manifest.json").write_text('{"target": "other", "tokenizer": "abc"}')
    with pytest.raises(BenchError, match="is of other, whose tokenizer is not tiny's"):
        train_head(tiny, "eagle", [folder], tmp_path / "head", Recipe(epochs=1))


def test_a_longer_plan_begins_like_a_shorter_one(trainer, recipe):
    shorter, longer = trainer().plan, trainer(recipe=replace(recipe, epochs=8.5)).plan
    assert longer[: len(shorter)] == shorter
    assert len(longer) > len(shorter)


def test_training_begins_with_the_head_that_it_is_given(tiny, conversations, tmp_path, monkeypatch):
    monkeypatch.setenv("FSPAD_BENCH_CACHE", str(tmp_path / "cache"))
    first = tmp_path / "first"
    train_head(tiny, "fspad", [conversations], first, Recipe(epochs=1), draft_vocabulary=15)
    again = train_head(
        tiny,
        "fspad",
        [conversations],
        tmp_path / "again",
        Recipe(epochs=1e-6, seed=1),
        initial=first,
    )
    begun = load_head(first, tiny)
    assert again.facts["tokens_seen"] == 0
    for name, weight in again.network.state_dict().items():
        torch.testing.assert_close(
            weight.double(), begun.network.state_dict()[name].double(), rtol=0, atol=0
        )
    assert again.facts["initial"]["sha256"] == begun.sha256
    assert torch.equal(again.vocabulary, begun.vocabulary)
    assert again.facts["initial"]["tokens_seen"] == begun.facts["tokens_seen"] > 0
    with pytest.raises(BenchError, match="holds the head of 'fspad', not of 'eagle'"):
        train_head(tiny, "eagle", [conversations], tmp_path / "no", Recipe(), initial=first)


def test_every_token_may_be_learned_and_held_out_answers_measure_it(
    tiny, conversations, tmp_path, monkeypatch
):
    monkeypatch.setenv("FSPAD_BENCH_CACHE", str(tmp_path / "cache"))
    found = {}
    for name in ("answers", "all"):
        recipe = Recipe(supervise=name, epochs=1e-6)
        found[name] = train_head(
            tiny, "eagle", [conversations], tmp_path / name, recipe, draft_vocabulary=15
        )
    assert (
        len(list((tmp_path / "cache" / "features").glob("*/features.bin"))) == 1
    )  # one store serves both
    answers, every = (found[name].facts for name in ("answers", "all"))
    assert every["held_out"] == answers["held_out"]
    assert every["answer_tokens"] == answers["answer_tokens"]
    assert torch.equal(found["all"].vocabulary, found["answers"].vocabulary)  # the answers' tokens
    for name in ("answers", "all"):
        found[name] = train_head(
            tiny, "eagle", [conversations], tmp_path / f"{name} 1", Recipe(supervise=name, epochs=1)
        )
    assert found["all"].facts["held_out"] != found["answers"].facts["held_out"]


def test_a_checkpoint_goes_on_with_the_head_that_it_began_with(trainer, tmp_path):
    trainer(origin={"initial head": "abc"}).run(tmp_path, checkpoint_every=1e9, stop_after=1)
    with pytest.raises(BenchError, match="was trained with another initial head"):
        trainer(origin={"initial head": ""}).run(tmp_path, checkpoint_every=1e9)


def test_a_job_leaves_a_head_that_describes_itself(tiny, conversations, tmp_path, monkeypatch):
    monkeypatch.setenv("FSPAD_BENCH_CACHE", str(tmp_path / "cache"))
    head = train_head(
        tiny, "fspad", [conversations], tmp_path / "head", Recipe(epochs=1), draft_vocabulary=10
    )
    assert head.facts["answer_tokens"] > 0
    assert 0 < head.facts["held_out"]["vocabulary_mass"] < 1
    assert len(head.vocabulary) == 10
    with pytest.raises(BenchError, match="no draft network to train for 'vanilla'"):
        train_head(tiny, "vanilla", [conversations], tmp_path / "no", Recipe())
