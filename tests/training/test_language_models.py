"""A draft model is trained like a head: from the target's layers, on its distribution."""

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig

from fspad_bench.decoders.build import build_decoder
from fspad_bench.decoders.draft_model import DraftModel
from fspad_bench.drafts.head import load_head
from fspad_bench.drafts.language_network import LanguageNetwork
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.models import load
from fspad_bench.models.tiny import CONFIG, tiny_model, tiny_tokenizer
from fspad_bench.training.job import TrainingJob, default_recipe, run
from fspad_bench.training.networks import initial_network
from fspad_bench.training.objective import load_inputs
from fspad_bench.util.errors import BenchError

BRIEF = replace(default_recipe("draft_model"), epochs=0.5, batch_tokens=256)


@pytest.fixture
def job(tiny, conversations, tmp_path, monkeypatch):
    """A brief training of a draft model for one tiny target, with a cache of its own."""
    monkeypatch.setattr(load, "load_target", lambda name, **options: tiny)
    monkeypatch.setenv("FSPAD_BENCH_CACHE", str(tmp_path / "cache"))
    output = tmp_path / "model"
    return TrainingJob("draft_model", [str(conversations)], output, "tiny", BRIEF, device="cpu")


def test_its_inputs_are_the_embeddings_of_all_tokens(tiny, trainer):
    training = trainer("draft_model")
    inputs = load_inputs(tiny, training.features, [3, 7], training.vocabulary, training.network)
    embedded = tiny.embedding(inputs.batch.ids).to(torch.bfloat16)
    assert torch.equal(inputs.f, embedded[:, :-1])
    assert torch.equal(inputs.e, embedded[:, 1:])


def test_its_loss_is_the_distance_from_the_targets_distribution(tiny, trainer, recipe):
    """KL(p || q) over the whole vocabulary, up to the entropy of p."""
    training = trainer("draft_model", replace(recipe, feature_weight=0.0, logit_weight=1.0))
    inputs = load_inputs(tiny, training.features, [3], training.vocabulary, training.network)
    rows = inputs.batch.supervised[:, :-1]
    loss, _ = training.objective(inputs)
    with torch.no_grad():
        h = training.network(inputs.e, inputs.f, rows).h_logit.double()
        p = tiny.lm_head(inputs.batch.features[:, 1:][rows].double()).softmax(-1)
        log_q = tiny.lm_head(h).log_softmax(-1)
    assert float(loss.detach()) == pytest.approx(-float((p * log_q).sum(-1).mean()), rel=2e-2)


def test_its_loss_falls(trainer, recipe, tmp_path):
    own = default_recipe("draft_model")
    recipe = replace(own, epochs=3, batch_tokens=256, lr=3e-3, warmup=3)
    training = trainer("draft_model", recipe)
    before = training.evaluate()
    training.run(tmp_path, checkpoint_every=1e9)
    after = training.evaluate()
    assert after["logit_loss"] < 0.95 * before["logit_loss"]
    assert after["agreement"] > before["agreement"]


def test_a_killed_training_ends_with_the_same_weights(trainer, recipe, tmp_path):
    short = replace(recipe, epochs=1, noise=0.1)
    whole = trainer("draft_model", short)
    whole.run(tmp_path / "whole", checkpoint_every=1e9)
    trainer("draft_model", short).run(tmp_path / "parts", checkpoint_every=1e9, stop_after=2)
    rest = trainer("draft_model", short)
    rest.run(tmp_path / "parts", checkpoint_every=1e9)
    assert len(whole.plan) > 2
    for name, weight in whole.network.state_dict().items():
        assert torch.equal(rest.network.state_dict()[name], weight), name
    assert not torch.equal(whole.network.norm.weight, torch.ones(64))


def test_the_target_is_left_as_it_was(tiny, trainer, recipe, tmp_path):
    before = {name: weight.clone() for name, weight in tiny.model.state_dict().items()}
    trainer("draft_model", replace(recipe, epochs=0.5)).run(tmp_path, checkpoint_every=1e9)
    for name, weight in tiny.model.state_dict().items():
        assert torch.equal(weight, before[name]), name
    assert all(weight.grad is None for weight in tiny.model.parameters())


@pytest.mark.parametrize("vocabulary", ["prompt", "head"])
def test_tokens_a_step_are_those_of_the_decoder_with_this_vocabulary(
    tiny, trainer, recipe, vocabulary, monkeypatch
):
    drafters = []
    follow = DraftModel.propose

    def recording(self, context, budget):
        tree = follow(self, context, budget)
        drafters.append((self.draft.ids.tolist(), set(context.tokens), len(tree)))
        return tree

    monkeypatch.setattr(DraftModel, "propose", recording)
    training = trainer("draft_model", replace(recipe, vocabulary=vocabulary), vocabulary=12)
    assert 1 <= training.held_out.tokens_per_step(training.objective) <= 3
    base = set(training.vocabulary.base_ids.tolist())
    for ids, text, nodes in drafters:
        assert set(ids) == (base | text if vocabulary == "prompt" else base)
        assert nodes <= 8


def test_what_is_written_is_drafted_with(job, tiny):
    head = load_head(run(job).folder, tiny, LanguageNetwork)
    assert head.network.shape.layers == head.facts["shape"]["layers"] == 1
    assert head.facts["held_out"]["tokens_per_step"] >= 1
    drafter = DraftModel(tiny, model=str(job.output))
    assert drafter.settings()["model_sha256"] == head.sha256


def test_training_goes_on_from_one_that_is_given(job, tiny, tmp_path):
    first = load_head(run(job).folder, tiny)
    second = replace(
        job, output=tmp_path / "second", initial=job.output, recipe=replace(BRIEF, epochs=1e-6)
    )
    again = load_head(run(second).folder, tiny)
    for name, weight in first.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], weight)
    with pytest.raises(BenchError, match="the initial head has 1 layers"):
        run(replace(second, layers=2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 2}, "tiny has 2 layers: a draft model of 2 is no smaller"),
        ({"layers": 0}, "a draft model of 0"),
        ({"recipe": replace(BRIEF, unroll=2)}, "reads drafted tokens as any others: unroll is 2"),
        ({"decoder": "fspad", "layers": 1}, "fspad has a single layer"),
        ({"decoder": "aded", "layers": 1}, "a tri-gram table has no layers"),
    ],
)
def test_settings_that_it_has_no_use_for_are_refused(job, changes, message):
    with pytest.raises(BenchError, match=message):
        run(replace(job, **changes))


def test_another_number_of_layers_does_not_continue_a_training(job, tmp_path, monkeypatch):
    deep = deep_tiny()
    monkeypatch.setattr(load, "load_target", lambda name, **options: deep)
    run(replace(job, layers=1))
    with pytest.raises(BenchError, match="was trained with another network"):
        run(replace(job, layers=2))


def deep_tiny():
    """Return a target of three layers with tiny's tokens."""
    config = LlamaConfig(**CONFIG.to_dict() | {"num_hidden_layers": 3})
    return TransformersTarget(tiny_model(config), tiny_tokenizer(), "deep", "deep-1")


def test_the_default_is_two_layers_of_a_deeper_target(recipe):
    network = initial_network(deep_tiny(), "draft_model", recipe.seed)
    assert network.shape.layers == len(network.layers) == 2
    assert next(network.parameters()).dtype == torch.float32


def test_one_of_another_target_is_refused_by_name(job):
    folder = run(job).folder
    for decoder in ("draft_model", "gsd"):
        with pytest.raises(
            BenchError, match="was trained for tiny, tiny-1; not for deep"
        ) as raised:
            build_decoder(decoder, deep_tiny(), {decoder: {"model": str(folder)}})
        assert raised.value.exit_code == 2
