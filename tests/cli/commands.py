"""Decoders that misbehave, for tests of the command line."""

import signal

from fspad_bench.core.protocols import Generation
from fspad_bench.decoders.vanilla import Vanilla

ME = "commands"


class Broken(Vanilla):
    def begin(self, context, scores):
        raise RuntimeError("out of order")


class Lossy:
    """A foreign engine that repeats one token."""

    def __init__(self, target):
        pass

    def generate(self, prompt, sampler, limit):
        return Generation([5] * limit.max_new_tokens, 0.0, 0.0)


class Interrupted(Vanilla):
    """Raises SIGINT, as Ctrl-C does, at the third measured generation."""

    calls = 0
    at = 5

    def begin(self, context, scores):
        Interrupted.calls += 1
        if Interrupted.calls == self.at:
            signal.raise_signal(signal.SIGINT)


class Chatty(Vanilla):
    def begin(self, context, scores):
        print("drafting!")


class Exits(Vanilla):
    def begin(self, context, scores):
        raise SystemExit(0)
