"""The losses against hand-made sums."""

import pytest
import torch

from fspad_bench.training.losses import losses


def rows(n=6, d=5, vocabulary=11, seed=0):
    generator = torch.Generator().manual_seed(seed)
    h_logit, h_feature, target = torch.randn(3, n, d, generator=generator)
    return h_logit, h_feature, target, torch.randn(vocabulary, d, generator=generator)


def test_published_loss_on_the_full_vocabulary():
    h_logit, h_feature, target, head = rows()
    whole = (target @ head.T).logsumexp(-1)
    found = losses(h_logit, h_feature, target, whole, torch.zeros(6, dtype=torch.int64), head)
    gap = (h_feature - target).abs()
    smooth = torch.where(gap < 1, gap**2 / 2, gap - 0.5)
    assert torch.isclose(found.feature, smooth.mean(-1).mean())
    p, q = (target @ head.T).softmax(-1), (h_logit @ head.T).softmax(-1)
    assert torch.isclose(found.logit, -(p * q.log()).sum(-1).mean())


def test_a_draft_vocabulary_is_the_renormalised_law_weighted_by_its_mass():
    h_logit, h_feature, target, head = rows(seed=1)
    kept = torch.tensor([1, 4, 7])
    logits = target @ head.T
    full = logits.softmax(-1)
    found = losses(
        h_logit, h_feature, target, logits.logsumexp(-1), torch.full((6,), -1), head[kept]
    )
    q = (h_logit @ head[kept].T).log_softmax(-1)
    assert torch.isclose(found.logit, -(full[:, kept] * q).sum(-1).mean())
    assert torch.isclose(found.mass, full[:, kept].sum(-1).mean())
    assert found.agreement == 0


def test_agreement_counts_first_choices():
    _, h_feature, target, head = rows(seed=2)
    choice = (target @ head.T).argmax(-1)
    choice[0] = (choice[0] + 1) % 11
    found = losses(target, h_feature, target, torch.zeros(6), choice, head)
    assert torch.isclose(found.agreement, torch.tensor(5 / 6))


def test_the_top_loss_counts_the_targets_likeliest_tokens_alone():
    h_logit, h_feature, target, head = rows(seed=3)
    whole = (target @ head.T).logsumexp(-1)
    found = losses(h_logit, h_feature, target, whole, torch.full((6,), -1), head, top_k=2)
    p, q = (target @ head.T).softmax(-1), (h_logit @ head.T).log_softmax(-1)
    expected = -sum(float(p[n, t] * q[n, t]) for n in range(6) for t in p[n].topk(2).indices) / 6
    assert float(found.top) == pytest.approx(expected, rel=1e-5)
    assert float(losses(h_logit, h_feature, target, whole, torch.full((6,), -1), head).top) == 0
