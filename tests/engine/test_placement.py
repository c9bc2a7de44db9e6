"""Where a target's layers live: one device, or several."""

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from doubles import assert_same_scores
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import LlamaConfig

from fspad_bench.core.protocols import Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.build import build_decoder
from fspad_bench.engine import placement
from fspad_bench.engine.architecture import head_shape
from fspad_bench.engine.attention import Pending
from fspad_bench.engine.cache import KVCache
from fspad_bench.engine.placement import Placement, runs, spread, spread_model
from fspad_bench.engine.stock import StockForward
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.lossless.checks import ELSEWHERE, PASS
from fspad_bench.lossless.engine import ONE, check_engine, wrong_compactions
from fspad_bench.lossless.engines import described
from fspad_bench.lossless.reference import Reference
from fspad_bench.lossless.rounding import cache_error
from fspad_bench.models.load import load_target
from fspad_bench.models.tiny import CONFIG, tiny_model
from fspad_bench.util.errors import BenchError

CPU = torch.device("cpu")
TWO = "cpu:0,cpu:1"  # a rehearsal: the one processor under two names


@pytest.fixture(scope="module")
def two():
    return load_target("tiny", device=TWO)


@pytest.fixture(scope="module")
def one():
    return load_target("tiny")


def model_of(layers):
    return tiny_model(LlamaConfig(**CONFIG.to_dict() | {"num_hidden_layers": layers}))


def test_layers_are_shared_out_evenly_by_their_bytes():
    model = model_of(8)
    placed = spread(model, ["a", "b", "c"])
    layers = [placed[f"model.layers.{number}"] for number in range(8)]
    assert layers == sorted(layers)
    assert {layers.count(device) for device in "bc"} <= {3}
    assert layers.count("a") == 2  # it holds the embedding and the LM head as well
    assert {placed[name] for name in placed if "layers" not in name} == {"a"}


def test_consecutive_layers_of_a_device_are_one_run():
    a, b = CPU, torch.device("cpu:1")
    assert list(runs([a, a, b, a])) == [(a, 2), (b, 1), (a, 1)]


def test_a_spread_target_says_so(one, two):
    assert one.placement == Placement(CPU, (CPU,) * one.config.num_hidden_layers)
    assert one.placement.is_single
    assert str(one.placement) == "cpu"
    assert str(two.placement) == TWO
    assert two.forward_name == "stock, spread over 2 devices"


def test_its_scores_are_those_of_one_device(one, two):
    assert_same_scores(two, one)


def test_a_certification_looks_at_its_parts(two):
    assert described(two) == f"tiny, float64, torch, {TWO}"
    assert wrong_compactions(two) == []
    checks = check_engine(Reference(two), ONE, "spread")
    assert [check.verdict for check in checks if check.verdict != PASS] == [ELSEWHERE]
    generation = build_decoder("fspad", two).generate(two, Sampler(), [3, 4, 5], Limit(12))
    assert cache_error(two, [3, 4, 5], generation.tokens) < 1e-9


def test_a_model_that_a_user_spread_another_way_is_refused():
    model = tiny_model()
    placed = spread(model, ["cpu:0", "cpu:1"])
    model.hf_device_map = placed | {"lm_head": "cpu:1"}
    with pytest.raises(BenchError, match="lm_head lies on cpu:1, the embedding on cpu:0") as caught:
        TransformersTarget(model, None)
    assert "--device cuda:0,cuda:1" in caught.value.hint
    model.hf_device_map = placed | {"model.layers.1": "disk"}
    with pytest.raises(BenchError, match=r"model\.layers\.1 lies on disk"):
        TransformersTarget(model, None)
    del placed["model.layers.0"]
    model.hf_device_map = placed
    with pytest.raises(BenchError, match="does not name each of its modules"):
        TransformersTarget(model, None)


def hollow_out(module, device):
    """Replace a module's own tensors by ones without numbers, on a device that is not there."""
    for name, weight in module.named_parameters(recurse=False):
        setattr(module, name, nn.Parameter(torch.empty_like(weight, device=device)))
    for name, table in module.named_buffers(recurse=False):
        setattr(module, name, torch.empty_like(table, device=device))


def hooked(model, placed):
    """Let hooks move what a module gets, as accelerate's `dispatch_model` does on real devices."""
    for name, device in placed.items():
        add_hook_to_module(model.get_submodule(name), AlignDevicesHook(torch.device(device)))
    model.hf_device_map = placed
    return model


def test_no_product_meets_tensors_of_two_devices(monkeypatch):
    """Fake tensors hold no numbers, but their products refuse a second device as real ones do."""
    monkeypatch.setattr(placement, "dispatch_model", hooked)
    first, second = CPU, torch.device("meta")
    model = model_of(4)  # the last two lie on the second, and so does a captured state
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        for place, device in spread(model, ["cpu", "meta"]).items():
            for module in model.get_submodule(place).modules():
                hollow_out(module, device)
        model = spread_model(model, ["cpu", "meta"])
        layers = Placement.of(model).layers
        assert set(layers) == {first, second}
        shape = head_shape(model)
        cache = KVCache(layers, shape.kv_heads, 32, shape.dim, torch.float64)
        assert [part.device for part in cache.parts] == [first, second]
        forward = StockForward(model, shape)
        features, captured = forward([3, 4, 5], cache, None, (1, 3, 4))
        again, _ = forward([3, 4, 5], cache, Pending(3, [0b1, 0b11, 0b101], 3))
        held = cache.first(5)
    places = {features.device, again.device, held.device, *(state.device for state in captured)}
    assert places == {first}
