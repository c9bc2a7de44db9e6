"""Test doubles for both sides of the loop: drafters that know the truth, small random models."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from fspad_bench.core.protocols import Context, Drafter, LayerPlan, Scores, Step
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import Accepted
from fspad_bench.engine.batch import Wave, answer_streams
from fspad_bench.engine.stock import cache_argument
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.lossless.scripted import ScriptedTarget

SAMPLERS = [
    Sampler(),
    Sampler(0.5),
    Sampler(1.0),
    Sampler(1.0, seed=1, stream="another"),
    Sampler(1.0, top_p=0.6),
    Sampler(0.8, top_k=3),
    Sampler(1.3, top_k=5, top_p=0.8, seed=7),
]

Shape = Callable[[int, list[int], int], Tree]
"""(root, the true tokens after it, number of the step) -> the tree to propose."""


def until(tokens: list[int], stop_ids: set[int]) -> list[int]:
    """Return the tokens up to the first stop, which is included."""
    end = next((i for i, token in enumerate(tokens) if token in stop_ids), len(tokens) - 1)
    return tokens[: end + 1]


def continuation(
    target: ScriptedTarget, sampler: Sampler, prompt: Sequence[int], count: int
) -> list[int]:
    """Decode autoregressively, without the loop and without a cache."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(sampler.next(target.logits(tokens), len(tokens)))
    return tokens[len(prompt) :]


class Clairvoyant(Drafter):
    """Knows the true sequence; `shape` makes a tree of it, whatever the budget."""

    def __init__(self, truth: Sequence[int], shape: Shape) -> None:
        self.truth = list(truth)
        self.shape = shape

    def begin(self, context: Context, scores: Scores) -> None:
        self.prefill = scores
        self.steps: list[Step] = []

    def propose(self, context: Context, budget: int) -> Tree:
        return self.shape(context.tokens[-1], self.truth[len(context.tokens) :], len(self.steps))

    def observe(self, step: Step) -> None:
        context = Context(list(step.context.tokens), step.context.prompt_length)
        self.steps.append(step._replace(context=context))

    @property
    def accepted(self) -> list[Accepted]:
        return [step.accepted for step in self.steps]


def always_right(length: int) -> Shape:
    return lambda root, coming, _: Tree.chain(root, coming[:length])


def never_right(vocabulary: int) -> Shape:
    return lambda root, coming, _: Tree.chain(
        root, [(token + 1) % vocabulary for token in coming[:4]]
    )


def on_schedule(rights: Sequence[int], vocabulary: int) -> Shape:
    """Propose chains of `rights[step]` right tokens, in turn, and two wrong ones."""

    def shape(root: int, coming: list[int], step: int) -> Tree:
        right = rights[step % len(rights)]
        wrong = [(token + 1) % vocabulary for token in coming[right : right + 2]]
        return Tree.chain(root, coming[:right] + wrong)

    return shape


def wide(depth: int, vocabulary: int, width: int = 6) -> Shape:
    """Put `width` wrong siblings before every true node, each followed by the true token."""

    def shape(root: int, coming: list[int], _: int) -> Tree:
        paths = []
        for level, token in enumerate(coming[:depth]):
            others = [(token + i) % vocabulary for i in range(1, width + 1)]
            paths += [[*coming[:level], other, token] for other in others]
        return Tree.from_paths(root, [*paths, coming[:depth]])

    return shape


def random_tree(
    rng: random.Random, nodes: int, vocabulary: int, *, root: int | None = None, reach: int = 128
) -> Tree:
    """Return a tree of `nodes` random nodes.

    A parent is at most `reach` nodes back, so a small reach makes a deep tree.
    """
    tokens = [rng.randrange(vocabulary) if root is None else root]
    parents = [-1]
    taken = set()
    while len(tokens) < nodes:
        edge = (rng.randrange(max(0, len(tokens) - reach), len(tokens)), rng.randrange(vocabulary))
        if edge not in taken:
            taken.add(edge)
            parents.append(edge[0])
            tokens.append(edge[1])
    return Tree(tokens, parents)


VOCABULARY = 53
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.25,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": None,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
ARCHITECTURES = {
    "llama": (LlamaConfig, {}),
    "llama-multi-head": (LlamaConfig, {"num_key_value_heads": 4, "attention_bias": True}),
    "llama-multi-query": (LlamaConfig, {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "llama3": (LlamaConfig, {"rope_parameters": LLAMA3_ROPE}),
    "mistral": (MistralConfig, {"head_dim": 16, "sliding_window": None}),
    "qwen2": (Qwen2Config, {}),
    "qwen3": (Qwen3Config, {"head_dim": 16}),
    "mistral-window": (MistralConfig, {"head_dim": 16, "sliding_window": 5}),
    "qwen2-window": (
        Qwen2Config,
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    "gemma3": (
        Gemma3TextConfig,
        {
            "head_dim": 16,
            "query_pre_attn_scalar": 24,
            "sliding_window": 4,
            "sliding_window_pattern": 2,
            "tie_word_embeddings": False,  # tied ones would repeat one token for ever
        },
    ),
}
WINDOWED = ("mistral-window", "qwen2-window", "gemma3")  # windows shorter than the texts of tests


def random_model(
    name: str, dtype: torch.dtype = torch.float64, **options: object
) -> PreTrainedModel:
    """Return a fresh stock model of two layers; equal arguments give equal weights."""
    kind, own = ARCHITECTURES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(
            kind(**{**COMMON, **own, **options}), attn_implementation="sdpa"
        )
        for weight in model.parameters():
            if not weight.any():  # biases, and norms that multiply with 1 + w: none would show
                weight.data.normal_(0, 0.3)
    return model.to(dtype).eval()


def random_target(
    name: str, dtype: torch.dtype = torch.float64, **options: object
) -> TransformersTarget:
    """Return a target over `random_model`; "not fused" is one that its stock forward runs."""
    if name == "not fused":
        return random_target("llama", dtype, hidden_act="gelu", **options)
    return TransformersTarget(random_model(name, dtype, **options), None)


def skip_sublayers(model, plan):
    """Let the named sublayers of a stock model add nothing to the residual stream."""

    def no_attention(hidden_states, *_, **__):
        return torch.zeros_like(hidden_states), None

    for index in plan.skip_attention:
        model.base_model.layers[index].self_attn.forward = no_attention
    for index in plan.skip_mlp:
        model.base_model.layers[index].mlp.forward = torch.zeros_like
    return model


@torch.inference_mode()
def logits_behind(
    make: Callable[[], PreTrainedModel], prefix: list[int], tokens: list[int], plan: LayerPlan
) -> torch.Tensor:
    """Return a stock model's logits `[N, V]` after tokens that a part of it reads behind entries of
    the whole; `make` returns the model anew.
    """
    whole = make()
    argument = cache_argument(whole)
    entries = DynamicCache(config=whole.config)
    whole(input_ids=torch.tensor([prefix]), use_cache=True, **{argument: entries})
    positions = torch.arange(len(prefix), len(prefix) + len(tokens))[None]
    part = skip_sublayers(make(), plan)
    ids = torch.tensor([tokens])
    return part(input_ids=ids, position_ids=positions, **{argument: entries}).logits[0]


def answer_all(target, requests, **how):
    """Return the answers to one wave; the options are those of `answer_streams`."""
    wave = Wave(requests, how.pop("seed"))
    return next(answer_streams(target, [_once(wave)], **how))


def _once(wave):
    return (yield wave)


def driven(stream, reply):
    """Return the result of a stream of waves when `reply` answers each."""
    answers = None
    while True:
        try:
            wave = stream.send(answers)
        except StopIteration as end:
            return end.value
        answers = reply(wave)


WIDE = {  # widths that the compiled functions serve
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_attention_heads": 2,
    "max_position_embeddings": 512,
    "vocab_size": 61,
}
WIDTHS = {
    "llama": {"num_key_value_heads": 1},
    "llama-multi-head": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 1},
    "qwen3": {"num_key_value_heads": 1, "head_dim": 64},
    "mistral-window": {"num_key_value_heads": 1, "head_dim": 64, "sliding_window": 130},
    "gemma3": {"num_key_value_heads": 1, "head_dim": 64},
}


def assert_same_scores(target, expected):
    """Two targets of the same weights score a prefill, a tree and what follows a commit alike."""
    scores = []
    for each in (target, expected):
        with each.session(40, capture=(0, 1, 2)) as session:
            prefill = session.prefill([1, 2, 3])
            tree = session.score(Tree([5, 6, 7, 8, 9], [-1, 0, 0, 1, 2]))
            session.commit([0, 2, 4])
            scores.append([prefill, tree, session.score(Tree.root(11))])
    for ours, right in zip(*scores, strict=True):
        torch.testing.assert_close(ours.logits, right.logits, atol=1e-9, rtol=0)
        torch.testing.assert_close(ours.features, right.features, atol=1e-9, rtol=0)


class LinearForwards:
    """A forward of n nodes behind p tokens takes n + p / 1000 seconds."""

    def seconds(self, nodes, prefix):
        return nodes + prefix / 1000
