"""Stand-ins for both sides of the loop: drafters of every skill, small random models.

The drafters know what comes and choose how much of it to say.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from fspad_bench.core.loop import Context, Step
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import Accepted
from fspad_bench.engine.batch import Wave, answer_streams
from fspad_bench.engine.target import Scores
from fspad_bench.lossless.scripted import ScriptedTarget

Shape = Callable[[int, list[int], int], Tree]


def continuation(
    target: ScriptedTarget, sampler: Sampler, prompt: Sequence[int], count: int
) -> list[int]:
    """What autoregressive decoding says, without the loop and without a cache."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(sampler.next(target.logits(tokens), len(tokens)))
    return tokens[len(prompt) :]


class Clairvoyant:
    """Knows the true sequence; `shape(root, coming, round)` makes a tree of it, whatever the budget."""

    def __init__(self, truth: Sequence[int], shape: Shape) -> None:
        self.truth, self.shape = list(truth), shape

    def begin(self, context: Context, scores: Scores) -> None:
        self.prefill, self.steps = scores, []

    def propose(self, context: Context, budget: int) -> Tree:
        return self.shape(context.tokens[-1], self.truth[len(context.tokens) :], len(self.steps))

    def observe(self, step: Step) -> None:
        self.steps.append(
            step._replace(context=Context(list(step.context.tokens), step.context.prompt_length))
        )

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
    """Right for `rights[round]` tokens, in turn, and wrong for two more."""

    def shape(root: int, coming: list[int], turn: int) -> Tree:
        right = rights[turn % len(rights)]
        wrong = [(token + 1) % vocabulary for token in coming[right : right + 2]]
        return Tree.chain(root, coming[:right] + wrong)

    return shape


def wide(depth: int, vocabulary: int, width: int = 6) -> Shape:
    """At every true node `width` wrong siblings first, each followed by the token that was right in its place."""

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
    """`nodes` random nodes; a parent is at most `reach` nodes back, so a small reach makes a deep tree."""
    tokens, parents, taken = [rng.randrange(vocabulary) if root is None else root], [-1], set()
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
}


def random_model(
    name: str, dtype: torch.dtype = torch.float64, **options: object
) -> PreTrainedModel:
    """A fresh stock model of two layers; equal weights for equal arguments."""
    kind, own = ARCHITECTURES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(
            kind(**{**COMMON, **own, **options}), attn_implementation="sdpa"
        )
    return model.to(dtype).eval()


def answer_all(target, requests, **how):
    """The answers to one wave; `seed`, `rows` and `told` as in `answer_streams`."""
    wave = Wave(requests, how.pop("seed"))
    return next(answer_streams(target, [_once(wave)], **how))


def _once(wave):
    return (yield wave)


def driven(stream, reply):
    """What a stream of waves returns when `reply` answers each."""
    answers = None
    while True:
        try:
            wave = stream.send(answers)
        except StopIteration as end:
            return end.value
        answers = reply(wave)
