"""Training on several draft levels, and on other hidden states than the final one."""

import math
from dataclasses import replace

import pytest
import torch

from fspad_bench.drafts.network import DraftOutput
from fspad_bench.training.conversations import Conversation, read_files
from fspad_bench.training.feature_store import FeatureStore
from fspad_bench.training.features import LiveFeatures, cached_features
from fspad_bench.training.losses import losses, wanted
from fspad_bench.training.networks import EAGLE3, FSPAD3, UNROLLED_FSPAD, initial_network
from fspad_bench.training.objective import Objective, load_inputs
from fspad_bench.training.trainer import Trainer

TRAINERS = {"fspad": UNROLLED_FSPAD, "eagle3": EAGLE3, "fspad3": FSPAD3}


@pytest.fixture
def features_of(tiny, conversations, tmp_path, monkeypatch):
    """Features in an empty cache, by the states that are captured."""
    monkeypatch.setenv("FSPAD_BENCH_CACHE", str(tmp_path / "cache"))
    files = read_files([conversations], tiny.config.vocab_size, 64)
    return lambda states: cached_features(tiny, files, 64, states)


def objective_of(tiny, training, recipe):
    lm_head = tiny.lm_head.weight.detach().to(torch.bfloat16)
    return Objective(training.network, lm_head, recipe).train()


def inputs_of(tiny, training, group):
    """Return these sequences in float32, for a forward without autocast."""
    inputs = load_inputs(tiny, training.features, group, training.vocabulary, training.network)
    batch = inputs.batch._replace(features=inputs.batch.features.float())
    if batch.captured is not None:
        batch = batch._replace(captured=batch.captured.float())
    return inputs._replace(e=inputs.e.float(), f=batch.states[:, :-1], batch=batch)


def test_the_second_level_of_unrolled_training_sees_the_networks_own_features(tiny, trainer):
    """Its loss is that of a second forward that is given the first one's h_feature by hand."""
    training = trainer("fspad")
    network = training.network
    inputs = inputs_of(tiny, training, [3])
    objective = objective_of(tiny, training, UNROLLED_FSPAD.recipe)
    _, second, _ = objective._levels(inputs)
    row = int(inputs.batch.supervised[0, :-1].nonzero()[2])
    own = network.unrolled(inputs.e, inputs.f, 1)[0].h_feature.detach()
    states = torch.cat([inputs.f[:, :row], own[:, row - 1 : row]], dim=1)
    rows = torch.zeros(1, row + 1, dtype=torch.bool)
    rows[0, row] = True
    by_hand = network(inputs.e[:, : row + 1], states, rows)
    level = network.unrolled(inputs.e, inputs.f, 2)[1]
    torch.testing.assert_close(level.h_logit[0, row], by_hand.h_logit[0], rtol=0, atol=1e-5)
    taught = network(inputs.e[:, : row + 1], inputs.f[:, : row + 1], rows)
    assert not torch.allclose(taught.h_logit, by_hand.h_logit, atol=1e-3)
    positions = inputs.batch.supervised[:, :-1] & (torch.arange(inputs.e.shape[1]) >= 1)
    picked = DraftOutput(level.h_logit[positions], level.h_feature[positions])
    rows_of_head = objective.lm_head[inputs.vocabulary]
    of_level = objective._wanted(inputs, rows_of_head).at(
        positions[inputs.batch.supervised[:, :-1]]
    )
    expected = objective._losses(picked, inputs, positions, of_level, rows_of_head)
    torch.testing.assert_close(second.logit, expected.logit)
    torch.testing.assert_close(second.top, expected.top)


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_a_level_weighs_decay_times_the_one_before(tiny, trainer, recipe, decay):
    training = trainer("eagle3")
    settings = replace(recipe, unroll=3, decay=decay, feature_weight=0.0, logit_weight=1.0)
    objective = objective_of(tiny, training, settings)
    inputs = inputs_of(tiny, training, [3, 5])
    first, second, third = (level.logit for level in objective._levels(inputs))
    loss, reported = objective(inputs)
    total = 1 + decay + decay**2
    expected = (first + decay * second + decay**2 * third) / total
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(reported.logit, first)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("variant", TRAINERS)
def test_it_learns_by_its_own_recipe_and_resumes(trainer, tmp_path, monkeypatch, variant):
    monkeypatch.setattr(Trainer, "evaluate", lambda self: {})
    own = replace(TRAINERS[variant].recipe, epochs=0.5, batch_tokens=256, lr=3e-3, warmup=3)
    whole = trainer(variant, own)
    whole.run(tmp_path / "whole", checkpoint_every=1e9)
    for steps in (2, None):
        parts = trainer(variant, own)
        before = parts.network.attention.q.weight.clone()
        parts.run(tmp_path / "parts", checkpoint_every=1e9, stop_after=steps)
    assert parts.step > 2
    assert not torch.equal(before, parts.network.attention.q.weight)
    for name, weight in whole.network.state_dict().items():
        assert torch.equal(weight, parts.network.state_dict()[name]), name


def test_a_level_that_no_text_reaches_adds_nothing(tiny, recipe):
    conversations = [Conversation([1, 2, 3], [(1, 3)]), Conversation([4, 5], [(1, 2)], True)]
    settings = replace(recipe, unroll=3, feature_weight=1.0, logit_weight=1.0, noise=0.0)
    features = LiveFeatures(tiny, conversations)
    network = initial_network(tiny, "eagle", recipe.seed)
    training = Trainer(tiny, features, torch.arange(97), network, settings)
    inputs = load_inputs(tiny, features, [0], training.vocabulary, network)
    training.objective.train()
    first, second, third = training.objective._levels(inputs)
    assert first.logit > 0
    assert (second.logit, third.feature) == (0, 0)
    losses = training._learn([0])
    assert all(map(math.isfinite, losses))
    assert all(weight.isfinite().all() for weight in network.parameters())


def test_what_is_fed_back_learns_from_the_levels_that_read_it(tiny, trainer):
    """Without a feature loss, that half of fspad3's output has no other teacher."""
    training = trainer("fspad3")
    inputs = inputs_of(tiny, training, [3, 5])
    weight = training.network.output.down.weight
    for unroll, learns in ((1, False), (2, True)):
        objective = objective_of(tiny, training, replace(FSPAD3.recipe, unroll=unroll))
        loss, _ = objective(inputs)
        (gradient,) = torch.autograd.grad(loss, weight)
        assert bool(gradient[64:].any()) is learns


@torch.inference_mode()
def test_captured_states_are_those_of_a_session(tiny, captured_features):
    conversation = captured_features.conversations[3]
    with tiny.session(64, capture=(0, 1, 2)) as session:
        states = session.prefill(conversation.tokens).features
    batches = [
        captured_features.load([7, 3]),
        LiveFeatures(tiny, captured_features.conversations, (0, 1, 2)).load([7, 3]),
    ]
    for batch in batches:
        own = batch.states[1, : len(conversation.tokens)]
        assert torch.equal(own, states.to(torch.bfloat16))
        assert torch.equal(batch.features[1, : len(own)], own[:, 128:])


def test_other_states_are_another_store(tiny, conversations, features_of):
    stores = [features_of(states).stores[0] for states in ((), (0, 1), (0, 2))]
    assert len({store.folder for store in stores}) == 3
    assert [store.captured.shape[1] for store in stores] == [0, 128, 128]


def test_a_network_of_the_final_state_reads_the_store_of_others(features_of, monkeypatch):
    """What was computed for one with captured states is not computed again."""
    rich = features_of((0, 1))
    monkeypatch.setattr(FeatureStore, "_compute", lambda *_: pytest.fail("computed again"))
    plain = features_of(())
    assert plain.stores[0].folder == rich.stores[0].folder
    batch = plain.load([3, 0])
    assert batch.captured is None
    assert batch.states is batch.features
    assert torch.equal(batch.features, rich.load([3, 0]).features)


def test_an_unfinished_store_of_others_is_not_read(features_of):
    """A network of the final state does not wait for states that it has no use for."""
    rich = features_of((0, 1)).stores[0]
    rich.done.write_text("0 0")
    assert features_of(()).stores[0].folder != rich.folder
    assert rich.ready() == 0


def test_a_draft_is_compared_by_its_own_lm_head_and_goal():
    generator = torch.Generator().manual_seed(3)
    h, target, goal = torch.randn(3, 4, 8, generator=generator)
    head, own = torch.randn(2, 11, 8, generator=generator)
    choice = (target @ head.T).argmax(-1)
    normaliser = (target @ head.T).logsumexp(-1)
    actual = losses(h, h, goal, wanted(target, normaliser, choice, head), own)
    p = (target @ head.T).softmax(-1)
    expected = -(p * (h @ own.T).log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(actual.logit, expected)
    torch.testing.assert_close(actual.feature, torch.nn.functional.smooth_l1_loss(h, goal))


def test_training_starts_with_the_targets_final_norm(tiny):
    for name in ("eagle3", "fspad3"):
        network = initial_network(tiny, name, 0)
        norm = tiny.model.base_model.norm.weight
        assert torch.equal(network.output.final.weight, norm.float())
