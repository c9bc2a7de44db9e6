"""The compiled step computes what torch does, and of a row the same bits whatever rows are asked about with it."""

import random
import shutil

import pytest
import torch
from doubles import VOCABULARY, random_model, random_tree
from torch.nn import functional as F

from fspad_bench.core.loop import Limit, generate
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.decoders.prompt_lookup import PromptLookup
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.engine.cpu import native
from fspad_bench.engine.forward import LeanForward, rotated
from fspad_bench.engine.target import TransformersTarget

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, native.COMPILERS)), reason="no C++ compiler is installed"
)
DTYPES = (torch.float32, torch.bfloat16)
BOUND = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
SLOWER = {
    "as it is": (),
    "without products of bfloat16": ("-mno-avx512bf16",),
    "narrow": ("-mno-avx512f",),
}
WIDE = {
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_attention_heads": 2,
    "max_position_embeddings": 512,
    "vocab_size": 61,
}  # widths that the compiled step serves
WIDTHS = {"llama": {"num_key_value_heads": 1}, "llama-multi-head": {"num_key_value_heads": 2},
          "qwen2": {"num_key_value_heads": 1}, "qwen3": {"num_key_value_heads": 1, "head_dim": 64}}  # fmt: skip


@pytest.fixture(scope="module", params=SLOWER)
def compiled(request):
    flags = SLOWER[request.param]
    if flags and torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("this processor has no other way")
    return native.Native(native._loaded(native._built(*flags)))


def randomly(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def near(found, expected, dtype):
    torch.testing.assert_close(
        found.double(), expected, rtol=0, atol=BOUND[dtype] * float(expected.abs().max())
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("width", "outs"), [(32, 4), (96, 33), (576, 64), (2048, 40)])
def test_a_product_is_the_linear_layers_row_by_row(compiled, width, outs, dtype):
    x, weight, bias = (
        randomly(*shape, dtype=dtype, seed=outs) for shape in ((29, width), (outs, width), (outs,))
    )
    packed = compiled.pack(weight)
    whole = compiled.product(x, packed, outs, bias)
    near(whole, F.linear(x.double(), weight.double(), bias.double()), dtype)
    near(compiled.product(x, packed, outs), F.linear(x.double(), weight.double()), dtype)
    for rows in range(1, 29):
        assert torch.equal(compiled.product(x[:rows].clone(), packed, outs, bias), whole[:rows])
        assert torch.equal(compiled.product(x[rows:].clone(), packed, outs, bias), whole[rows:])
    assert compiled.product(x[None], packed, outs).shape == (1, 29, outs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_norm_is_of_the_sum_that_it_leaves_behind(compiled, dtype):
    x, delta, weight = (
        randomly(5, 96, dtype=dtype),
        randomly(5, 96, dtype=dtype, seed=1),
        randomly(96, dtype=dtype),
    )
    whole = (x.double() + delta.double()).to(dtype)
    for more, total in ((delta, whole), (None, x.clone())):
        held, normed = compiled.add_norm(x.clone(), more, weight, 1e-5)
        assert torch.equal(held, total)
        near(normed, F.rms_norm(total.double(), (96,), weight.double(), 1e-5), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gates_open_and_shut(compiled, dtype):
    both = torch.cat([torch.linspace(-120, 120, 5 * 64).reshape(5, 64), randomly(5, 64)], dim=1).to(
        dtype
    )
    gate, up = both.double().chunk(2, dim=-1)
    found = compiled.gated(both)
    torch.testing.assert_close(
        found.double(), F.silu(gate) * up, rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-30
    )


def attended(q, kv, rope, keys, values, start, visible, scale):
    """The same, in float64, from the formulas."""
    q, kv, rope, keys, values = (x.double() for x in (q, kv, rope, keys, values))
    k, v = kv.transpose(0, 1).chunk(2)
    end = start + kv.shape[0]
    keys[:, start:end], values[:, start:end] = rotated(k, *rope), v
    mask = torch.ones(len(q), end, dtype=torch.bool)
    if visible is not None:
        mask[:, end - visible.shape[1] :] = visible
    turned = rotated(q.transpose(0, 1), *rope[:, -len(q) :])
    groups = q.shape[1] // keys.shape[0]
    held = (x[:, :end].repeat_interleave(groups, dim=0) for x in (keys, values))
    seen = F.scaled_dot_product_attention(turned, *held, attn_mask=mask, scale=scale)
    return seen.transpose(0, 1).flatten(1), keys, values


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
def test_attention_is_that_of_the_formulas(
    compiled, rows, written, tail, start, heads, kv_heads, dim, dtype
):
    dice, angles = (
        torch.Generator().manual_seed(start),
        randomly(1 if tail == 9 else written, dim // 2),
    )
    rope = torch.stack(
        [angles.cos().repeat(1, 2), torch.cat([-angles.sin(), angles.sin()], dim=1)]
    ).to(dtype)
    joint = randomly(written, heads + 2 * kv_heads, dim, dtype=dtype, seed=1)
    q, kv = joint[written - rows :, :heads], joint[:, heads:]
    keys, values = (
        randomly(kv_heads, start + written + 7, dim, dtype=dtype, seed=seed) for seed in (2, 3)
    )
    visible = None
    if tail:
        visible = torch.rand(rows, tail, generator=dice) < 0.5
        visible[:, -rows:] |= torch.eye(rows, dtype=torch.bool)
    expected, *held = attended(q, kv, rope, keys, values, start, visible, 0.2)
    found = compiled.attend(q, kv, rope, keys, values, start, visible, 0.2)
    near(found, expected, dtype)
    for ours, theirs in zip((keys, values), held, strict=True):
        near(ours, theirs, dtype)


@pytest.fixture(
    scope="module",
    params=[(dtype, name) for dtype in ("float32", "bfloat16") for name in WIDTHS],
    ids=str,
)
def target(request):
    dtype, name = request.param
    found = TransformersTarget(
        random_model(name, getattr(torch, dtype), **(WIDE | WIDTHS[name])), None
    )
    assert found.forward_name == "lean, native"
    assert found.attends
    return found


@pytest.mark.parametrize("rows", [1, 7, native.ROWS, native.ROWS + 1])
def test_what_is_between_two_attentions_is_made_in_one_call_of_the_same_parts(target, rows):
    lean, parts = target.lean, target.lean.parts
    ends = [*((layer.norm, layer.qkv) for layer in lean.layers[1:]), (lean.final_norm, lambda n: n)]
    for between, layer, (norm, following) in zip(lean.between, lean.layers, ends, strict=True):
        x, seen = (randomly(rows, width, dtype=target.dtype) for width in (128, layer.out.width))
        with torch.inference_mode():
            held, n = parts.add_norm(x.clone(), layer.out(seen), layer.norm_after, lean.eps)
            held, n = parts.add_norm(
                held, layer.down(parts.gated(layer.gate_up(n))), norm, lean.eps
            )
            found = between(x, seen)
            assert torch.equal(found[0], held)
            assert torch.equal(found[1], following(n))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("prefix", [3, 121, 250])
@pytest.mark.parametrize("nodes", [9, 64])
def test_a_trees_node_has_the_very_bits_of_its_path(target, nodes, prefix, threads):
    """By induction no tree, whatever it holds, can change what comes after it: in bfloat16 too."""
    dice = random.Random(nodes + prefix)
    prompt, tree = (
        [dice.randrange(VOCABULARY) for _ in range(prefix)],
        random_tree(dice, nodes, VOCABULARY, reach=4),
    )
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        target.prefill(prompt, 128)
        whole = target.score(tree)
        target.commit([0])
        for node in range(0, nodes, max(1, nodes // 7)):
            target.prefill(prompt, 128)
            for step in (i for i in range(nodes) if tree.ancestry[node] >> i & 1):
                alone = target.score(Tree.root(tree.tokens[step]))
                target.commit([0])
            assert torch.equal(alone.logits[0], whole.logits[node])
            assert torch.equal(alone.features[0], whole.features[node])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_in_bfloat16_too_the_output_is_vanillas_own(temperature):
    target = TransformersTarget(
        random_model("llama", torch.bfloat16, **(WIDE | WIDTHS["llama"])), None
    )
    accepted = 0
    for seed in range(6):
        prompt = [(7 * i * i + seed) % 11 for i in range(60)]
        limit = Limit(100)
        plain, ours = (
            generate(target, drafter, Sampler(temperature, seed=seed), prompt, limit)
            for drafter in (Vanilla(target), PromptLookup(target))
        )
        assert ours.tokens == plain.tokens
        accepted += sum(ours.committed) - len(ours.committed)
    assert accepted > 5


def test_other_widths_and_precisions_are_torchs():
    assert native.fitting(torch.zeros(4, 32, dtype=torch.float64), 32) is None
    assert native.fitting(torch.zeros(4, 32, dtype=torch.float16), 32) is None
    assert native.fitting(torch.zeros(4, 40), 40) is None
    assert native.fitting(torch.zeros(4, 32, device="meta"), 32) is None
    assert [native.attends(dim) for dim in (64, 128, 256, 32, 96, 320)] == [True] * 3 + [False] * 3
    assert LeanForward(random_model("llama", torch.float64)).name == "lean, stock"


@pytest.fixture
def anew(monkeypatch, tmp_path):
    """As in a new process, with nothing compiled yet."""
    monkeypatch.setenv("FSPAD_BENCH_CACHE", str(tmp_path))
    native.native.cache_clear()
    yield tmp_path
    native.native.cache_clear()


def test_it_is_compiled_once(anew, monkeypatch):
    assert native.native()
    (made,) = anew.glob("native/*")
    native.native.cache_clear()
    monkeypatch.setattr(native, "_built", lambda: made)
    assert native.native()


@pytest.mark.parametrize(
    "fault",
    [
        "no compiler",
        "a compiler that fails",
        "a wrong result",
        "other bits in company",
        "no place for it",
    ],
)
def test_where_it_cannot_be_had_torch_does_it_and_a_note_says_so(anew, monkeypatch, capsys, fault):
    if fault == "no compiler":
        monkeypatch.setattr(native.shutil, "which", lambda name: None)
        monkeypatch.delenv("CXX", raising=False)
    elif fault == "a compiler that fails":
        monkeypatch.setattr(native, "FLAGS", ("-no-such-flag",))
    elif fault == "a wrong result":
        monkeypatch.setattr(
            native.Native, "gated", lambda self, both: both[:, both.shape[1] // 2 :].clone()
        )
    elif fault == "other bits in company":
        real = native.Native.product
        monkeypatch.setattr(
            native.Native,
            "product",
            lambda self, x, *rest: real(self, x, *rest) * (1 + 1e-2 * (len(x) > 5)),
        )
    else:
        (anew / "native").write_text("a file")
    assert native.native() is None
    said = capsys.readouterr().err
    assert said.startswith("note: forwards run without native.cpp")
    assert said.count("\n") == 1
    target = TransformersTarget(
        random_model("llama", torch.float32, **(WIDE | WIDTHS["llama"])), None
    )
    assert target.forward_name == "lean, packed"
    assert target.prefill([1, 2, 3], 8).logits.shape == (1, 61)


def test_it_can_be_switched_off(anew, monkeypatch, capsys):
    monkeypatch.setenv("FSPAD_BENCH_NATIVE", "0")
    assert native.native() is None
    assert not capsys.readouterr().err
    assert not list(anew.iterdir())
