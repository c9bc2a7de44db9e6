"""ADED drafts along tri-grams: the best first, or what its search visits most."""

from __future__ import annotations

import random
from itertools import product

import pytest

from fspad_bench.core.protocols import Context, Step
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import Accepted
from fspad_bench.decoders.aded import Aded, best_paths, sentences, trie
from fspad_bench.drafts.monte_carlo import most_visited
from fspad_bench.drafts.trigrams import STEP, Trigrams, count_trigrams
from fspad_bench.lossless.scripted import ScriptedTarget
from fspad_bench.models.chat import vocabulary_hash
from fspad_bench.util.errors import BenchError

TARGET = ScriptedTarget()


def started(tokens, **options):
    drafter = Aded(TARGET, **options)
    drafter.begin(Context(list(tokens), 0), None)
    return drafter


def draft(drafter, tokens, budget=99):
    """Return the paths of all nodes but the root."""
    tree = drafter.propose(Context(list(tokens), 0), budget)
    assert tree.tokens[0] == tokens[-1]
    paths = [()]
    for token, parent in zip(tree.tokens[1:], tree.parents[1:], strict=True):
        paths.append((*paths[parent], token))
    return paths[1:]


def random_trigrams(symbols, seed):
    dice = random.Random(seed)
    trigrams = Trigrams()
    for _ in range(12 * symbols):
        trigrams.learn([dice.randrange(symbols) for _ in range(4)])
    return trigrams


def every_path(trigrams, pair, symbols, depth):
    """Return all possible paths with the product of the shares along them."""
    products = {}
    for length in range(1, depth + 1):
        for path in product(range(symbols), repeat=length):
            p = 1.0
            tokens = (*pair, *path)
            for i, token in enumerate(path):
                values = dict(trigrams.after(*tokens[i : i + 2]))
                p *= values.get(token, 0.0) / (sum(values.values()) or 1.0)
            if p:
                products[path] = p
    return products


@pytest.mark.parametrize("symbols", [2, 4])
@pytest.mark.parametrize("seed", range(4))
def test_best_first_takes_the_most_probable_of_all_paths(symbols, seed):
    trigrams = random_trigrams(symbols, seed)
    known = every_path(trigrams, (0, 1), symbols, 4)
    found = best_paths(trigrams, (0, 1), 9, 4)
    best = sorted(known.values(), reverse=True)[: len(found)]
    assert [known[path] for path in found] == pytest.approx(best)
    assert len(found) == min(9, len(known))


def test_sentences_are_the_24_most_visited_paths_with_their_best_successors():
    trigrams = random_trigrams(6, 1)
    paths = most_visited(trigrams.after, (0, 1), random.Random(7), 150)
    expected = []
    for path in paths[:24]:
        best = trigrams.after(*(0, 1, *path)[-2:])
        expected.append((*path, *[token for token, _ in best[:1]]))
    assert sentences(trigrams, (0, 1), random.Random(7)) == expected


def test_a_trie_leaves_the_last_paths_out():
    tree = trie(9, [(1, 2), (1, 3), (1, 2, 4), (5,)], nodes=5, depth=3)
    assert (list(tree.tokens), list(tree.parents)) == ([9, 1, 2, 3, 4], [-1, 0, 1, 1, 2])
    assert trie(9, [(1, 2, 3)], nodes=9, depth=2).depths == [0, 1, 2]


@pytest.mark.parametrize("maker", ["best_first", "mcts"])
class TestMakers:
    TOKENS = (1, 2, 3, 4, 1, 2, 3, 5, 1, 2)

    def test_drafts_what_followed(self, maker):
        found = draft(started(self.TOKENS, maker=maker), self.TOKENS)
        assert found[0] == (3,)
        assert {(3,), (3, 4), (3, 5), (3, 4, 1), (3, 5, 1)} <= set(found)

    def test_the_same_tokens_give_the_same_draft(self, maker):
        first = draft(started(self.TOKENS, maker=maker), self.TOKENS)
        assert draft(started(self.TOKENS, maker=maker), self.TOKENS) == first

    @pytest.mark.parametrize("budget", [0, 1, 3])
    def test_stays_within_the_budget(self, maker, budget):
        found = draft(started(self.TOKENS, maker=maker), self.TOKENS, budget)
        assert max(map(len, found), default=0) == budget

    def test_stays_within_the_nodes(self, maker):
        assert len(draft(started(self.TOKENS, maker=maker, nodes=4), self.TOKENS)) == 3

    def test_an_unknown_pair_has_no_draft(self, maker):
        assert draft(started([7, 8, 9], maker=maker), [7, 8, 9]) == []
        assert draft(started([7], maker=maker), [7]) == []


def observe(drafter, tokens):
    step = Step(Context(list(tokens), 0), Tree.root(0), None, Accepted([0], 0))
    drafter.observe(step)


def value(drafter, *trigram):
    return dict(drafter.trigrams.after(*trigram[:2])).get(trigram[2], 0.0)


def test_a_trigram_counts_once_for_each_step_that_it_stays_in_the_window():
    tokens = list(range(20))
    drafter = started(tokens, prompt=False)
    assert value(drafter, 1, 2, 3) == 0
    for _ in range(30):
        tokens.append(50)
        observe(drafter, tokens)
    assert value(drafter, 17, 18, 19) == pytest.approx(14 * STEP)


def test_no_new_token_is_missed_however_long_the_step():
    drafter = started([1, 2], prompt=False)
    observe(drafter, range(1, 40))
    assert all(value(drafter, i, i + 1, i + 2) == pytest.approx(STEP) for i in range(1, 38))


def test_the_prompt_is_learned_from_once():
    assert value(started(range(40)), 1, 2, 3) == pytest.approx(STEP)


@pytest.mark.parametrize(("scope", "expected"), [("prompt", []), ("run", [(3,)])])
def test_what_was_learned_lasts_as_long_as_the_scope(scope, expected):
    drafter = started([1, 2, 3], scope=scope)
    drafter.begin(Context([1, 2], 0), None)
    assert draft(drafter, [1, 2]) == expected


class TestTable:
    @pytest.fixture
    def folder(self, tiny, tmp_path):
        facts = {
            "tokenizer": vocabulary_hash(tiny.tokenizer),
            "target": "tiny",
            "vocabulary_size": 97,
        }
        count_trigrams([([1, 2, 3, 4, 5], [(0, 5)])], 97, facts).save(tmp_path)
        return str(tmp_path)

    def test_a_table_drafts_from_the_start_and_is_in_the_settings(self, tiny, folder):
        drafter = Aded(tiny, table=folder)
        drafter.begin(Context([9, 1, 2], 3), None)
        assert draft(drafter, [9, 1, 2]) == [(3,), (3, 4), (3, 4, 5)]
        assert drafter.settings()["table_sha256"] == drafter.table.sha256
        assert Aded(tiny).settings()["table_sha256"] == ""

    def test_a_target_without_a_tokenizer_takes_no_table(self, folder):
        with pytest.raises(BenchError, match="needs a target with a tokenizer"):
            Aded(TARGET, table=folder)

    def test_a_token_that_the_target_lacks_is_refused(self, tiny, tmp_path):
        """Targets of one tokenizer may have embeddings of different sizes."""
        facts = {
            "tokenizer": vocabulary_hash(tiny.tokenizer),
            "target": "wider",
            "vocabulary_size": 128,
        }
        count_trigrams([([1, 2, 97], [(0, 3)])], 128, facts).save(tmp_path)
        with pytest.raises(BenchError, match="holds token 97, and tiny has 97"):
            Aded(tiny, table=str(tmp_path))

    def test_a_table_of_another_tokenizer_is_refused(self, tiny, tmp_path):
        facts = {"tokenizer": "other", "target": "vicuna-7b", "vocabulary_size": 97}
        count_trigrams([([1, 2, 3], [(0, 3)])], 97, facts).save(tmp_path)
        with pytest.raises(BenchError, match="built for vicuna-7b, whose tokenizer is not tiny's"):
            Aded(tiny, table=str(tmp_path))


@pytest.mark.parametrize("nodes", [0, 1, 129])
def test_options_out_of_range_are_refused(nodes):
    with pytest.raises(BenchError, match="aded takes"):
        Aded(TARGET, nodes=nodes)
