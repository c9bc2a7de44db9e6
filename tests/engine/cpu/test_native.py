"""The compiled functions compute what torch does, and a row gets the same bits in any company."""

import random
from itertools import product

import pytest
import torch
from compiled import needs_compiler
from doubles import VOCABULARY, WIDE, WIDTHS, random_model, random_tree
from torch.nn import functional as F

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import ALL, LayerPlan, Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.decoders.prompt_lookup import PromptLookup
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.engine.attention import rotate
from fspad_bench.engine.cpu import compiler, native
from fspad_bench.engine.cpu.torch_ops import ACTIVATIONS
from fspad_bench.engine.forward import FusedForward
from fspad_bench.engine.target import TransformersTarget

pytestmark = needs_compiler
DTYPES = (torch.float32, torch.bfloat16)
BOUND = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
BUILDS = {"as it is": ()}
if torch.backends.cpu.get_cpu_capability() == "AVX512":  # others have no second way
    BUILDS["without products of bfloat16"] = ("-mno-avx512bf16",)
    BUILDS["narrow"] = ("-mno-avx512f",)
LAYERS = 4
PLANS = {
    "all": ALL,
    "an MLP": LayerPlan(skip_mlp=frozenset([1])),
    "an attention": LayerPlan(skip_attention=frozenset([1])),
    "attentions in a row": LayerPlan(skip_attention=frozenset([1, 2])),
    "the first attention": LayerPlan(skip_attention=frozenset([0])),
    "the last layer": LayerPlan(frozenset([3]), frozenset([3])),
    "all attentions": LayerPlan(skip_attention=frozenset(range(LAYERS))),
    "all MLPs": LayerPlan(skip_mlp=frozenset(range(LAYERS))),
    "everything": LayerPlan(frozenset(range(LAYERS)), frozenset(range(LAYERS))),
}


@pytest.fixture(scope="module", params=BUILDS)
def compiled(request):
    return native.Native(compiler.loaded(compiler.built(*BUILDS[request.param])))


def randomly(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def near(values, expected, dtype):
    bound = BOUND[dtype] * float(expected.abs().max())
    torch.testing.assert_close(values.double(), expected, rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("width", "outs"), [(32, 4), (96, 33), (576, 64), (2048, 40)])
def test_a_product_equals_the_linear_layer_row_by_row(compiled, width, outs, dtype):
    x = randomly(29, width, dtype=dtype, seed=outs)
    weight = randomly(outs, width, dtype=dtype, seed=outs)
    bias = randomly(outs, dtype=dtype, seed=outs)
    packed = compiled.pack(weight)
    whole = compiled.product(x, packed, outs, bias)
    near(whole, F.linear(x.double(), weight.double(), bias.double()), dtype)
    near(compiled.product(x, packed, outs), F.linear(x.double(), weight.double()), dtype)
    for rows in range(1, 29):
        assert torch.equal(compiled.product(x[:rows].clone(), packed, outs, bias), whole[:rows])
        assert torch.equal(compiled.product(x[rows:].clone(), packed, outs, bias), whole[rows:])
    assert compiled.product(x[None], packed, outs).shape == (1, 29, outs)


@pytest.mark.parametrize(("width", "outs"), [(32, 4), (96, 33), (576, 64), (2048, 40)])
def test_a_weight_of_bfloat16_numbers_takes_half_the_bytes_and_gives_the_same_bits(
    compiled, width, outs
):
    x = randomly(29, width, seed=outs)
    bias = randomly(outs, seed=outs)
    weight = randomly(outs, width, seed=outs).bfloat16().float()
    half = compiled.pack(weight)
    whole = compiled.packed(weight, torch.float32)
    assert half.dtype == torch.bfloat16
    assert whole.dtype == torch.float32
    for rows in range(1, 29):
        products = (compiled.product(x[:rows], packed, outs, bias) for packed in (half, whole))
        assert torch.equal(*products)


@pytest.mark.parametrize("lost", [2.0**-9, float("nan")])
def test_a_weight_that_bfloat16_would_round_keeps_its_precision(compiled, lost):
    weight = randomly(8, 32).bfloat16().float()
    weight[3, 5] = 1 + lost
    packed = compiled.pack(weight)
    assert packed.dtype == torch.float32


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_norm_is_that_of_the_sum_it_writes(compiled, dtype):
    x = randomly(5, 96, dtype=dtype)
    delta = randomly(5, 96, dtype=dtype, seed=1)
    weight = randomly(96, dtype=dtype)
    whole = (x.double() + delta.double()).to(dtype)
    for more, total in ((delta, whole), (None, x.clone())):
        given = x.clone()
        result, normed = compiled.add_norm(given, more, weight, 1e-5)
        assert result is given
        assert torch.equal(result, total)
        near(normed, F.rms_norm(total.double(), (96,), weight.double(), 1e-5), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_offset_is_added_to_a_norms_weights_before_any_rounding(compiled, dtype):
    x = randomly(5, 96, dtype=dtype)
    weight = (randomly(96) * 1e-3).to(dtype)  # 1 + w would lose them in bfloat16
    _, normed = compiled.of(1.0, "silu").add_norm(x.clone(), None, weight, 1e-5)
    expected = F.rms_norm(x.double(), (96,), 1 + weight.double(), 1e-5)
    ulp = 2**-8 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(normed.double(), expected, rtol=ulp, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gated_values_are_right_for_gates_of_any_size(compiled, activation, dtype):
    both = torch.cat([torch.linspace(-120, 120, 5 * 64).reshape(5, 64), randomly(5, 64)], dim=1).to(
        dtype
    )
    gate, up = both.double().chunk(2, dim=-1)
    values = compiled.of(0.0, activation).gated(both).double()
    bound = 1e-5 if dtype == torch.float32 else 1e-2
    expected = ACTIVATIONS[activation](gate) * up
    # torch's tanh is -1 where e^(2 u) is not yet 0
    least = 1e-30 if activation == "silu" else 1e-12
    torch.testing.assert_close(values, expected, rtol=bound, atol=least)


def attended(q, kv, rope, keys, values, start, visible, scale, first=None):
    """Compute the same in float64 from the formulas."""
    q, kv, rope, keys, values = (x.double() for x in (q, kv, rope, keys, values))
    k, v = kv.transpose(0, 1).chunk(2)
    end = start + kv.shape[0]
    keys[:, start:end] = rotate(k, rope)
    values[:, start:end] = v
    mask = torch.ones(len(q), end, dtype=torch.bool)
    if visible is not None:
        mask[:, end - visible.shape[1] :] = visible
    if first is not None:  # the number of a key among those that a query attends to
        mask &= mask.cumsum(-1) - 1 >= first[:, None]
    turned = rotate(q.transpose(0, 1), rope[:, -len(q) :])
    groups = q.shape[1] // keys.shape[0]
    repeated = (x[:, :end].repeat_interleave(groups, dim=0) for x in (keys, values))
    seen = F.scaled_dot_product_attention(turned, *repeated, attn_mask=mask, scale=scale)
    return seen.transpose(0, 1).flatten(1), keys, values


@pytest.mark.sampled(4)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(9, 3, 64), (2, 2, 128), (7, 1, 64)])
@pytest.mark.parametrize(
    ("start", "rows", "written", "tail"),
    [
        (start, *rows)
        for start in (0, 126, 128, 300)
        for rows in ((1, 1, None), (1, 5, None), (4, 4, 4))
    ]
    + [(6, 3, 3, 9), (127, 3, 3, 9), (150, 6, 6, 150), (300, 6, 6, 150)],
)
def test_attention_equals_the_formulas(
    compiled, rows, written, tail, start, heads, kv_heads, dim, dtype
):
    generator = torch.Generator().manual_seed(start)
    angles = randomly(1 if tail == 9 else written, dim // 2)
    rope = torch.stack(
        [angles.cos().repeat(1, 2), torch.cat([-angles.sin(), angles.sin()], dim=1)]
    ).to(dtype)
    joint = randomly(written, heads + 2 * kv_heads, dim, dtype=dtype, seed=1)
    q = joint[written - rows :, :heads]
    kv = joint[:, heads:]
    keys, values = (
        randomly(kv_heads, start + written + 7, dim, dtype=dtype, seed=seed) for seed in (2, 3)
    )
    visible = None
    if tail:
        visible = torch.rand(rows, tail, generator=generator) < 0.5
        visible[:, -rows:] |= torch.eye(rows, dtype=torch.bool)
    expected, *entries = attended(q, kv, rope, keys, values, start, visible, 0.2)
    seen = compiled.attend(q, kv, rope, keys, values, start, visible, 0.2)
    near(seen, expected, dtype)
    for ours, reference in zip((keys, values), entries, strict=True):
        near(ours, reference, dtype)
    count = start + written if visible is None else start + written - tail + visible.sum(-1)
    for left in (1, 7, 129, 200):  # keys of the shallowest query; the others leave out more
        first = (torch.as_tensor(count) - left - torch.arange(rows) % 3).clamp(min=0).expand(rows)
        first = first.contiguous()
        expected, *_ = attended(q, kv, rope, keys, values, start, visible, 0.2, first)
        near(
            compiled.attend(q, kv, rope, keys, values, start, visible, 0.2, first), expected, dtype
        )


@pytest.mark.parametrize(("start", "written"), [(8, 1), (7, 2), (0, 9), (400, 1)])
def test_attention_refuses_to_write_past_the_last_slot(compiled, start, written):
    """Memory after the keys is the values', or another's."""
    entries = torch.zeros(2, 1, 8, 64)
    rope = torch.zeros(2, written, 64)
    q = randomly(written, 2, 64)
    kv = randomly(written, 2, 64)
    with pytest.raises(RuntimeError, match=f"entries {start} to {start + written} of a cache of 8"):
        compiled.attend(q, kv, rope, *entries, start, None, 0.2)
    assert not entries.any()


EVERY = [(dtype, name) for dtype in ("float32", "bfloat16") for name in WIDTHS]


def compiled_target(dtype, name, layers):
    options = WIDE | WIDTHS[name] | {"num_hidden_layers": layers}
    target = TransformersTarget(random_model(name, getattr(torch, dtype), **options), None)
    assert target.forward_name == "fused, native"
    assert target.attention.name == "native"
    return target


@pytest.fixture(scope="module", params=EVERY, ids=str)
def target(request):
    return compiled_target(*request.param, layers=2)


@pytest.fixture(scope="module", params=EVERY, ids=str)
def deep(request):
    return compiled_target(*request.param, layers=LAYERS)


def test_a_forward_of_bfloat16_numbers_in_float32_has_the_bits_of_whole_weights(monkeypatch):
    """Its weights are packed in half the bytes, those of its tails among them."""
    options = WIDE | WIDTHS["llama"] | {"num_hidden_layers": 2}
    model = random_model("llama", torch.bfloat16, **options).float()
    target = TransformersTarget(model, None)
    assert target.forward_name == "fused, native"
    assert {m.packed.dtype for m in (target.logits, target.fused.layers[0].qkv)} == {torch.bfloat16}
    with monkeypatch.context() as patch:
        patch.setattr(native, "halved", lambda weight: weight)
        whole = TransformersTarget(model, None)
    assert whole.fused.layers[0].qkv.packed.dtype == torch.float32
    results = []
    for each in (target, whole):
        with torch.inference_mode():
            session = each.session(12)
            session.prefill([3, 1, 4, 1])
            results.append(session.score(Tree([5, 9, 2, 6], [-1, 0, 0, 1])).logits)
    assert torch.equal(*results)


def by_parts(fused, parts, x, seen):
    """Compute one tail by its parts, each in a call of its own."""
    ops = fused.ops
    delta = parts.out(seen) if parts.out else None
    if parts.out_norm is not None and delta is not None:
        delta = ops.add_norm(delta, None, parts.out_norm, fused.eps)[1]
    for mlp in parts.mlps:
        x, normed = ops.add_norm(x, delta, mlp.mlp_norm, fused.eps)
        delta = mlp.down(ops.gated(mlp.gate_up(normed)))
        if mlp.down_norm is not None:
            delta = ops.add_norm(delta, None, mlp.down_norm, fused.eps)[1]
    x, normed = ops.add_norm(x, delta, parts.norm, fused.eps)
    return x, parts.following(normed) if parts.following else normed


@pytest.mark.sampled(4)
@pytest.mark.parametrize("plan", PLANS)
def test_a_tail_in_one_call_has_the_bits_of_its_parts(deep, plan, monkeypatch):
    fused = deep.fused
    tails = fused.chain(PLANS[plan]).tails
    every = []
    with monkeypatch.context() as patch:
        patch.setattr(fused, "_tail", every.append)
        fused._fuse(PLANS[plan])
    assert len(every) == len(tails)
    pairs = zip(tails, every, strict=True)
    for (tail, parts), rows in product(pairs, (1, 7, native.ROWS, native.ROWS + 1)):
        x = randomly(rows, 128, dtype=deep.dtype)
        seen = randomly(rows, parts.out.in_features, dtype=deep.dtype) if parts.out else None
        with torch.inference_mode():
            expected = by_parts(fused, parts, x.clone(), seen)
            results = tail(x, seen)
        for result, reference in zip(results, expected, strict=True):
            assert torch.equal(result, reference)


def test_plans_have_tails_of_any_number_of_mlps(deep, monkeypatch):
    """Otherwise the test above would not test them."""
    fused = deep.fused
    counts = set()
    monkeypatch.setattr(fused, "_tail", lambda parts: counts.add(len(parts.mlps)))
    for plan in PLANS.values():
        fused._fuse(plan)
    assert counts == {0, 1, 2, 3, 4}


def path_to(tree, node):
    return [i for i in range(len(tree)) if tree.ancestry[node] >> i & 1]


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("nodes", "prefix", "threads"),
    [(9, 3, 2), (9, 121, 1), (9, 250, 2), (64, 3, 1), (64, 121, 2), (64, 250, 1)],  # all pairs
)
def test_a_trees_node_has_the_bits_of_its_path(target, nodes, prefix, threads):
    """By induction no tree, whatever it holds, can change what comes after it: in bfloat16 too."""
    rng = random.Random(nodes + prefix)
    prompt = [rng.randrange(VOCABULARY) for _ in range(prefix)]
    tree = random_tree(rng, nodes, VOCABULARY, reach=4)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with target.session(prefix + nodes) as session:
            session.prefill(prompt)
            whole = session.score(tree)
            session.commit([0])
            for end in (nodes // 2, nodes - 1):
                session.prefill(prompt)
                for node in path_to(tree, end):
                    alone = session.score(Tree.root(tree.tokens[node]))
                    session.commit([0])
                    assert torch.equal(alone.logits[0], whole.logits[node])
                    assert torch.equal(alone.features[0], whole.features[node])
    finally:
        torch.set_num_threads(before)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("plan", ["all", "attentions in a row", "every other"])
def test_a_tree_in_parts_has_the_bits_of_the_tree_at_once(deep, plan):
    plans = PLANS | {"every other": LayerPlan(frozenset([0, 2]), frozenset([1, 3]))}
    rng = random.Random(plan)
    prompt = [rng.randrange(VOCABULARY) for _ in range(125)]
    tree = random_tree(rng, 40, VOCABULARY, reach=6)
    with deep.session(130, layers=plans[plan]) as session:
        session.prefill(prompt)
        whole = session.score(tree)
        session.rollback()
        parts = [
            session.extend(tree.tokens[start:end], tree.parents[start:end])
            for start, end in ((0, 1), (1, 8), (8, 9), (9, 40))
        ]
    assert torch.equal(torch.cat([part.logits for part in parts]), whole.logits)
    assert torch.equal(torch.cat([part.features for part in parts]), whole.features)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_in_bfloat16_the_output_is_vanillas(temperature):
    target = TransformersTarget(
        random_model("llama", torch.bfloat16, **(WIDE | WIDTHS["llama"])), None
    )
    accepted = 0
    for seed in range(6):
        prompt = [(7 * i * i + seed) % 11 for i in range(60)]
        limit = Limit(100)
        sampler = Sampler(temperature, seed=seed)
        vanilla = generate(target, Vanilla(target), sampler, prompt, limit)
        ours = generate(target, PromptLookup(target), sampler, prompt, limit)
        assert ours.tokens == vanilla.tokens
        accepted += sum(ours.committed) - len(ours.committed)
    assert accepted > 5


def test_other_widths_and_precisions_are_left_to_torch():
    assert native.fitting(torch.zeros(4, 32, dtype=torch.float64), 32) is None
    assert native.fitting(torch.zeros(4, 32, dtype=torch.float16), 32) is None
    assert native.fitting(torch.zeros(4, 40), 40) is None
    assert native.fitting(torch.zeros(4, 32, device="meta"), 32) is None
    assert [native.attends(dim) for dim in (64, 128, 256, 32, 96, 320)] == [True] * 3 + [False] * 3
    assert FusedForward(random_model("llama", torch.float64)).name == "fused, stock"
