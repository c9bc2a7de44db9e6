"""A third-party package in miniature.

One decoder, one task and its metric, nothing imported from anywhere else but the suite.
"""

from pathlib import Path

from fspad_bench.core.tree import Tree

SHOUT = Path(__file__).with_name("acme_shout.yaml")


class Echo:
    """Guesses that the last token comes `times` times more. It is seldom right and never wrong."""

    def __init__(self, target, *, times: int = 2):
        self.times = times

    def begin(self, context, scores):
        pass

    def propose(self, context, budget):
        last = context.tokens[-1]
        return Tree.chain(last, [last] * min(self.times, budget))

    def observe(self, step):
        pass


def loudness(outputs, references):
    """Return the share of letters that are capitals, and of outputs that are the reference."""
    letters = [letter for output in outputs for letter in output if letter.isalpha()]
    capitals = sum(letter.isupper() for letter in letters)
    right = sum(output in answers for output, answers in zip(outputs, references, strict=True))
    return {"loudness": 100 * capitals / max(1, len(letters)), "right": 100 * right / len(outputs)}
