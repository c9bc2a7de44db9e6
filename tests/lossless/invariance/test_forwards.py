"""A planted operation that depends on the number of rows is named, in transformers' forward and in
ours; ours has none of its own.
"""

import pytest
import torch
from doubles import random_target
from torch import nn

from fspad_bench.engine import gpu
from fspad_bench.engine.cpu import native
from fspad_bench.lossless.engines import wide_target
from fspad_bench.lossless.invariance.kernels import SAMPLERS, kernel_subjects
from fspad_bench.lossless.invariance.ours import PARTS, STEP, own_subjects
from fspad_bench.lossless.invariance.probe import BRANCH, CHAIN, Company, kept, probe
from fspad_bench.lossless.invariance.problem import problem_for
from fspad_bench.lossless.invariance.stock import stock_subject
from fspad_bench.lossless.invariance.trace import LOGITS, Operation
from fspad_bench.util.errors import BenchError

SIZES = (1, 2, 3, 9)
PREFIX = 40
compiled = pytest.mark.skipif(native.native() is None, reason="nothing is compiled here")


class Crowded(nn.Module):
    """A module that adds a little where it is asked for more than three rows."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    @property
    def weight(self):
        return self.module.weight

    def forward(self, x):
        out = self.module(x)
        return out * 1.5 if x.shape[0] * x.shape[1] > 3 else out


def problem(target, sizes=SIZES):
    return problem_for(target, PREFIX, sizes)


@torch.inference_mode()
def findings(subjects, sizes=SIZES):
    return {(f.subject, f.company): f for f in probe(subjects, sizes)}


@pytest.fixture
def planted():
    """A model in whose second layer's place an operation counts its rows."""
    target = random_target("llama", torch.float32)
    layer = target.model.base_model.layers[0]
    layer.input_layernorm = Crowded(layer.input_layernorm)
    return target


def test_the_planted_operation_of_transformers_forward_is_named(planted):
    found = findings([stock_subject(planted, problem(planted))])
    for kind in ("chain", "tree", "branch", "batch"):
        difference = found["transformers", Company(kind, 9)].difference
        assert difference.operation == Operation("input_layernorm", 0)
        assert found["transformers", Company(kind, 1)].same


def test_the_model_is_left_as_it_was(planted):
    attention = planted.model.config._attn_implementation
    findings([stock_subject(planted, problem(planted))])
    assert planted.model.config._attn_implementation == attention
    assert not [m for m in planted.model.modules() if m._forward_hooks]


def test_every_operation_of_transformers_layers_is_traced(tiny):
    trace = stock_subject(tiny, problem(tiny)).together(Company(CHAIN, 2))
    names = [op.name for op in trace if op.layer == 1]
    modules = [f"self_attn.{name}_proj" for name in "qkv"]
    mlp = [f"mlp.{name}" for name in ("gate_proj", "act_fn", "up_proj", "down_proj")]
    assert names == [
        *("input_layernorm", *modules, "rotary", "attention", "self_attn.o_proj", "self_attn"),
        *("post_attention_layernorm", *mlp, "mlp", "output"),
    ]
    assert next(iter(trace)) == Operation("embed_tokens")
    assert list(trace)[-2:] == [Operation("norm"), Operation(LOGITS)]


@pytest.mark.parametrize("name", ["mistral-window", "gemma3", "not fused"])
def test_other_families_are_asked_too(name):
    target = random_target(name)
    subjects = [stock_subject(target, problem(target)), *own_subjects(target, problem(target))]
    found = findings(subjects, (1, 9))
    assert {finding.subject for finding in found.values()} >= {"transformers", STEP}
    for finding in found.values():  # in float64 rounding is small, a wrong mask or position is not
        assert finding.same or finding.difference.gap < 1e-6
        assert not finding.choices


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_ours_keeps_its_bits_where_it_is_compiled(dtype):
    target = wide_target(dtype)
    rows = problem(target)
    found = findings([*own_subjects(target, rows), *kernel_subjects(target, rows)])
    own = [finding for finding in found.values() if finding.own]
    assert kept(own)
    assert {finding.company.kind for finding in own} >= {"chain", "tree", "branch", "rows"}


@compiled
def test_the_planted_operation_of_ours_is_named():
    target = wide_target(torch.float32)
    gated = target.fused.ops.gated
    target.fused.ops.gated = lambda both: gated(both) * (1 + (len(both) > 3))
    subjects = own_subjects(target, problem(target))
    found = findings(subjects)
    assert found[PARTS, Company(CHAIN, 9)].difference.operation == Operation("act_fn", 0)
    assert found[PARTS, Company(BRANCH, 9)].difference.operation == Operation("act_fn", 0)
    assert found[PARTS, Company(CHAIN, 3)].same
    assert not kept(found.values())


@compiled
def test_the_step_is_asked_as_decoders_run_it():
    target = wide_target(torch.float32)
    logits = target.logits
    target.logits = lambda x: logits(x) * (1 + (len(x) > 3))
    found = findings(own_subjects(target, problem(target))[:1])
    difference = found[STEP, Company(CHAIN, 9)].difference
    assert difference.operation == Operation(LOGITS)
    assert found[STEP, Company(CHAIN, 3)].same


def test_a_product_that_counts_its_rows_is_named(monkeypatch, tiny):
    from fspad_bench.lossless.invariance import kernels

    monkeypatch.setattr(kernels.Matrix, "__call__", lambda self, x: x.sum(-1, True) + len(x))
    found = findings([next(kernel_subjects(tiny, problem(tiny)))])
    finding = found["product 64 -> 128, torch", Company("rows", 2)]
    assert finding.difference.row == 0
    assert not kept([finding])


def test_a_devices_kernels_are_asked_too(monkeypatch):
    monkeypatch.setenv(gpu.VARIABLE, "triton")
    for name in SAMPLERS.keys() - {"greedy", "T = 1"}:  # slow in the interpreter
        monkeypatch.delitem(SAMPLERS, name)
    target = random_target("llama", torch.float32)
    sizes = (1, 2)
    found = findings(kernel_subjects(target, problem(target, sizes)), sizes)
    assert found["attention, triton", Company(BRANCH, 1)].own
    assert not found["attention, torch", Company(BRANCH, 1)].own
    samplers = [f for f in found.values() if f.subject.startswith("verification, triton, ")]
    assert len(samplers) == 2 * len(SAMPLERS)
    assert kept(samplers)


def test_a_branch_is_the_path_to_a_trees_deepest_node(tiny):
    rows = problem(tiny)
    tree = rows.tree(9)
    path = rows.branch(9)
    assert len(path) == max(tree.depths) + 1
    assert [tree.parents[node] for node in path] == [-1, *path[:-1]]
    assert rows.compared(Company(BRANCH, 9)) == slice(path[-1], path[-1] + 1)
    assert rows.branch(1) == [0]


def test_rows_that_do_not_fit_are_refused(tiny):
    with pytest.raises(BenchError, match="129 rows are too many"):
        problem_for(tiny, 10, (129,))
    with pytest.raises(BenchError, match="exceed the context"):
        problem_for(tiny, tiny.max_length, (1,))
