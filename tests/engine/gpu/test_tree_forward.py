"""Trees of the host's loop run in shapes that a graph can hold: nothing of a result depends on
them."""

import pytest
import torch

from fspad_bench.core.protocols import ALL, LayerPlan
from fspad_bench.engine import gpu as kernels
from fspad_bench.engine.gpu import tree_forward
from fspad_bench.engine.gpu.tree_forward import GRAPHS, SIZES, Shape
from fspad_bench.engine.session import LARGEST_TREE
from fspad_bench.models.load import load_target

PROMPT = list(range(20, 43))


@pytest.fixture
def target(monkeypatch, device):
    """The tiny target with the reference kernels."""
    monkeypatch.setenv(kernels.VARIABLE, "reference")
    return load_target("tiny", device=device.type)


@pytest.fixture
def plain(monkeypatch, device):
    """The tiny target without kernels."""
    monkeypatch.setenv(kernels.VARIABLE, "host")
    return load_target("tiny", device=device.type)


def scores(target, tree, cuts=(), **options):
    """Score a tree in parts behind the prompt."""
    ends = [*cuts, len(tree)]
    with target.session(len(PROMPT) + len(tree), **options) as session:
        session.prefill(PROMPT)
        parts = [
            session.extend(tree.tokens[start:end], tree.parents[start:end])
            for start, end in zip([0, *ends], ends, strict=False)
        ]
    return [torch.cat(kind) for kind in zip(*parts, strict=True)]


@pytest.mark.parametrize("cuts", [(), (1,), (2, 5)], ids=["whole", "after the root", "in three"])
@pytest.mark.parametrize("size", [7, 8, 9, 65, 128])
def test_padding_changes_nothing(target, plain, grown, size, cuts):
    tree = grown(size)
    for own, expected in zip(scores(target, tree, cuts), scores(plain, tree, cuts), strict=True):
        torch.testing.assert_close(own, expected)


@pytest.mark.parametrize("size", SIZES)
def test_a_tree_of_a_graph_s_size_has_no_padding(target, grown, size):
    scores(target, grown(size))
    assert Shape(size, 0, ALL, ()) in target.trees.graphs


def test_skipped_layers_and_captured_states_have_graphs_of_their_own(target, plain, grown):
    tree = grown(5)
    skips = LayerPlan(skip_attention=frozenset([1]), skip_mlp=frozenset([0]))
    for options in ({"capture": (0, 1)}, {"layers": skips}, {}):
        own = scores(target, tree, **options)
        for mine, expected in zip(own, scores(plain, tree, **options), strict=True):
            torch.testing.assert_close(mine, expected)
    shapes = set(target.trees.graphs)
    assert {(s.layers, s.capture) for s in shapes} == {(ALL, (0, 1)), (skips, ()), (ALL, ())}


def test_a_result_outlives_the_next_forward(target, monkeypatch):
    """A graph writes to the same place at every replay."""
    run = tree_forward.Graph._run

    def in_place(graph):
        held = getattr(graph, "features", None)
        run(graph)
        if held is not None:
            graph.features = held.copy_(graph.features)

    monkeypatch.setattr(tree_forward.Graph, "_run", in_place)
    with target.session(80) as session:
        session.prefill(PROMPT)
        first = session.extend([5, 6], [-1, 0])
        kept = first.features.clone()
        session.rollback()
        second = session.extend([7, 8], [-1, 0])
        assert not torch.equal(second.features, kept)
        assert torch.equal(first.features, kept)


def test_committed_entries_are_never_padding(target, plain):
    """What a step leaves behind its tree is overwritten before it is read."""
    for number in range(3):
        logits = []
        for model in (target, plain):
            with model.session(80) as session:
                session.prefill(PROMPT)
                for step in range(6):
                    session.extend([5 + step, 6, 7], [-1, 0, 0])
                    session.commit([0, 2][: 1 + (step + number) % 2])
                logits.append(session.extend([9], [-1]).logits)
        torch.testing.assert_close(*logits)


def test_where_padding_does_not_fit_the_cache_there_is_none(target, plain, grown):
    tree = grown(5)
    capacity = 40
    logits = []
    for model in (target, plain):
        with model.session(capacity) as session:
            # as long as it gets: a tree of 5 fits, one of 8 does not
            length = session.cache.slots - 5
            session.prefill([20 + i % 30 for i in range(length)])
            logits.append(session.extend(tree.tokens, tree.parents).logits)
    torch.testing.assert_close(*logits)
    assert not target.trees.graphs


def test_a_new_cache_needs_new_graphs(target):
    with target.session(30) as session:
        session.prefill(PROMPT)
        session.extend([5], [-1])
        first = target.trees.graphs[Shape(1, 0, ALL, ())]
    with target.session(400) as session:
        session.prefill(PROMPT)
        session.extend([5], [-1])
    assert target.trees.graphs[Shape(1, 0, ALL, ())] is not first


def test_there_are_at_most_so_many_graphs(target, monkeypatch):
    monkeypatch.setattr(tree_forward, "GRAPHS", 3)
    with target.session(len(PROMPT) + LARGEST_TREE) as session:
        session.prefill(PROMPT)
        for number in range(6):
            session.extend([5], [number - 1])
    assert len(target.trees.graphs) == 3 < GRAPHS


def test_a_graph_in_use_stays_where_others_come_and_go(target, monkeypatch):
    """Shapes that are asked for once, as a search of layers asks, take the place of one another."""
    monkeypatch.setattr(tree_forward, "GRAPHS", 3)
    kept = Shape(1, 0, ALL, ())
    with target.session(len(PROMPT) + LARGEST_TREE) as session:
        session.prefill(PROMPT)
        session.extend([5], [-1])
        graph = target.trees.graphs[kept]
        for skipped in ([0], [1], [0, 1]):
            layers = LayerPlan(skip_mlp=frozenset(skipped))
            session.rollback()
            with target.session(0, layers=layers, share=session) as other:
                other.extend([5], [-1])
                other.rollback()
            session.extend([5], [-1])
    assert len(target.trees.graphs) == 3
    assert target.trees.graphs[kept] is graph


@pytest.mark.gpu
def test_on_a_gpu_the_first_tree_captures_all_sizes_and_changes_nothing(monkeypatch, grown):
    monkeypatch.delenv(kernels.VARIABLE, raising=False)
    target = load_target("tiny", device="cuda", dtype="float32")
    tree = grown(11)
    first = scores(target, tree)
    graphs = target.trees.graphs
    assert {shape.nodes for shape in graphs} == set(SIZES)
    assert all(graph.replay.graph for shape, graph in graphs.items() if shape.nodes != 16)
    for cuts in ((), (2, 5), (2, 5), (2, 5)):  # run, captured, replayed
        for own, expected in zip(scores(target, tree, cuts), first, strict=True):
            torch.testing.assert_close(own, expected)
