"""A target that several processes hold: what the leader says, and what the others make of it.

Here both are in one process; `tests/models/test_shares.py` starts real ones.
"""

import gc

import pytest
import torch

from fspad_bench.core.tree import Tree
from fspad_bench.engine import orders
from fspad_bench.engine.placement import Placement
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.engine.team import ALONE, Follower, Leader
from fspad_bench.models.tiny import tiny_model
from fspad_bench.util.errors import BenchError, TargetLost

CPU = torch.device("cpu")


class Loopback:
    """A connection to a follower in this process, which carries out at once what it is told."""

    def __init__(self, follower):
        self.follower = follower
        self.told = []
        self.answers = []

    def send(self, order):
        self.told.append(type(order).__name__)
        answer = order.carry_out(self.follower)
        if order.patience:
            self.answers.append(answer)

    def poll(self, seconds):
        return bool(self.answers)

    def recv(self):
        return self.answers.pop(0)

    def close(self):
        self.told.append("closed")


def load(dtype):
    return tiny_model().to(dtype)


def pair():
    """A leader's target and the way to its follower; each has all weights, so sums are left out."""
    follower = Follower([CPU], load)
    follower.target = TransformersTarget(tiny_model(), None, team=follower)
    way = Loopback(follower)
    return TransformersTarget(tiny_model(), None, team=Leader([CPU], load, [way])), way


@pytest.fixture
def stock_only(monkeypatch):
    """Let one device count as shared, so that the stock forward runs."""
    monkeypatch.setattr(Placement, "is_single", False)


@pytest.fixture
def held(stock_only):
    return pair()


def test_a_follower_does_what_the_leader_does(held):
    target, way = held
    with target.session(40) as session:
        session.prefill([1, 2, 3])
        session.score(Tree([5, 6, 7, 8], [-1, 0, 0, 2]))
        session.commit([0, 2, 3])
        session.score(Tree.root(9))
        ours = session.cache
    theirs = way.follower.caches[target.team.key_of(ours)]
    assert way.told == ["Allocate", "Forward", "Forward", "Keep", "Forward"]
    assert ours.first(7).abs().sum() > 0
    assert torch.equal(ours.first(7), theirs.first(7))


def test_a_cache_that_is_gone_is_freed_with_the_next_order(held):
    target, way = held
    target.reserve(10)
    assert len(way.follower.caches) == 1
    target.reserve(400)  # in place of the smaller one
    gc.collect()
    target.team.order(orders.ForgetPeak())
    assert len(way.follower.caches) == 1
    assert "Free" in way.told


def test_each_process_holds_its_share_of_the_heads():
    target = TransformersTarget(tiny_model(), None)
    whole = target.new_cache(8)
    target.team = Leader([CPU, CPU], load, [])
    shared = target.new_cache(8)
    assert shared.entries.shape[2] * 2 == whole.entries.shape[2] == target.heads.kv_heads


def test_ctrl_c_while_a_copy_is_loaded_loses_the_target(held):
    def interrupted(dtype):
        raise KeyboardInterrupt

    target, _ = held
    target.team.load = interrupted
    with pytest.raises(KeyboardInterrupt):
        target.team.precise(target.model, torch.float64)
    with pytest.raises(TargetLost):
        target.reserve(10)


def test_a_model_that_is_run_alone_raises_in_place_of_waiting(held):
    target, _ = held
    with pytest.raises(BenchError, match="shared among several processes") as caught:
        target.model(torch.tensor([[1, 2]]))
    assert "cuda:0,cuda:1" in caught.value.hint
    features = target.team.features(target.model, [1, 2, 3])
    assert torch.equal(features, ALONE.features(tiny_model(), [1, 2, 3]))


def test_a_precise_copy_is_loaded_by_all(held):
    target, way = held
    precise = target.team.precise(target.model, torch.float64)
    logits = precise.logits([3, 4, 5, 6], 2)
    expected = tiny_model()(torch.tensor([[3, 4, 5, 6]])).logits[0, 2:]
    torch.testing.assert_close(logits, expected)
    assert way.told[-2:] == ["Copy", "Rescore"]
    assert {model.dtype for model in way.follower.copies.values()} == {torch.float64}


def test_a_precise_copy_is_dropped_with_the_leaders(held):
    target, way = held
    precise = target.team.precise(target.model, torch.float64)
    assert len(way.follower.copies) == 1
    del precise
    gc.collect()
    target.team.order(orders.ForgetPeak())
    assert not way.follower.copies


@pytest.mark.parametrize("where", ["leader", "follower"])
def test_a_copy_that_one_process_has_no_room_for_loses_nothing(held, where):
    def full(dtype):
        raise torch.OutOfMemoryError("CUDA out of memory")

    target, way = held
    (target.team if where == "leader" else way.follower).load = full
    with pytest.raises(BenchError, match="no precise copy: out of memory"):
        target.team.precise(target.model, torch.float64)
    gc.collect()
    target.reserve(10)
    assert not way.follower.copies


def test_memory_is_that_of_all(held, monkeypatch):
    target, _ = held
    monkeypatch.setattr(orders.Peak, "carry_out", lambda order, follower: 70)
    assert target.team.peak_memory() == 70
    monkeypatch.setattr(Loopback, "poll", lambda way, seconds: False)
    with pytest.raises(TargetLost, match="does not answer"):
        target.team.peak_memory()


def test_a_forward_that_fails_loses_the_target(held):
    target, _ = held
    with (
        pytest.raises(TargetLost, match="ValueError: half way") as caught,
        target.team.together(orders.ForgetPeak()),
    ):
        raise ValueError("half way")
    assert "same command again" in caught.value.hint
    with pytest.raises(TargetLost, match="half way"):
        target.reserve(10)


def test_an_interruption_stays_one(held):
    target, _ = held
    with pytest.raises(KeyboardInterrupt), target.team.together(orders.ForgetPeak()):
        raise KeyboardInterrupt
    with pytest.raises(TargetLost):
        target.reserve(10)


def test_a_process_that_has_ended_loses_the_target(held, monkeypatch):
    def broken(way, order):
        raise BrokenPipeError

    target, _ = held
    monkeypatch.setattr(Loopback, "send", broken)
    with pytest.raises(TargetLost, match="a process that holds a share of it has ended"):
        target.reserve(10)


def test_a_follower_ends_with_its_leader():
    class Orders:
        def __init__(self):
            self.waiting = [orders.Peak()]
            self.answers = []

        def recv(self):
            if not self.waiting:
                raise EOFError
            return self.waiting.pop()

        def send(self, answer):
            self.answers.append(answer)

    connection = Orders()
    follower = Follower([CPU], load)
    follower.follow(TransformersTarget(tiny_model(), None), connection)
    assert connection.answers == [0]


def test_a_closed_team_takes_no_orders(held):
    target, way = held
    target.team.close()
    assert way.told[-1] == "closed"
    with pytest.raises(TargetLost, match="closed"):
        target.reserve(10)
