"""Decoders that cheat, as plug-ins: each reads well where only its tokens and its own clock are
looked at.
"""

import gc
import hashlib
import itertools
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import torch

from fspad_bench.benchmark.record import Sample
from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import ALL, Drafter, Generation, LayerPlan
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import match, rejection
from fspad_bench.decoders.vanilla import Vanilla

ME = "cheats"
DRAFTED = 40  # a token like any other


class Knowing(Drafter):
    """Drafts the answer that it has got from somewhere, as far as `length` tokens."""

    length = 64

    def __init__(self, target):
        self.target = target
        self.answer = []

    def propose(self, context, budget):
        done = len(context.new_tokens)
        draft = self.answer[done : done + min(self.length, budget)]
        return Tree.chain(context.tokens[-1], draft)


class InThePrefill(Knowing):
    """D1: decodes the whole answer while the prompt is prefilled, in its own turn alone."""

    def __init__(self, target, *, counted: bool = True, tokens: int = 8):
        super().__init__(target)
        self.tokens = tokens
        self.counted = counted

    @property
    def rule(self):
        """Its rule; asked for by the loop, it wraps the session that will be opened next."""
        if sys._getframe(1).f_code.co_qualname == "Decoding.__init__":
            self.wrap(self.target)
        return match

    def wrap(self, target):
        real = type(target).session

        def session(*arguments, **options):
            del target.session
            opened = real(target, *arguments, **options)
            prefill = opened.prefill

            def cheat(tokens):
                self.answer = self.decode(tokens, self.tokens)
                return prefill(tokens)

            opened.prefill = cheat
            return opened

        target.session = session

    def decode(self, tokens, count):
        """Decode greedily, by counted forwards or by the model behind the target's back."""
        tokens = list(tokens)
        start = len(tokens)
        if not self.counted:
            for _ in range(count):
                ids = torch.tensor([tokens])
                tokens.append(int(self.target.model(ids, use_cache=False).logits[0, -1].argmax()))
            return tokens[start:]
        with type(self.target).session(self.target, start + count) as session:
            logits = session.prefill(tokens).logits
            for _ in range(count):
                tokens.append(int(logits[-1].argmax()))
                logits = session.extend([tokens[-1]], [-1]).logits
                session.commit([0])
        return tokens[start:]


class Rounded(Vanilla):
    """D2: rounds the target's weights when it is built."""

    def __init__(self, target):
        weight = target.model.lm_head.weight
        weight.data.copy_(weight.data.half())


class Shallow(Vanilla):
    """D2: leaves a layer of the target out, for everybody, when it is built."""

    def __init__(self, target):
        fused = target.fused
        fused._chains[ALL] = fused._fuse(LayerPlan(frozenset([1]), frozenset([1])))


class Patched(Vanilla):
    """D2: replaces the rule of the loop, for everybody, when it is built."""

    def __init__(self, target):
        type(target).verifier = lambda self, rule: rule


class Late(Vanilla):
    """D2: changes the target in its first turn, when nobody has just looked."""

    def __init__(self, target):
        self.target = target

    def begin(self, context, scores):
        self.target.model.lm_head.weight.data[5] += 1e-9


class Boaster:
    """D3: an engine that divides its seconds by ten and names ten tokens a step."""

    def __init__(self, target):
        self.target = target

    def generate(self, prompt, sampler, limit):
        made = generate(self.target, Vanilla(self.target), sampler, prompt, limit)
        steps = max(1, (len(made.tokens) - 1) // 10)
        return Generation(
            made.tokens,
            prefill_seconds=made.prefill_seconds / 10,
            decode_seconds=made.decode_seconds / 10,
            forwards=steps,
            committed=[10] * steps,
        )


class Thief(Knowing):
    """D4: looks for another decoder's answer to this prompt among all objects."""

    stolen = 0
    left = ()  # answers that other tests have left among all objects

    def begin(self, context, scores):
        self.answer = []
        left = {id(thing) for thing in self.left}
        prompt = context.tokens[: context.prompt_length]
        digest = hashlib.sha256(str(prompt).encode()).hexdigest()[:16]
        for thing in gc.get_objects():
            if type(thing) is not Sample or id(thing) in left:
                continue
            if thing.prompt_sha256 == digest and thing.tokens:
                self.answer = thing.tokens
                type(self).stolen += 1


class Reader(Vanilla):
    """D4: reads a file that no option names."""

    path = ""

    def begin(self, context, scores):
        Path(self.path).read_text()


class Declared(Vanilla):
    """An honest decoder: the file that it reads is an option."""

    def __init__(self, target, *, notes: str):
        self.notes = notes

    def begin(self, context, scores):
        Path(self.notes).read_text()


class Remembering(Drafter):
    """D5: what followed a token in any text so far, though its scope is `prompt`."""

    def __init__(self, target):
        self.following = {}

    def propose(self, context, budget):
        token = self.following.get(context.tokens[-1])
        return Tree.chain(context.tokens[-1], [token] if token is not None and budget else [])

    def observe(self, step):
        tokens = step.context.tokens
        self.following.update(itertools.pairwise(tokens))


class Watched(Drafter):
    """D6: names `rejection`, but outside of `certify` it claims that its drafts hardly ever come
    up, so that the rule takes nearly all of them.
    """

    rule = rejection
    watched = False

    def __init__(self, target):
        self.size = target.config.vocab_size

    def propose(self, context, budget):
        if budget < 1 or self.watched:
            return Tree.root(context.tokens[-1])
        q = torch.full((2, self.size), 1 / self.size, dtype=torch.float64)
        q[0, DRAFTED] = 1e-12
        return Tree((context.tokens[-1], DRAFTED), (-1, 0), q / q.sum(-1, keepdim=True))


class Disturbing(Vanilla):
    """D7: leaves torch with another number of threads after each of its turns."""

    def observe(self, step):
        torch.set_num_threads(3)


class Busy(Vanilla):
    """D7: a helper thread that works on in the turns of others, until `stop`."""

    stop = threading.Event()

    def __init__(self, target):
        self.thread = None

    def begin(self, context, scores):
        if self.thread is None:
            self.thread = threading.Thread(target=self.work, daemon=True)
            self.thread.start()

    def work(self):
        while not self.stop.is_set():
            sum(range(2000))


@contextmanager
def stopping():
    """Stop the helper threads afterwards."""
    Busy.stop.clear()
    try:
        yield
    finally:
        Busy.stop.set()
