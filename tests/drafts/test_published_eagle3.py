"""Heads in the layout of EAGLE-3's releases: read as described, refused by name, written back."""

import pytest
import torch
from releases import DRAFTED, EAGLE3, EMBEDDING, HEADS, KV_HEADS, STATES, D, release3

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Context, Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.eagle3 import Eagle3, Eagle3Network
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.drafts.draft import CachedDraft
from fspad_bench.drafts.head import Head, export_head, load_head
from fspad_bench.util.errors import BenchError

TOKENS = [40, 41, 7, 90, 13, 55, 2, 40]
WIDTH = D // HEADS


def described(weights, embedding, states, tokens):
    """Compute logits over the draft vocabulary after each row, as the method is described.

    `embedding [V, d]`, `states [L, 3 d]` of tokens 0 to L - 1, `tokens` 0 to L.
    """
    w = {name: weight.double() for name, weight in weights.items()}

    def rms(x, name):
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * w[name]

    def heads(x):
        return x.unflatten(-1, (-1, WIDTH)).transpose(0, 1)

    def turned(x):
        steps = torch.arange(0, WIDTH, 2, dtype=torch.float64) / WIDTH
        angles = torch.arange(len(tokens) - 1)[:, None] * 10000.0**-steps
        by = torch.polar(torch.ones_like(angles), angles)
        pairs = torch.complex(*x.chunk(2, dim=-1)) * by
        return torch.cat([pairs.real, pairs.imag], -1)

    e = embedding.double()[tokens[1:]]
    g = states @ w["fc.weight"].T
    x = torch.cat(
        [rms(e, "midlayer.input_layernorm.weight"), rms(g, "midlayer.hidden_norm.weight")], -1
    )
    q, k, v = (heads(x @ w[f"midlayer.self_attn.{part}_proj.weight"].T) for part in "qkv")
    k, v = (part.repeat_interleave(HEADS // KV_HEADS, 0) for part in (turned(k), v))
    scores = turned(q) @ k.transpose(-1, -2) / WIDTH**0.5
    back = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    seen = scores.masked_fill(~back, -torch.inf).softmax(-1) @ v
    a = g + seen.transpose(0, 1).flatten(1) @ w["midlayer.self_attn.o_proj.weight"].T
    n = rms(a, "midlayer.post_attention_layernorm.weight")
    u = torch.nn.functional.silu(n @ w["midlayer.mlp.gate_proj.weight"].T)
    h = a + (u * (n @ w["midlayer.mlp.up_proj.weight"].T)) @ w["midlayer.mlp.down_proj.weight"].T
    return rms(h, "norm.weight") @ w["lm_head.weight"].T


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
@torch.inference_mode()
def test_a_head_drafts_what_its_description_computes(tiny, publish, file):
    head = load_head(publish(release3(), EAGLE3, file), tiny, Eagle3Network)
    assert head.vocabulary.tolist() == DRAFTED
    assert head.network.shape.capture == (0, 1, 2)
    draft = CachedDraft(tiny, head)
    with tiny.session(len(TOKENS), capture=draft.capture) as session:
        scores = session.prefill(TOKENS[:-1])
    out = tiny.model(torch.tensor([TOKENS[:-1]]), output_hidden_states=True)
    states = torch.cat(out.hidden_states, -1)[0]
    torch.testing.assert_close(scores.features, states, rtol=0, atol=1e-9)
    draft.begin(Context(TOKENS, len(TOKENS) - 1), scores)
    expected = described(release3(), tiny.embedding.weight, states, TOKENS)[-1]
    logits = draft.lm_head(draft.absorb().h_logit)[0]
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-9)
    assert draft.ids.tolist() == DRAFTED  # no row of its LM head is there for the text's others


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_a_published_head_drafts_losslessly(tiny, publish, temperature):
    folder = publish(release3(), EAGLE3)
    drafter = Eagle3(tiny, head=str(folder), nodes=16, depth=3)
    assert drafter.settings()["vocabulary"] == "head"
    sampler = Sampler(temperature, seed=3)
    drafted = generate(tiny, drafter, sampler, TOKENS, Limit(24))
    assert sum(drafted.drafted) > 0
    assert drafted.tokens == generate(tiny, Vanilla(tiny), sampler, TOKENS, Limit(24)).tokens


def test_a_head_without_a_cut_drafts_every_token(tiny, publish):
    weights = release3() | {"lm_head.weight": torch.ones(97, D)}
    del weights["d2t"], weights["t2d"]
    config = {name: value for name, value in EAGLE3.items() if name != "draft_vocab_size"}
    assert len(load_head(publish(weights, config), tiny).vocabulary) == 97


@pytest.mark.parametrize(
    ("settings", "states"),
    [
        ({STATES: [1, 2, 2]}, (1, 2, 2)),
        (
            {STATES: None, "eagle_config": {STATES: [0, 0, 1], "use_aux_hidden_state": True}},
            (1, 1, 2),
        ),
        ({STATES: [1, 1, 2], "eagle_config": {STATES: [0, 0, 1]}}, (1, 1, 2)),
    ],
    ids=["entered", "left", "both"],
)
def test_both_numberings_of_the_states_are_read(tiny, publish, settings, states):
    head = load_head(publish(release3(), EAGLE3 | settings), tiny)
    assert head.network.shape.capture == states


def without(name):
    return {key: weight for key, weight in release3().items() if key != name}


def changed(**weights):
    return release3() | {name.replace("__", "."): weight for name, weight in weights.items()}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (without("fc.weight"), "no published head of 'eagle3': it lacks fc.weight"),
        (without("norm.weight"), "it lacks norm.weight"),
        (without("lm_head.weight"), "it lacks lm_head.weight"),
        (without("midlayer.hidden_norm.weight"), "it lacks midlayer.hidden_norm.weight"),
        (without("d2t"), "lacks d2t, for 72 draft tokens"),
        (changed(fc__bias=torch.zeros(D)), "no head of 'eagle3' reads: fc.bias"),
        (
            changed(midlayer__self_attn__q_norm__weight=torch.ones(16)),
            "reads: midlayer.self_attn.q_n",
        ),
        (
            changed(fc__weight=torch.ones(D, 2 * D)),
            "fc.weight is of shape (64, 128), not (64, 192)",
        ),
        (changed(lm_head__weight=torch.ones(70, D)), "lm_head.weight is of shape (70, 64)"),
        (changed(t2d=torch.arange(97) % 4 == 0), "d2t and t2d name different tokens"),
        (
            changed(t2d=torch.ones(120, dtype=torch.bool)),
            "t2d is of shape (120,); the target has 97",
        ),
        (changed(d2t=torch.arange(72)), "does not name ascending tokens of 97"),
        (changed(d2t=-torch.arange(72)), "does not name ascending tokens of 97"),
        (changed(d2t=torch.zeros(72)), "d2t holds torch.float32"),
        (changed(d2t=torch.zeros(72, dtype=torch.complex64)), "d2t holds torch.complex64"),
        (changed(d2t=torch.zeros((), dtype=torch.int8).expand(2**40)), "d2t has 1099511627776"),
        (changed(d2t=torch.zeros(2**40, dtype=torch.int8, device="meta")), "d2t holds torch.int8"),
        (changed(t2d=torch.zeros((), dtype=torch.bool).expand(97)), "t2d has 97 elements, more"),
        (changed(d2t=torch.zeros(70, dtype=torch.int64)), "d2t has 70 tokens, the config 72"),
        (changed(embed_tokens__weight=EMBEDDING.flip(0)), "is the head of another model"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_weights_that_cannot_be_used_are_refused_by_name(tiny, publish, weights, message):
    with pytest.raises(BenchError) as raised:
        load_head(publish(weights, EAGLE3), tiny)
    assert message in raised.value.message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm_before_residual": True}, "norm_before_residual is True"),
        ({"fc_norm": True}, "fc_norm is True"),
        ({"target_hidden_size": 128}, "target_hidden_size is 128, not 64"),
        ({"num_aux_hidden_states": 4}, "num_aux_hidden_states is 4, not 3"),
        (
            {"eagle_config": {"use_aux_hidden_state": False}},
            "eagle_config.use_aux_hidden_state is F",
        ),
        ({"eagle_config": {"later": 1}}, "eagle_config.later is 1"),
        ({"eagle_config": [1]}, "eagle_config is [1]"),
        ({"eagle_config": {STATES: [0, 1, 2]}}, "states two sets of hidden states"),
        ({STATES: ["low"]}, f"{STATES} is ['low']"),
        ({STATES: None}, "does not say which hidden states of 2 layers"),
        ({STATES: [0, 1, 3]}, "it reads hidden state 3 of 0 to 2"),
        ({"eagle_config": {STATES: [0, 1, 2]}, STATES: None}, "it reads hidden state 3 of 0 to 2"),
        ({"vocab_size": 128}, "for a vocabulary of 128 tokens"),
        ({"draft_vocab_size": 71}, "d2t has 72 tokens, the config 71"),
        ({"speculators_model_type": "eagle3"}, "in the layout of speculators"),
        ({"num_hidden_layers": 36}, "no config of an EAGLE or FSPAD head"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settings_that_cannot_be_used_are_refused_by_name(tiny, publish, settings, message):
    with pytest.raises(BenchError) as raised:
        load_head(publish(release3(), EAGLE3 | settings), tiny)
    assert message in raised.value.message


@pytest.mark.parametrize("settings", [{"norm_before_residual": False}, {"fc_norm": None}])
def test_settings_that_change_nothing_are_no_hindrance(tiny, publish, settings):
    assert load_head(publish(release3(), EAGLE3 | settings), tiny).network.shape.vocabulary == 72


def test_the_head_of_another_decoder_is_refused(tiny, publish, heads):
    with pytest.raises(BenchError, match="holds the head of 'eagle', not of 'eagle3'"):
        Eagle3(tiny, head=str(heads["eagle"]))
    with pytest.raises(BenchError, match="holds the head of 'fspad3', not of 'eagle3'"):
        Eagle3(tiny, head=str(heads["fspad3"]))


def test_a_published_head_is_exported_as_it_was(tiny, publish, tmp_path):
    head = load_head(publish(release3(), EAGLE3), tiny)
    assert export_head(head, tiny, tmp_path / "again") == []
    written = torch.load(tmp_path / "again" / "pytorch_model.bin", weights_only=True)
    del written["embed_tokens.weight"]
    assert written.keys() == release3().keys()
    for name, weight in release3().items():
        assert torch.equal(written[name].to(weight.dtype), weight), name
    again = load_head(tmp_path / "again", tiny)
    assert again.network.shape == head.network.shape


def test_a_trained_head_is_exported_with_the_targets_lm_head(tiny, heads, tmp_path):
    head = load_head(heads["eagle3"], tiny)
    assert export_head(head, tiny, tmp_path)[:1] == [
        "a text's own tokens: its LM head has those of the draft vocabulary alone"
    ]
    again = load_head(tmp_path, tiny, Eagle3Network)
    assert torch.equal(again.vocabulary, head.vocabulary)
    rows = tiny.lm_head.weight[head.vocabulary]
    assert torch.equal(again.network.lm_head.weight, rows)
    for name, weight in head.network.state_dict().items():
        assert torch.equal(weight, again.network.state_dict()[name]), name


def test_a_head_with_an_lm_head_of_its_own_is_saved_and_read(tiny, publish, tmp_path):
    head = load_head(publish(release3(), EAGLE3), tiny)
    Head(head.network, head.vocabulary, tiny.name, tiny.identity).save(tmp_path / "own")
    again = load_head(tmp_path / "own", tiny, Eagle3Network)
    assert again.network.shape == head.network.shape
    Head(head.network, head.vocabulary[:-1], tiny.name, tiny.identity).save(tmp_path / "short")
    with pytest.raises(BenchError, match="an LM head of 72 rows for a draft vocabulary of 71"):
        load_head(tmp_path / "short", tiny)


def test_a_prefix_that_all_names_share_is_left_out(tiny, publish):
    plain = load_head(publish(release3(), EAGLE3), tiny).network.state_dict()
    weights = {f"module.{name}": weight for name, weight in release3().items()}
    wrapped = load_head(publish(weights, EAGLE3), tiny).network.state_dict()
    assert wrapped.keys() == plain.keys()
    assert all(torch.equal(wrapped[name], plain[name]) for name in plain)
