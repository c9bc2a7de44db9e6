"""Settings, cells and requests of a certification."""

import pytest
from cells import DEPTH_EXTRA, plan

from fspad_bench.serving.certify.plan import (
    PLAIN,
    SAMPLING,
    SERVED,
    Plan,
    Sampling,
    default_sampling,
)
from fspad_bench.util.errors import BenchError


def test_sampling_is_read_and_named():
    sampling = Sampling.parse("top_p=0.95,top_k=20")
    assert sampling == Sampling(temperature=1.0, top_p=0.95, top_k=20)
    assert sampling.name == "T=1 top-p=0.95 top-k=20"
    assert Sampling.parse("greedy").name == "greedy"
    assert Sampling.parse("temperature=0,presence=0.5").greedy
    assert Sampling.parse("temperature=0,presence=0.5").penalised


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("topp=1", "unknown sampling parameter 'topp'"),
        ("top_k=many", "'many' is not a value of top_k"),
        ("", "unknown sampling parameter ''"),
        ("temperature=nan", "temperature=nan is out of range"),
        ("temperature=-1", "temperature=-1.0 is out of range"),
        ("top_p=0", "top_p=0.0 is out of range"),
        ("min_p=inf", "min_p=inf is out of range"),
        ("top_k=-3", "top_k=-3 is out of range"),
    ],
)
def test_sampling_that_is_none(text, message):
    with pytest.raises(BenchError, match=message):
        Sampling.parse(text)


def test_the_grid_is_every_combination():
    cells = plan("greedy", "temperature=1", depths=(1, 5), concurrency=(1, 8), lengths=(4,)).cells()
    assert len({cell.name for cell in cells}) == len(cells) == 8
    assert cells[-1].name == "depth 5, 8 at once, 4 tokens in, T=1"


def test_a_request_says_what_its_cell_is():
    one = plan("temperature=1,top_k=3", depths=(5,), extra={PLAIN: {"speculative": False}})
    (cell,) = one.cells()
    served = one.ask(SERVED, cell, (1, 2), seed=7)
    assert (served.temperature, served.top_k, served.seed) == (1.0, 3, 7)
    assert served.extra == {"num_speculative_tokens": 5}
    assert one.ask(PLAIN, cell, (1, 2)).extra == {"speculative": False}


def test_prompts_are_repeated_or_cut_to_a_length():
    one = plan("greedy", prompts=((1, 2, 3),), lengths=(2, 5))
    short, long = (one.prompts_of(cell) for cell in one.cells())
    assert (short, long) == ([(2, 3)], [(2, 3, 1, 2, 3)])


@pytest.mark.parametrize(
    "sizes", [{"prompts": ()}, {"lengths": (0,)}, {"concurrency": (0,)}, {"error": 1.0}]
)
def test_sizes_that_are_none(sizes):
    with pytest.raises(BenchError):
        Plan(**({"prompts": ((1,),), "depth_extra": DEPTH_EXTRA} | sizes))


def test_the_default_grid_asks_for_what_a_server_can_be_told():
    every = default_sampling((), ())
    assert [settings.name for settings in every] == [Sampling.parse(s).name for s in SAMPLING]
    transformers = default_sampling(("presence", "frequency"), ())
    assert [settings.name for settings in transformers[:-1]] == [s.name for s in every[:-1]]
    assert transformers[-1].name == "T=1 repetition=1.3"
    chat = default_sampling((), ("top_k", "min_p", "repetition"))
    assert {"top_k=20", "top-k=20"}.isdisjoint(" ".join(s.name for s in chat).split())
    assert chat[-1] == every[-1]
    least = default_sampling(("presence", "frequency"), ("top_k", "min_p", "repetition"))
    assert not any(settings.penalised for settings in least)
