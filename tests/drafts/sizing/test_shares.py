"""Trees of requests that share a forward: each is sized by its share of the cost."""

from dataclasses import replace

import pytest

from fspad_bench.core.protocols import Context, Step
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import Accepted
from fspad_bench.decoders.fspad import Fspad
from fspad_bench.drafts.draft import Draft
from fspad_bench.drafts.sizing.calibration import Calibration, Curve
from fspad_bench.drafts.sizing.costs import NEAR, SIZES, Costs
from fspad_bench.drafts.sizing.policy import AdaptiveTree

CURVE = Curve(0.0, 1.0, 0.8, 0.95)
CONFIDENT = Calibration((CURVE,), (CURVE,))
PROMPT = list(range(30, 52))


def test_a_request_pays_its_share_of_a_forward_and_a_longer_prefix_by_itself():
    costs = Costs(tuple(10.0 + n for n in SIZES), 0.5, 0.25, tuple(1e-3 * n for n in SIZES))
    alone = costs.all_forwards(NEAR)
    assert costs.all_forwards(NEAR, 1) == alone
    share = costs.all_forwards(NEAR, 4)
    assert [share[n] for n in (1, 3, 16)] == [alone[4] / 4, alone[12] / 4, alone[64] / 4]
    assert share[32] == pytest.approx(2 * share[16])  # beyond the largest size, in proportion
    further = costs.all_forwards(NEAR + 100, 4)
    assert further[8] - share[8] == pytest.approx(100 * 8e-3)


def test_trees_shrink_as_more_requests_share_a_forward():
    costs = Costs(tuple(1 + 0.1 * n for n in SIZES), 0.05, 0.05)
    policy = AdaptiveTree(64, 8, 4, costs, CONFIDENT, greedy=True)
    chances = [0.8**n for n in range(1, 40)]
    kept = [policy.at(NEAR, 1.0, batch).keep(chances, 1) for batch in (1, 2, 4, 16)]
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) == 4


def test_nothing_is_drafted_where_so_many_share_a_forward_that_no_node_pays(tiny, monkeypatch):
    drafter = Fspad(tiny, tree="auto")
    drafter.prepare(tiny)
    dear = replace(drafter.policies[True], costs=Costs(tuple(1 + 0.3 * n for n in SIZES), 0.4, 0.4))
    drafter.policies = {True: dear, False: dear}
    context = Context([*PROMPT, 7], len(PROMPT), Sampler())
    session = tiny.session(64)
    drafter.begin(context, session.prefill(PROMPT))
    context.batch = 64
    with monkeypatch.context() as patch:
        patch.setattr(Draft, "logits", None)
        assert drafter.propose(context, 8) == Tree.root(7)
    scores = session.score(Tree.root(7))
    context.tokens.append(5)
    drafter.observe(Step(context, Tree.root(7), scores, Accepted([0], 5)))
    context.batch = 1
    drafter.propose(context, 8)
    assert drafter.draft.length == len(PROMPT) + 1  # what was not read then is read now
