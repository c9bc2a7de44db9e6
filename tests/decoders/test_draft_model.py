"""Drafting with a language model: the tokens are vanilla's, the trees those of the draft's own
probabilities.
"""

from dataclasses import replace

import pytest
import torch
from doubles import random_target
from recording import Recorder, compare_with_vanilla

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.build import build_decoder
from fspad_bench.decoders.draft_model import DraftModel
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.drafts.head import load_head
from fspad_bench.drafts.trees import dynamic
from fspad_bench.engine.cpu.leading import leading
from fspad_bench.lossless import certify, identity
from fspad_bench.models.tiny import tiny_model, tiny_tokenizer
from fspad_bench.util.errors import BenchError

PROMPT = list(range(30, 52))
OPTIONS = {
    "part": {},
    "part, chain": {"shape": "chain"},
    "model": {"model": "near", "length": 3, "stop": 0.0},
    "model, chain": {"model": "near", "shape": "chain", "length": 4},
    "trained": {"model": "trained", "length": 3, "stop": 0.0},
    "trained, chain": {"model": "trained", "shape": "chain", "length": 4},
}


@pytest.fixture(scope="module")
def near(tmp_path_factory):
    """The folder of a model that often agrees with the tiny target, and often does not."""
    folder = tmp_path_factory.mktemp("models") / "near"
    model = tiny_model()
    generator = torch.Generator().manual_seed(0)
    weight = model.lm_head.weight.data
    weight += 0.35 * weight.std() * torch.randn(weight.shape, generator=generator).double()
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.sampled(7)
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_tokens_are_vanillas(tiny, near, heads, options, temperature):
    if "model" in options:
        folders = {"near": near, "trained": str(heads["draft_model"])}
        options = options | {"model": folders[options["model"]]}
    drafter = DraftModel(tiny, **options)
    compare_with_vanilla(tiny, drafter, [PROMPT[i:] for i in range(3)], temperature)


def log_q(model, tokens, sampler):
    """log softmax(logits + T * G) after the tokens, by the stock model without a cache."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
    noise = sampler.temperature * sampler.noise(len(tokens), torch.arange(len(logits)))
    return (logits + noise).log_softmax(-1)


def brute_force(model, tokens, sampler, *, depth, nodes, top_k, stop):
    """The paths of the tree: the best `top_k` of a level are drafted on while one is likely."""
    frontier = [((), 0.0)]
    candidates = []
    for _ in range(depth):
        level = []
        for path, score in frontier:
            best = log_q(model, [*tokens, *path], sampler).topk(top_k)
            for token, q in zip(best.indices.tolist(), best.values.tolist(), strict=True):
                level.append(((*path, token), score + q))
        candidates += level
        frontier = sorted(level, key=lambda candidate: -candidate[1])[:top_k]
        if torch.tensor(frontier[0][1]).exp() < stop:
            break
    best_first = sorted(candidates, key=lambda candidate: -candidate[1])
    return {path for path, _ in best_first[: nodes - 1]}


def paths_of(tree):
    paths = {0: ()}
    for node in range(1, len(tree)):
        paths[node] = (*paths[tree.parents[node]], tree.tokens[node])
    return set(paths.values()) - {()}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("stop", [0.0, 0.4])
@pytest.mark.parametrize("shape", ["tree", "chain"])
def test_trees_equal_brute_force_over_the_stock_draft_model(tiny, temperature, stop, shape):
    sampler = Sampler(temperature, seed=2)
    nodes = {"tree": 7, "chain": None}[shape]
    drafter = DraftModel(
        tiny, model="tiny", shape=shape, length=3, nodes=nodes, top_k=2, stop=stop, tree="fixed"
    )
    recorder = Recorder(drafter)
    generate(tiny, recorder, sampler, PROMPT, Limit(16))
    sizes = {"tree": {"nodes": 7, "top_k": 2}, "chain": {"nodes": 4, "top_k": 1}}[shape]
    assert len(recorder.proposals) > 2
    for tokens, tree, budget in recorder.proposals:
        depth = min(3, budget)
        if depth > 0:
            expected = brute_force(tiny.model, tokens, sampler, depth=depth, stop=stop, **sizes)
            assert paths_of(tree) == expected


def test_a_draft_that_is_the_target_itself_is_always_right(tiny):
    """With the noise of its position too."""
    for temperature in (0.0, 1.0):
        drafter = DraftModel(tiny, model="tiny", shape="chain", length=4, stop=0.0)
        made = generate(tiny, drafter, Sampler(temperature), PROMPT, Limit(41))
        assert made.committed == [5] * 8
        assert made.partial_forwards == 0


def test_certify_passes_with_a_trained_model(tiny, heads, monkeypatch):
    """Identity, non-vacuity and the cache, on a small grid."""
    monkeypatch.setattr(identity, "PAIRWISE", identity.PAIRWISE[:4])
    options = {"draft_model": {"model": str(heads["draft_model"])}}
    effort = replace(certify.QUICK, repeats=1)
    steps = {
        s.name: s for s in certify.decoder_checks(["draft_model"], options, tiny, tiny, effort)
    }
    checks = steps["identity"].run()
    assert {check.name for check in checks} == {"identity", "non-vacuity", "cache"}
    assert [check for check in checks if not check.holds] == []


@pytest.mark.parametrize("shape", ["tree", "chain"])
def test_a_trained_model_drafts_its_vocabulary_and_the_texts_tokens(tiny, heads, shape):
    drafter = DraftModel(tiny, model=str(heads["draft_model"]), shape=shape, stop=0.0)
    recorder = Recorder(drafter)
    generate(tiny, recorder, Sampler(), PROMPT, Limit(24))
    base = {token for token in range(97) if token % 3}
    for tokens, tree, _ in recorder.proposals:
        assert set(tree.tokens[1:]) <= base | set(tokens)
    drafted = {token for _, tree, _ in recorder.proposals for token in tree.tokens[1:]}
    assert drafted - base  # the text's


def test_the_noise_makes_drafts_accepted_at_temperature_1(tiny, monkeypatch):
    def tokens_a_step():
        samplers = [Sampler(1.0, seed=seed) for seed in range(3)]
        made = [generate(tiny, DraftModel(tiny), s, PROMPT, Limit(48)) for s in samplers]
        return sum(map(len, (g.tokens for g in made))) / sum(g.forwards for g in made)

    with_noise = tokens_a_step()
    monkeypatch.setattr(
        dynamic,
        "leading_children",
        lambda logits, ids, context, level, count: leading(logits, ids, count),
    )
    assert with_noise > 1.2 * tokens_a_step()


def test_layers_of_the_target_count_as_partial_forwards(tiny):
    made = generate(tiny, DraftModel(tiny), Sampler(), PROMPT, Limit(24))
    assert made.forwards == len(made.committed)
    assert made.partial_forwards >= made.forwards - 1


def test_past_its_context_the_draft_is_silent_and_the_target_goes_on(tiny):
    short = random_target("llama", vocab_size=97, max_position_embeddings=40)
    drafter = DraftModel(tiny)
    drafter.draft = type(drafter.draft)(tiny, short)
    recorder = Recorder(drafter)
    made = generate(tiny, recorder, Sampler(), PROMPT, Limit(40))
    assert made.tokens == generate(tiny, Vanilla(tiny), Sampler(), PROMPT, Limit(40)).tokens
    lengths = [len(tokens) for tokens, tree, _ in recorder.proposals if len(tree) > 1]
    assert 36 < max(lengths) < 40
    assert made.drafted[-1] == 0


def test_settings_name_the_layers_or_the_model_by_its_content(tiny, saved_tiny):
    assert build_decoder("draft_model", tiny).options == {
        "tree": "auto",
        "model": "self",
        "skipped_layers": [1],
        "shape": "tree",
        "length": 5,
        "nodes": 12,
        "top_k": 3,
        "stop": 0.3,
    }
    options = {"draft_model": {"model": str(saved_tiny), "shape": "chain"}}
    settings = build_decoder("draft_model", tiny, options).options
    assert (settings["model"], settings["nodes"], settings["top_k"]) == ("tiny", 6, 1)
    assert len(settings["model_sha256"]) == len(settings["model_identity"]) == 64


def test_settings_name_a_trained_model_by_its_content(tiny, heads):
    options = {"draft_model": {"model": str(heads["draft_model"])}}
    settings = build_decoder("draft_model", tiny, options).options
    assert settings["model"] == "trained, 1 of 2 layers"
    assert settings["model_identity"] == "tiny-1"
    assert settings["model_sha256"] == load_head(heads["draft_model"], tiny).sha256


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": "0"}, "takes length, top_k >= 1"),
        ({"top_k": "0"}, "takes length, top_k >= 1"),
        ({"nodes": "1"}, "2 <= nodes <= 128"),
        ({"shape": "chain", "length": "128"}, "2 <= nodes <= 128"),
        ({"shape": "chain", "nodes": "4"}, "nodes=4 is of a tree"),
        ({"length": "40", "top_k": "4"}, "are 157 tokens to draft"),
        ({"stop": "1.5"}, "stop=1.5 is no chance"),
        ({"shape": "graph"}, "shape=graph is not allowed"),
        ({"skip": "1"}, "skip=1 is no share"),
        ({"model": "nowhere"}, "draft model: unknown target 'nowhere'"),
        ({"model": "~nosuchuser/model"}, "draft model: unknown target '~nosuchuser/model'"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_measured(tiny, options, message):
    with pytest.raises(BenchError, match=message):
        build_decoder("draft_model", tiny, {"draft_model": options})
