"""Logits processors: each node of a tree is shown its own text, and only functions are let in."""

from itertools import pairwise

import pytest
import torch

from fspad_bench.core.loop import generate
from fspad_bench.core.processors import NodeLogits, OutputProcessor, check_functions, output_logits
from fspad_bench.core.protocols import Drafter, Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import RULES, Accepted, Rule, match
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.lossless.exact import scripted
from fspad_bench.lossless.scripted import ScriptedTarget
from fspad_bench.util.errors import BenchError

V = 7
PROMPT = [3, 1, 4, 1, 5]
#     0 (5)
#   1(2)   2(6)
#   3(2)   4(2)
TREE = Tree([5, 2, 6, 2, 2], [-1, 0, 0, 1, 2])
PATHS = {0: [], 1: [2], 2: [6], 3: [2, 2], 4: [6, 2]}


class Recorded:
    """Forbids the last token, and keeps the texts that it was shown."""

    def __init__(self):
        self.texts = []

    def __call__(self, input_ids, scores):
        assert input_ids.shape[0] == scores.shape[0] == 1
        self.texts.append(input_ids[0].tolist())
        scores[0, input_ids[0, -1]] = -torch.inf  # in place: it may
        return scores


class RecordedOutput(OutputProcessor):
    def __init__(self):
        self.texts = []

    def __call__(self, input_ids, scores):
        self.texts.append(input_ids[0].tolist())
        return scores


def node_logits(*processors):
    logits = torch.arange(5.0 * V).view(5, V)
    return logits, NodeLogits(TREE, logits, Sampler(processors=processors), PROMPT, 2)


@pytest.mark.parametrize("node", PATHS)
def test_a_node_is_processed_with_its_own_path(node):
    recorded = Recorded()
    logits, nodes = node_logits(recorded)
    row = nodes[node]
    text = [*PROMPT, *PATHS[node]]
    assert recorded.texts == [text]
    expected = logits[node].clone()
    expected[text[-1]] = -torch.inf
    assert torch.equal(row, expected)
    assert nodes[node] is row
    assert recorded.texts == [text]


def test_the_targets_own_logits_stay_as_they_are():
    logits, nodes = node_logits(Recorded())
    nodes.whole()
    assert torch.equal(logits, torch.arange(5.0 * V).view(5, V))


def test_a_processor_of_the_output_sees_no_prompt():
    recorded = RecordedOutput()
    _, nodes = node_logits(recorded)
    nodes.whole()
    assert recorded.texts == [[*PROMPT[2:], *path] for path in PATHS.values()]


def test_low_precision_is_processed_in_float32():
    seen = []

    def typed(input_ids, scores):
        seen.append(scores.dtype)
        return scores

    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        logits = torch.zeros(1, V, dtype=dtype)
        nodes = NodeLogits(Tree.root(5), logits, Sampler(processors=(typed,)), PROMPT, 2)
        assert nodes[0].dtype == seen[-1]
    assert seen == [torch.float32, torch.float32, torch.float64]


def test_match_processes_the_nodes_that_it_reaches_alone():
    recorded = Recorded()
    _, nodes = node_logits(recorded)  # every row's best token is 6: the path is 0, 2
    assert match(TREE, nodes, nodes.sampler, 5) == Accepted([0, 2], 5)
    assert recorded.texts == [PROMPT, [*PROMPT, 6]]


def test_a_rule_of_ones_own_gets_a_tensor():
    @Rule
    def own(tree, logits, sampler, position):
        assert isinstance(logits, torch.Tensor)
        assert logits.shape == (5, V)
        return match(tree, logits, sampler, position)

    _, nodes = node_logits(Recorded())
    assert own(TREE, nodes, nodes.sampler, 5) == Accepted([0, 2], 5)


class Looks(Drafter):
    """Keeps the logits that its rule and `observe` are given."""

    def __init__(self):
        self.seen = []

        @Rule
        def looking(tree, logits, sampler, position):
            self.seen.append(logits)
            return match(tree, logits, sampler, position)

        self.rule = looking

    def propose(self, context, budget):
        return Tree.root(context.tokens[-1])

    def observe(self, step):
        assert self.seen[-1] is step.scores.logits


def test_without_processors_a_rule_gets_the_targets_own_logits():
    looks = Looks()
    generate(ScriptedTarget(V), looks, Sampler(), PROMPT, Limit(4))
    assert len(looks.seen) == 3


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_output_is_processed_token_by_token(rule, temperature):
    """No token follows itself, whatever is drafted; a text alone tells vanilla's next token."""
    target = ScriptedTarget(4)
    sampler = Sampler(temperature, processors=(Recorded(),), seed=1)
    drafter = scripted(rule.name, "ranked" if rule is match else "drawn")(target)
    prompt = [3, 1, 0, 1]
    tokens = generate(target, drafter, sampler, prompt, Limit(12)).tokens
    assert all(a != b for a, b in pairwise([prompt[-1], *tokens]))
    if temperature == 0 or rule is match:
        assert tokens == generate(target, Vanilla(target), sampler, prompt, Limit(12)).tokens


def test_the_texts_of_an_output():
    recorded = Recorded()
    sampler = Sampler(processors=(recorded,))
    rows = output_logits(torch.zeros(3, V), sampler, [1, 2], [4, 5, 6])
    assert recorded.texts == [[1, 2], [1, 2, 4], [1, 2, 4, 5]]
    assert [row.argmin() for row in rows] == [2, 4, 5]
    logits = torch.zeros(3, V)
    assert output_logits(logits, Sampler(), [1, 2], [4, 5, 6]) is logits


class CountsCalls:
    def __init__(self):
        self.calls = 0

    def __call__(self, input_ids, scores):
        self.calls += 1
        return scores + self.calls


class FollowsOneText:
    """A grammar that moves on with each longer text, as those written for one sequence do."""

    def __init__(self):
        self.length = 0
        self.state = 0

    def __call__(self, input_ids, scores):
        if input_ids.shape[1] > self.length:
            self.length = input_ids.shape[1]
            self.state += int(input_ids[0, -1])
        scores[0, self.state % V] = -torch.inf
        return scores


class RefusesTwice:
    def __init__(self):
        self.length = 0

    def __call__(self, input_ids, scores):
        if input_ids.shape[1] <= self.length:
            raise RuntimeError("token rejected")
        self.length = input_ids.shape[1]
        return scores


@pytest.mark.parametrize("stateful", [CountsCalls, FollowsOneText, RefusesTwice])
def test_a_processor_with_state_is_refused_by_name(stateful):
    sampler = Sampler(processors=(Recorded(), stateful()))
    target = ScriptedTarget(V)
    with pytest.raises(BenchError, match=stateful.__name__) as refusal:
        generate(target, Vanilla(target), sampler, PROMPT, Limit(4))
    assert "function of (input_ids, scores)" in refusal.value.hint


def test_a_function_is_let_in():
    check_functions([Recorded()], torch.zeros(V), PROMPT, 2)


@pytest.mark.parametrize("returned", [None, torch.zeros(V)])
def test_another_result_than_scores_is_refused_by_name(returned):
    def broken(input_ids, scores):
        return returned

    with pytest.raises(BenchError, match="the logits processor broken returned"):
        Sampler(processors=(broken,)).adjust(torch.zeros(V), torch.tensor(PROMPT), 2)


def test_processors_that_leave_no_token_are_named():
    def nothing(input_ids, scores):
        return torch.full_like(scores, -torch.inf)

    target = ScriptedTarget(V)
    for temperature in (0.0, 1.0):
        sampler = Sampler(temperature, processors=(nothing,))
        with pytest.raises(BenchError, match="before position 5") as refusal:
            generate(target, Vanilla(target), sampler, PROMPT, Limit(4))
        assert "nothing" in refusal.value.hint


def test_min_p_keeps_tokens_near_the_best():
    logits = torch.tensor([0.0, 1.0, 2.0, 2.0 - 1e-3, -5.0])
    sampler = Sampler(1.0, min_p=0.3)
    _, tokens = sampler.process(logits)
    assert tokens.tolist() == [1, 2, 3]  # e^-1 is 0.37, e^-2 0.14
    kept = Sampler(1.0, top_k=2, min_p=0.3).process(logits)[1]
    assert kept.tolist() == [2, 3]
    assert Sampler(1.0, min_p=1.0).process(logits)[1].tolist() == [2]
    p = sampler.distribution(logits)
    assert p[[0, 4]].tolist() == [0.0, 0.0]
    assert p.sum() == pytest.approx(1)


@pytest.mark.parametrize("min_p", [-0.1, 1.1, float("nan")])
def test_min_p_out_of_range(min_p):
    with pytest.raises(BenchError, match="min-p"):
        Sampler(1.0, min_p=min_p)


def test_a_processor_may_write_to_the_text_that_it_is_given():
    def overwrites(input_ids, scores):
        input_ids[:] = 0
        return scores

    last = Recorded()
    sampler = Sampler(processors=(overwrites, last))
    output_logits(torch.zeros(2, 5), sampler, [1, 2], [3, 4])
    assert last.texts == [[1, 2], [1, 2, 3]]


def test_what_only_the_host_can_choose():
    assert not Sampler(1.0, top_k=3, top_p=0.5).on_host
    assert Sampler(1.0, min_p=0.1).on_host
    assert not Sampler(0.0, min_p=0.1).on_host  # greedy: it cuts nothing
    assert Sampler(processors=(Recorded(),)).on_host
