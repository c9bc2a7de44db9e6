"""The losses equal sums written out by hand."""

import pytest
import torch

from fspad_bench.training.losses import losses, wanted

NONE = torch.full((6,), -1)


def random_inputs(seed, n=6, d=5, vocabulary=11):
    """Return h_logit, h_feature, target feature `[N, d]` each, and an LM head `[V, d]`."""
    generator = torch.Generator().manual_seed(seed)
    h_logit, h_feature, target = torch.randn(3, n, d, generator=generator)
    return h_logit, h_feature, target, torch.randn(vocabulary, d, generator=generator)


def test_the_full_vocabulary_gives_the_published_losses():
    h_logit, h_feature, target, head = random_inputs(seed=0)
    normaliser = (target @ head.T).logsumexp(-1)
    actual = losses(h_logit, h_feature, target, wanted(target, normaliser, NONE, head), head)
    gap = (h_feature - target).abs()
    smooth_l1 = torch.where(gap < 1, gap**2 / 2, gap - 0.5)
    assert torch.isclose(actual.feature, smooth_l1.mean(-1).mean())
    p = (target @ head.T).softmax(-1)
    q = (h_logit @ head.T).softmax(-1)
    assert torch.isclose(actual.logit, -(p * q.log()).sum(-1).mean())


def test_a_draft_vocabulary_gives_the_renormalised_loss_weighted_by_its_mass():
    h_logit, h_feature, target, head = random_inputs(seed=1)
    vocabulary = torch.tensor([1, 4, 7])
    logits = target @ head.T
    p = logits.softmax(-1)
    normaliser = logits.logsumexp(-1)
    own = head[vocabulary]
    actual = losses(h_logit, h_feature, target, wanted(target, normaliser, NONE, own), own)
    log_q = (h_logit @ head[vocabulary].T).log_softmax(-1)
    assert torch.isclose(actual.logit, -(p[:, vocabulary] * log_q).sum(-1).mean())
    assert torch.isclose(actual.mass, p[:, vocabulary].sum(-1).mean())
    assert actual.agreement == 0


def test_agreement_counts_first_choices():
    _, h_feature, target, head = random_inputs(seed=2)
    choice = (target @ head.T).argmax(-1)
    choice[0] = (choice[0] + 1) % 11
    of_target = wanted(target, torch.zeros(6), choice, head)
    actual = losses(target, h_feature, target, of_target, head)
    assert torch.isclose(actual.agreement, torch.tensor(5 / 6))


def test_the_top_loss_counts_the_likeliest_tokens_alone():
    h_logit, h_feature, target, head = random_inputs(seed=3)
    normaliser = (target @ head.T).logsumexp(-1)
    p = (target @ head.T).softmax(-1)
    log_q = (h_logit @ head.T).log_softmax(-1)
    expected = -sum(float(p[n, t] * log_q[n, t]) for n in range(6) for t in p[n].topk(2).indices)
    of_target = wanted(target, normaliser, NONE, head)
    actual = losses(h_logit, h_feature, target, of_target, head, top_k=2)
    assert float(actual.top) == pytest.approx(expected / 6, rel=1e-5)
    assert float(losses(h_logit, h_feature, target, of_target, head).top) == 0


def test_what_the_target_says_at_some_positions_is_a_part_of_the_whole():
    _, _, target, head = random_inputs(seed=4)
    normaliser = (target @ head.T).logsumexp(-1)
    kept = torch.tensor([True, False, True, True, False, True])
    token = torch.arange(6)
    part = wanted(target, normaliser, NONE, head, token).at(kept)
    alone = wanted(target[kept], normaliser[kept], NONE[kept], head, token[kept])
    for own, other in zip(part, alone, strict=True):
        torch.testing.assert_close(own, other)
    assert wanted(target, normaliser, NONE, head).at(kept).token is None


def test_the_losses_of_no_positions_are_zero_and_a_part_of_the_graph():
    """As of a draft level that no text is long enough for."""
    h_logit, h_feature, target, head = random_inputs(seed=5)
    none = torch.zeros(6, dtype=torch.bool)
    of_target = wanted(target, torch.zeros(6), NONE, head, NONE).at(none)
    h_logit.requires_grad_()
    of_none = losses(h_logit[none], h_feature[none], target[none], of_target, head, top_k=2)
    assert [float(loss.detach()) for loss in of_none] == [0.0] * 6
    (gradient,) = torch.autograd.grad(of_none.logit + of_none.top, h_logit)
    assert not gradient.any()
