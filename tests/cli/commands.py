"""Decoders that misbehave on the command line."""

import signal

from fspad_bench.core.loop import Generation
from fspad_bench.decoders.vanilla import Vanilla

ME = "commands"


class Broken(Vanilla):
    def begin(self, context, scores):
        raise RuntimeError("out of order")


class Lossy:
    """An engine of its own that says the same word again and again."""

    def __init__(self, target):
        pass

    def generate(self, prompt, sampler, limit):
        return Generation([5] * limit.max_new_tokens, 0.0, 0.0)


class Interrupted(Vanilla):
    """Somebody presses Ctrl-C during the third measured generation."""

    calls, at = 0, 5

    def begin(self, context, scores):
        Interrupted.calls += 1
        if Interrupted.calls == self.at:
            signal.raise_signal(signal.SIGINT)
