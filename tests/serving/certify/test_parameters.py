"""Settings that leave one token show whether a parameter is heeded."""

from dataclasses import replace

import pytest
from cells import Through, by_name, checks, pair, plan

from fspad_bench.lossless.checks import ELSEWHERE, FAIL, PASS
from fspad_bench.serving.certify.parameters import probes
from fspad_bench.serving.certify.plan import Sampling


def parameters(engines, sampling, **sizes):
    return by_name(checks(engines, plan(sampling, rounds=1, each=2, **sizes)))["parameters"]


@pytest.mark.parametrize(
    ("sampling", "names"),
    [
        ("temperature=1", ["temperature"]),
        ("top_k=5,top_p=0.9,min_p=0.1", ["temperature", "top-k", "top-p", "min-p"]),
        ("frequency=0.5", ["temperature", "penalties"]),
    ],
)
def test_each_parameter_of_a_cell_is_probed_and_a_right_engine_heeds_it(sampling, names):
    assert [probe.parameter for probe in probes(Sampling.parse(sampling))] == names
    check = parameters(pair(), sampling, max_tokens=12)
    assert (check.verdict, check.figure) == (PASS, f"{', '.join(names)}: heeded")


@pytest.mark.parametrize("sampling", ["temperature=0.7", "top_k=3", "top_p=0.9"])
def test_ignored_parameters_are_found(sampling):
    check = parameters(pair("ignored-sampling"), sampling)
    assert check.verdict == FAIL
    assert "differ by more than a near tie" in check.figure


def test_penalties_that_neither_side_heeds_are_not_said_to_be():
    class Unpenalised(Through):
        def ask_all(self, asks, concurrency):
            free = [replace(ask, presence=0.0, frequency=0.0, repetition=1.0) for ask in asks]
            return self.engine.ask_all(free, concurrency)

    check = parameters(tuple(map(Unpenalised, pair())), "frequency=0.5", max_tokens=12)
    assert (check.verdict, check.figure) == (
        ELSEWHERE,
        "penalties: they change none of the plain server's answers",
    )


def test_a_bonus_token_without_the_temperature_is_found():
    check = parameters(pair("bonus-without-temperature"), "temperature=0.7", depths=(1,))
    assert check.verdict == FAIL
    assert check.figure.startswith("temperature: ")


def test_what_the_plain_server_ignores_is_not_asked_of_the_other():
    class Deaf(Through):
        """Answers as the double does at temperature 1."""

        def ask_all(self, asks, concurrency):
            hot = [replace(a, temperature=1.0) if a.temperature else a for a in asks]
            return self.engine.ask_all(hot, concurrency)

    check = parameters(tuple(map(Deaf, pair())), "temperature=0.5")
    assert (check.verdict, check.figure) == (
        ELSEWHERE,
        "temperature: the plain server's answers are not its greedy ones",
    )
