"""Training of Chimera and Medusa, and the loss on the text's own tokens."""

from dataclasses import replace

import pytest
import torch

from fspad_bench.drafts.head import Head
from fspad_bench.drafts.network import architecture
from fspad_bench.training.job import TrainingJob
from fspad_bench.training.losses import losses, wanted
from fspad_bench.training.networks import CHIMERA, CHIMERA_HARD, MEDUSA
from fspad_bench.training.objective import load_inputs
from fspad_bench.training.trainer import Trainer
from fspad_bench.util.errors import BenchError

TRAINERS = {"chimera": CHIMERA, "chimera-hard": CHIMERA_HARD, "medusa": MEDUSA}


def test_the_loss_on_the_texts_tokens_is_their_cross_entropy():
    h, target = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(3))
    head = torch.randn(11, 8, generator=torch.Generator().manual_seed(4))
    choice = (target @ head.T).argmax(-1)
    normaliser = (target @ head.T).logsumexp(-1)
    token = torch.tensor([3, 10, -1, 0, 7])
    actual = losses(h, h, target, wanted(target, normaliser, choice, head, token), head).token
    log_q = (h @ head.T).log_softmax(-1)
    expected = -(log_q[0, 3] + log_q[1, 10] + log_q[3, 0] + log_q[4, 7]) / 5
    torch.testing.assert_close(actual, expected)
    of_target = wanted(target, normaliser, choice, head)
    assert losses(h, h, target, of_target, head).token == 0


def test_the_texts_tokens_are_those_that_follow_each_row(tiny, trainer):
    training = trainer("chimera", vocabulary=12)
    inputs = load_inputs(tiny, training.features, [3, 7], training.vocabulary, training.network)
    ids = inputs.batch.ids
    base = set(training.vocabulary.base_ids.tolist())
    at = 0
    for sequence, row in inputs.batch.supervised[:, :-1].nonzero().tolist():
        following = int(ids[sequence, row + 2])
        read = ids[sequence, : row + 2].tolist()
        known = following in base or following in read
        place = int(inputs.token[at])
        assert (place >= 0) is known
        assert not known or int(inputs.vocabulary[place]) == following
        at += 1
    assert at == len(inputs.token)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", TRAINERS)
def test_it_learns_resumes_and_leaves_the_target_alone(
    tiny, trainer, recipe, tmp_path, monkeypatch, name
):
    monkeypatch.setattr(Trainer, "evaluate", lambda self: {})
    own = replace(TRAINERS[name].recipe, epochs=1.0, batch_tokens=256, lr=3e-3, warmup=3)
    before = {key: weight.clone() for key, weight in tiny.model.state_dict().items()}
    whole = trainer(TRAINERS[name].variant, own)
    first = whole._losses(whole.plan[0])[0]
    whole.run(tmp_path / "whole", checkpoint_every=1e9)
    assert whole._losses(whole.plan[0])[0] < 0.95 * first
    for steps in (2, None):
        parts = trainer(TRAINERS[name].variant, own)
        parts.run(tmp_path / "parts", checkpoint_every=1e9, stop_after=steps)
    assert parts.step > 2
    for key, weight in whole.network.state_dict().items():
        assert torch.equal(weight, parts.network.state_dict()[key]), key
    after = tiny.model.state_dict()
    assert all(torch.equal(after[key], weight) for key, weight in before.items())


def job_of(tmp_path, initial=None, **changes):
    recipe = replace(MEDUSA.recipe, **changes)
    output = tmp_path / "head"
    return TrainingJob("medusa", ["data"], output, recipe=recipe, initial=initial)


def test_medusa_learns_all_its_heads_or_none(tiny, tmp_path):
    job = job_of(tmp_path, unroll=2)
    with pytest.raises(BenchError, match="medusa has 4 heads: unroll is 2") as raised:
        MEDUSA.check(job, tiny)
    assert raised.value.hint == "train them all, with --unroll 4"
    MEDUSA.check(job_of(tmp_path), tiny)


def test_an_initial_head_has_levels_of_its_own(tiny, tmp_path):
    kind = architecture("medusa")
    network = kind(replace(kind.shape_for(tiny.config), levels=2))
    Head(network, torch.arange(97), tiny.name, tiny.identity).save(tmp_path / "two")
    MEDUSA.check(job_of(tmp_path, tmp_path / "two", unroll=2), tiny)
    with pytest.raises(BenchError, match="medusa has 2 heads: unroll is 4"):
        MEDUSA.check(job_of(tmp_path, tmp_path / "two"), tiny)
