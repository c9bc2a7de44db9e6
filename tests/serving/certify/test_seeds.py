"""Seeded identity, where a server keys its noise by seed."""

from dataclasses import replace

from cells import Through, by_name, checks, pair, plan

from fspad_bench.lossless.checks import ELSEWHERE, FAIL, INCONCLUSIVE, PASS


def seeded(engines, **sizes):
    found = checks(engines, plan("temperature=1", rounds=1, each=2, **sizes))
    return by_name(found)["seeded identity"]


def test_an_engine_that_matches_is_identical():
    check = seeded(pair(rule="match"))
    assert (check.verdict, check.figure) == (PASS, "2 of 2 answers identical by seed")


def test_other_tokens_are_a_finding_only_where_identity_is_promised():
    check = seeded(pair())
    assert check.verdict == ELSEWHERE
    assert check.figure.endswith("tests of the distribution decide")
    assert seeded(pair(), seeded=True).verdict == FAIL


class Fixed(Through):
    """A server that was started with a seed of its own, and heeds no other."""

    def ask_all(self, asks, concurrency):
        return self.engine.ask_all([replace(ask, seed=5) for ask in asks], concurrency)


def test_answers_that_are_not_independent_prove_nothing():
    """Both servers are right, but each draws one answer a prompt, and not the other's."""
    found = by_name(checks(tuple(map(Fixed, pair())), plan("temperature=1", rounds=12)))
    tested = [found[name] for name in ("tokens", "texts", "lengths", "stops", "repeats", "PIT")]
    assert {check.verdict for check in tested} == {INCONCLUSIVE}
    assert "the plain server gives one answer whatever the seed" in found["tokens"].figure
    assert found["parameters"].verdict == PASS


class Seedless(Through):
    """A server that draws anew each time."""

    def __init__(self, engine):
        super().__init__(engine)
        self.asked = 0

    def ask_all(self, asks, concurrency):
        self.asked += 1000
        return self.engine.ask_all(
            [replace(ask, seed=self.asked + i) for i, ask in enumerate(asks)], concurrency
        )


def test_a_server_that_does_not_repeat_itself_says_nothing():
    served, plain = pair(rule="match")
    figure = "the plain server repeats 0 of 2 seeds itself"
    for promised, verdict in ((True, INCONCLUSIVE), (False, ELSEWHERE)):
        check = seeded((served, Seedless(plain)), seeded=promised)
        assert (check.verdict, check.figure) == (verdict, figure)
