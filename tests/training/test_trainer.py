"""Training lowers the losses, and resumes as if it had not been interrupted."""

import csv
import shutil
from dataclasses import replace

import pytest
import torch

from fspad_bench.drafts.network import architectures
from fspad_bench.training import curve
from fspad_bench.training import trainer as trainer_module
from fspad_bench.training.conversations import Conversation
from fspad_bench.training.features import LiveFeatures
from fspad_bench.training.networks import initial_network
from fspad_bench.training.trainer import Trainer
from fspad_bench.util.errors import BenchError

DRAW = curve.draw


def assert_equal_weights(one, other):
    for name, weight in one.network.state_dict().items():
        assert torch.equal(weight, other.network.state_dict()[name]), name


@pytest.fixture(scope="module")
def one_step(trainer, tmp_path_factory):
    """The folder of a training that was stopped after a step, which tests copy."""
    folder = tmp_path_factory.mktemp("trainings") / "one"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curve, "draw", lambda table, picture: None)
        trainer().run(folder, checkpoint_every=1e9, stop_after=1)
    return folder


@pytest.fixture
def begun(one_step, tmp_path):
    return shutil.copytree(one_step, tmp_path / "begun")


@pytest.mark.sampled(3)
@pytest.mark.parametrize("variant", [n for n, kind in architectures().items() if kind.reads_states])
def test_losses_fall(trainer, recipe, tmp_path, variant):
    training = trainer(variant, replace(recipe, epochs=2))
    before = training.evaluate()
    training.run(tmp_path / variant, checkpoint_every=1e9)
    after = training.evaluate()
    # Medusa's heads do not see the token that the next state comes from, and fspad3's norm takes
    # away how large the features are, which its own recipe does not ask for
    share = {"medusa": 1.0, "fspad3": 0.9}.get(variant, 0.8)
    assert after["feature_loss"] < share * before["feature_loss"]
    assert after["logit_loss"] < before["logit_loss"]
    curve = list(csv.DictReader((tmp_path / variant / "curve.csv").open()))
    assert int(curve[-1]["step"]) == len(training.plan)


@pytest.mark.parametrize("changes", [{"unroll": 3}, {"top_weight": 1.0}])
def test_the_options_of_hass_train_too(trainer, recipe, tmp_path, changes):
    training = trainer(recipe=replace(recipe, epochs=1, **changes))
    before = training.evaluate()
    training.run(tmp_path / "out", checkpoint_every=1e9)
    after = training.evaluate()
    assert after["logit_loss"] < before["logit_loss"]
    weights = []
    for different in ({}, changes):
        one_step = trainer(recipe=replace(recipe, **different))
        one_step._learn(one_step.plan[0])
        weights.append(one_step.network.fuse.fc.weight)
    assert not torch.equal(*weights)


def test_live_features_train_like_stored_ones(tiny, trainer, recipe):
    stored = trainer()
    live = Trainer(
        tiny,
        LiveFeatures(tiny, stored.features.conversations),
        stored.vocabulary.base_ids,
        initial_network(tiny, "fspad", recipe.seed),
        recipe,
    )
    assert live.plan == stored.plan
    losses = [
        torch.tensor([training._learn(group) for group in training.plan[:4]])
        for training in (live, stored)
    ]
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-3)


@pytest.mark.wide
def test_the_curve_is_drawn(trainer, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(curve, "draw", DRAW)
    training = trainer(recipe=replace(recipe, epochs=0.4))
    assert len(training.plan) > 1
    training.run(tmp_path, checkpoint_every=0)
    rows = list(csv.DictReader((tmp_path / "curve.csv").open()))
    tokens = [int(row["tokens"]) for row in rows]
    assert [int(row["step"]) for row in rows] == list(range(1, len(training.plan) + 1))
    assert tokens == sorted(tokens)
    assert float(rows[-1]["tokens_per_step"]) >= 1
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"


def test_a_killed_training_ends_with_the_same_weights(trainer, recipe, tmp_path):
    shorter = replace(recipe, epochs=1)
    whole = trainer(recipe=shorter)
    whole.run(tmp_path / "whole", checkpoint_every=1e9)
    trainer(recipe=shorter).run(tmp_path / "parts", checkpoint_every=1e9, stop_after=2)
    rest = trainer(recipe=shorter)
    rest.run(tmp_path / "parts", checkpoint_every=1e9)
    assert len(whole.plan) > 3
    assert_equal_weights(whole, rest)


def test_a_setting_missing_from_a_checkpoint_had_its_default(trainer, recipe, begun):
    state = torch.load(begun / "checkpoint.pt", weights_only=True)
    del state["recipe"]["supervise"]
    torch.save(state, begun / "checkpoint.pt")
    again = trainer()
    again.run(begun, checkpoint_every=1e9, stop_after=2)
    assert again.step == 2
    with pytest.raises(BenchError, match="another recipe"):
        trainer(recipe=replace(recipe, supervise="all")).run(begun, checkpoint_every=1e9)


def test_a_checkpoint_of_another_recipe_is_refused(trainer, recipe, begun):
    with pytest.raises(BenchError, match="another recipe"):
        trainer(recipe=replace(recipe, lr=1e-3)).run(begun, checkpoint_every=1e9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"origin": {"data": "b"}}, "another data"),
        ({"variant": "eagle"}, "another network"),
        ({"vocabulary": 40}, "another draft vocabulary"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(trainer, tmp_path, changes, message):
    settings = {"origin": {"data": "a"}}
    trainer(**settings).run(tmp_path, checkpoint_every=1e9, stop_after=1)
    with pytest.raises(BenchError, match=message):
        trainer(**settings | changes).run(tmp_path, checkpoint_every=1e9)


def test_a_checkpoint_of_another_precision_is_refused(trainer, begun, tiny, monkeypatch):
    monkeypatch.setattr(tiny, "dtype", torch.float16)
    with pytest.raises(BenchError, match="was trained with another dtype"):
        trainer().run(begun, checkpoint_every=1e9)


def test_a_checkpoint_of_another_initial_head_is_refused(trainer, tmp_path):
    trainer(origin={"initial head": "abc"}).run(tmp_path, checkpoint_every=1e9, stop_after=1)
    with pytest.raises(BenchError, match="was trained with another initial head"):
        trainer(origin={"initial head": ""}).run(tmp_path, checkpoint_every=1e9)


def test_fewer_epochs_than_were_trained_are_refused(trainer, recipe, tmp_path):
    trainer(recipe=replace(recipe, epochs=1)).run(tmp_path, checkpoint_every=1e9)
    with pytest.raises(BenchError, match="has been trained for"):
        trainer(recipe=replace(recipe, epochs=0.5)).run(tmp_path, checkpoint_every=1e9)


def test_a_torn_checkpoint_is_refused(trainer, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"half")
    with pytest.raises(BenchError, match=r"checkpoint\.pt is not a readable checkpoint"):
        trainer().run(tmp_path, checkpoint_every=1e9)


@pytest.mark.parametrize("name", ["recipe", "origin", "step", "seen", "network", "optimizer"])
def test_a_checkpoint_that_lacks_an_entry_is_refused(trainer, begun, name):
    state = torch.load(begun / "checkpoint.pt", weights_only=True)
    del state[name]
    torch.save(state, begun / "checkpoint.pt")
    with pytest.raises(BenchError, match=f"is not a checkpoint: its '{name}' is missing"):
        trainer().run(begun, checkpoint_every=1e9)


def weights(state, change):
    """Return a checkpoint's state with its weights changed."""
    return state | {"network": {name: change(w) for name, w in state["network"].items()}}


def moments(state, change):
    """Return a checkpoint's state with the optimizer's first moments changed."""
    for of_weight in state["optimizer"]["state"].values():
        of_weight["exp_avg"] = change(of_weight["exp_avg"])
    return state


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (lambda state: [1, 2], "is not a checkpoint of `train`"),
        (lambda state: state | {"network": {}}, "does not fit this network"),
        (lambda state: state | {"optimizer": {"state": {}}}, "does not fit this network"),
        (lambda state: state | {"step": -1}, "is damaged: its 'step' is -1"),
        (lambda state: state | {"step": True}, "is damaged: its 'step' is True"),
        (lambda state: state | {"seen": -5}, "is damaged: its 'seen' is -5"),
        (lambda state: weights(state, lambda w: w / 0), "holds numbers that are not finite"),
        (lambda state: weights(state, torch.Tensor.long), "is of torch.int64, not torch.float32"),
        (lambda state: moments(state, lambda m: m / 0), "exp_avg holds numbers that are not fin"),
        (lambda state: moments(state, lambda _: torch.zeros(3)), r"exp_avg is of shape \(3,\)"),
    ],
)
def test_a_foreign_or_damaged_checkpoint_is_refused(trainer, begun, changes, message):
    path = begun / "checkpoint.pt"
    torch.save(changes(torch.load(path, weights_only=True)), path)
    with pytest.raises(BenchError, match=message):
        trainer().run(begun, checkpoint_every=1e9)


def test_a_torn_curve_continues_with_its_whole_lines(trainer, recipe, tmp_path):
    trainer(recipe=replace(recipe, epochs=1)).run(tmp_path, checkpoint_every=0, stop_after=2)
    curve = tmp_path / "curve.csv"
    whole = curve.read_text()
    curve.write_text(whole[:-30])
    trainer(recipe=replace(recipe, epochs=1)).run(tmp_path, checkpoint_every=0)
    lines = curve.read_text().splitlines()
    steps = [line.split(",")[0] for line in lines[1:]]
    assert lines[:2] == whole.splitlines()[:2]
    assert steps == ["1", *[str(n) for n in range(3, len(lines) + 1)]]


@pytest.mark.parametrize("ending", [KeyboardInterrupt, torch.OutOfMemoryError])
def test_a_checkpoint_is_written_with_its_line_or_not_at_all(trainer, begun, monkeypatch, ending):
    """What ends the measurement for the line is not taken for a full disk either."""
    before = {name: (begun / name).read_bytes() for name in ("checkpoint.pt", "curve.csv")}

    def ended(self):
        raise ending

    monkeypatch.setattr(Trainer, "evaluate", ended)
    with pytest.raises(ending):
        trainer().run(begun, checkpoint_every=0)
    assert {name: (begun / name).read_bytes() for name in before} == before


def test_the_configuration_of_accelerate_changes_nothing(trainer, tmp_path, monkeypatch):
    plain = trainer()
    plain.run(tmp_path / "plain", checkpoint_every=1e9, stop_after=3)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    configured = trainer()
    configured.run(tmp_path / "configured", checkpoint_every=1e9, stop_after=3)
    assert_equal_weights(plain, configured)


def test_two_conversations_are_enough_and_one_is_not(tiny, recipe, tmp_path):
    conversations = [
        Conversation(list(range(9)), [(4, 9)], held_out=True),
        Conversation(list(range(20, 28)), [(3, 8)]),
    ]
    network = initial_network(tiny, "eagle", recipe.seed)
    two = LiveFeatures(tiny, conversations)
    Trainer(tiny, two, torch.arange(97), network, recipe).run(tmp_path, checkpoint_every=1e9)
    one = LiveFeatures(tiny, conversations[:1])
    with pytest.raises(BenchError, match="too few"):
        Trainer(tiny, one, torch.arange(97), network, recipe)
    unlearned = LiveFeatures(tiny, conversations[:1] * 2)
    with pytest.raises(BenchError, match="all 2 usable conversations are held out"):
        Trainer(tiny, unlearned, torch.arange(97), network, recipe)


def test_a_longer_plan_begins_like_a_shorter_one(trainer, recipe):
    shorter = trainer().plan
    longer = trainer(recipe=replace(recipe, epochs=8.5)).plan
    assert longer[: len(shorter)] == shorter
    assert len(longer) > len(shorter)


def test_other_software_continues_with_a_note(trainer, recipe, tmp_path, monkeypatch, capsys):
    one = replace(recipe, epochs=1)
    trainer(recipe=one).run(tmp_path, checkpoint_every=1e9, stop_after=1)
    trainer(recipe=one).run(tmp_path, checkpoint_every=1e9, stop_after=2)
    assert "other software" not in capsys.readouterr().err
    monkeypatch.setattr(trainer_module, "environment", lambda threads: {"torch": "9"})
    trainer(recipe=one).run(tmp_path, checkpoint_every=1e9)
    assert "it was begun with other software, threads or machine" in capsys.readouterr().err


def test_a_checkpoint_of_an_earlier_version_continues(trainer, recipe, tmp_path):
    one = replace(recipe, epochs=1)
    trainer(recipe=one).run(tmp_path, checkpoint_every=1e9, stop_after=1)
    path = tmp_path / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    for part in ("target files", "environment", "dtype"):
        del state["origin"][part]
    torch.save(state, path)
    again = trainer(recipe=one)
    again.run(tmp_path, checkpoint_every=1e9)
    assert again.step == len(again.plan)


@pytest.mark.parametrize("variant", ["eagle", "fspad"])
def test_the_shares_of_several_processes_add_up_to_the_whole(tiny, recipe, variant):
    """Also of a process without a sequence, of tokens that the texts of another hold, and of draft
    levels that short texts do not reach.
    """
    texts = [list(range(20, 25)), list(range(30, 60)), list(range(60, 90))]
    answers = [(1, 5), (20, 30), (8, 30)]
    pairs = zip(texts, answers, strict=True)
    conversations = [Conversation(tokens, [span]) for tokens, span in pairs]
    features = LiveFeatures(tiny, [*conversations, Conversation([1, 2, 3], [(1, 3)], True)])
    settings = replace(recipe, unroll=4, decay=0.5, logit_weight=1.0, top_weight=1.0)
    network = initial_network(tiny, variant, recipe.seed)
    training = Trainer(tiny, features, torch.arange(5), network, settings)
    training.objective.train()

    def learned(own):
        loss, figures = training._losses([0, 1, 2], own)
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        return torch.stack([loss, *figures]).detach(), gradients

    figures, gradients = learned([0, 1, 2])
    parts = [learned(own) for own in ([0], [2, 1], [])]
    torch.testing.assert_close(sum(part[0] for part in parts), figures, rtol=1e-3, atol=1e-4)
    for whole, *own in zip(gradients, *(part[1] for part in parts), strict=True):
        assert (sum(own) - whole).norm() < 0.01 * whole.norm()


def test_a_training_that_diverges_ends_without_a_checkpoint_of_it(trainer, tmp_path, monkeypatch):
    training = trainer()
    training.run(tmp_path, checkpoint_every=1e9, stop_after=1)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with torch.no_grad():
        next(training.network.parameters()).fill_(float("nan"))
    with monkeypatch.context() as patch:
        patch.setattr(training, "_resume", lambda folder: None)
        with pytest.raises(BenchError, match="training diverged: a loss of step 2 is no number"):
            training.run(tmp_path, checkpoint_every=0)
    with pytest.raises(BenchError, match=r"training diverged at step 1: .* not finite") as raised:
        training._save(tmp_path, [[1.0, 1.0, 1.0]])
    assert "--lr" in raised.value.hint
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
