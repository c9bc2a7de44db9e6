"""The engine's checks: they hold on every small engine, and see faults at one size alone."""

from types import SimpleNamespace

import pytest
import torch
from doubles import WINDOWED, random_target

from fspad_bench.core.tree import Tree
from fspad_bench.engine.attention import Pending
from fspad_bench.engine.cache import KVCache
from fspad_bench.engine.cpu.native import native
from fspad_bench.engine.together import keeps_bits
from fspad_bench.lossless import engine, engines, paths
from fspad_bench.lossless.reference import Reference

SMALL = engine.Sizes(nodes=(1, 64, 65, 128), prefixes=(1, 130), lengths=(1, 127, 300))
SUBJECTS = ("tiny, float64", "wide, float32", "wide, bfloat16", "tiny, float64, reference")


@pytest.fixture(scope="module")
def small(tiny):
    """The small engines by what a report calls them."""
    return engines.small_engines(tiny)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("number", range(len(SUBJECTS)), ids=SUBJECTS)
def test_every_small_engine_holds(small, number):
    subject, target = list(small.items())[number]
    checks = engine.check_engine(Reference(target), SMALL, subject)
    assert [check for check in checks if not check.holds] == []
    assert len(checks) == 4


@pytest.mark.parametrize("name", WINDOWED)
def test_targets_with_windows_hold_and_a_wrong_window_is_caught(name, monkeypatch):
    target = random_target(name)
    sizes = engine.Sizes(nodes=(1, 64), prefixes=(40,), lengths=(1, 60))
    reference = Reference(target)
    assert all(check.holds for check in engine.check_engine(reference, sizes, name))
    right = Pending.first_seen

    def one_less(self, window):
        return right(self, window and window - 1)

    monkeypatch.setattr(Pending, "first_seen", one_less)
    wrong = [each.name for each in engine.check_engine(reference, sizes, name) if not each.holds]
    assert wrong == ["attention", "tree scores"]


@pytest.mark.parametrize("name", ["qwen2-window", "gemma3"])
def test_a_shallow_target_keeps_windows_and_scales(name):
    one = engines.shallow(random_target(name, num_hidden_layers=3), layers=2)
    assert one.heads.windows == random_target(name).heads.windows
    found = engine.tree_errors(Reference(one), engine.Sizes((30,), (9,), ()))
    assert found.reference < 1e-9


@pytest.mark.sampled(2)
@pytest.mark.parametrize("number", [1, 3], ids=[SUBJECTS[1], SUBJECTS[3]])
def test_every_step_of_a_loop_holds(small, number):
    subject, target = list(small.items())[number]
    if target.kernels:
        target = engines.tiny_on_kernels()  # a small cache: the reference kernels read all of it
    checks = paths.check_paths(target, subject)
    assert [check for check in checks if not check.holds] == []
    assert len(checks) == (2 if target.kernels else 1)


@pytest.mark.skipif(native() is None, reason="no compiled step")
def test_the_compiled_step_is_among_them_and_repeats_its_bits(small):
    compiled = [target for target in small.values() if keeps_bits(target)]
    assert {target.dtype for target in compiled} == {torch.float32, torch.bfloat16}
    for target in compiled:
        found = engine.tree_errors(Reference(target), engine.Sizes((65,), (130,), ()))
        assert (found.bits, found.single) == (True, 0.0)


def test_sizes_end_at_the_context(tiny):
    few = engine.FEW.within(tiny)
    assert few.lengths[-1] == tiny.max_length - 128
    assert max(few.prefixes) > 2048
    assert {63, 64, 65, 127, 128} <= set(few.nodes)


def test_a_context_in_which_no_size_fits_is_looked_at_to_its_end():
    small = SimpleNamespace(max_length=300)
    assert engine.ONE.within(small).prefixes == (171,)
    assert engine.FEW.within(small).prefixes == (1, 127)


def test_paths_cover_every_depth_and_every_refusal():
    assert {depth for depth, right in paths.CASES if depth == right} == set(range(1, 17))
    assert {right for depth, right in paths.CASES if depth == 16} == set(range(17))


def test_a_tree_along_the_truth_is_right_so_far_and_no_further():
    truth = list(range(20, 40))
    tree = paths.tree_along(truth, 5, 3, 97, 70)
    node, right = 0, 0
    while (node, truth[right + 1]) in tree.children:
        node = tree.children[node, truth[right + 1]]
        right += 1
    assert (right, max(tree.depths)) == (3, 5)
    assert node > 70


def test_a_shallow_target_has_the_first_layers_of_a_large_one(tiny):
    one = engines.shallow(tiny, layers=1)
    assert one.config.num_hidden_layers == 1
    assert tiny.config.num_hidden_layers == 2
    assert engines.shallow(tiny, layers=2) is tiny
    own = tiny.model.base_model.layers[0].mlp.down_proj.weight
    assert torch.equal(one.model.base_model.layers[0].mlp.down_proj.weight, own)
    found = engine.tree_errors(Reference(one), engine.Sizes((5,), (9,), ()))
    assert found.reference < 1e-9


@pytest.mark.parametrize("length", [1, 9, 17])
def test_a_compaction_that_is_wrong_for_one_length_is_named(tiny, length, monkeypatch):
    keep = KVCache.keep

    def wrong(self, start, path):
        keep(self, start, path)
        if len(path) == length:
            self.entries[..., start + length - 1, :] += 1

    monkeypatch.setattr(KVCache, "keep", wrong)
    assert engine.wrong_compactions(tiny) == [length]


def test_one_token_at_a_time_leaves_the_session_as_it_was(tiny):
    with tiny.session(12) as session:
        session.prefill([1, 2, 3])
        tree = Tree([4, 5, 6, 7], [-1, 0, 0, 2])
        alone = engine.one_at_a_time(session, tree, [[0, 2, 3], [0, 1]])
        assert session.length == 3
        together = session.score(tree).logits
    assert sorted(alone) == [0, 1, 2, 3]
    for node, logits in alone.items():
        torch.testing.assert_close(logits, together[node], rtol=0, atol=1e-12)


def test_what_lines_share_is_run_once(tiny):
    tree = Tree([4, 5, 6, 7, 8], [-1, 0, 0, 2, 2])
    with tiny.session(12) as session:
        session.prefill([1, 2, 3])
        before = tiny.forwards
        engine.one_at_a_time(session, tree, [[0, 2, 3], [0, 1], [0, 2, 4]])
    assert tiny.forwards - before == 5


def test_the_first_tree_that_is_wrong_ends_the_search(tiny, monkeypatch):
    compared = []

    def wrong(ours, right):
        compared.append(len(ours))
        return 1.0 if len(ours) == 64 else 0.0

    monkeypatch.setattr(engine, "relative_error", wrong)
    sizes = engine.Sizes(nodes=(1, 64, 65), prefixes=(2, 3), lengths=())
    assert not engine.trees_hold(Reference(tiny), sizes)
    assert 64 in compared
    assert 65 not in compared
    assert engine.tree_errors(Reference(tiny), sizes).reference == 1.0
    assert 65 in compared
