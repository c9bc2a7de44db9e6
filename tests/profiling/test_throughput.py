"""Throughput: which rounds count, whom they are charged to, and that a wrong token shows."""

import json
import math
import re

import pytest
import torch

from fspad_bench.benchmark.stats import Cost
from fspad_bench.cli.main import main
from fspad_bench.core.protocols import Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.shared_loop import Question, Round
from fspad_bench.decoders.build import build_decoder
from fspad_bench.engine import together
from fspad_bench.profiling import throughput
from fspad_bench.profiling.throughput import Cell, Throughput, measure
from fspad_bench.profiling.throughput_table import facts, render, sentences
from fspad_bench.util import machine
from fspad_bench.util.errors import BenchError

QUESTIONS = [Question([5 + n, 9, 11] * 4, Sampler(), Limit(5 + n)) for n in range(2)]


class Rounds:
    """A loop of rounds that are known."""

    def __init__(self, rounds):
        self.rounds = list(rounds)

    @property
    def finished(self):
        return not self.rounds

    def step(self):
        return self.rounds.pop(0)


def cell(decoder, batch, seconds, tokens):
    steps = [max(1, count // 2) for count in tokens]
    return Cell(decoder, batch, list(seconds), list(tokens), steps, nodes=10, requests=2)


def measured(*cells, keeps_bits=True, prompts=2):
    return Throughput(prompts, keeps_bits, cells=list(cells))


def test_only_full_rounds_count_and_each_request_pays_an_equal_share():
    own = Cell("x", 2, [0.0] * 2, [0] * 2, [0] * 2)
    rounds = [
        Round(1.0, {0: 3, 1: 1}, 9),
        Round(9.0, {1: 5}, 4),  # one place was empty
        Round(2.0, {1: 1, 2: 4}, 7),  # the third request asks the first prompt again
    ]
    throughput._run(Rounds(rounds), own)
    assert own.seconds == [1.5, 1.5]
    assert own.tokens == [7, 2]
    assert own.steps == [2, 2]
    assert own.rate == 3.0
    assert own.nodes_per_step == 4.0
    assert own.tokens_per_step.value == pytest.approx(9 / 4)


def test_decoders_take_turns_of_a_few_rounds(monkeypatch):
    loops = {name: Rounds([Round(1.0, {0: 1}, 1)] * 20) for name in "ab"}
    order = []
    for name in throughput._turns(loops):
        order.append(name)
        throughput._run(loops[name], Cell(name, 1, [0.0], [0], [0]))
    assert sorted(order[:2]) == sorted(order[2:4]) == sorted(order[4:]) == ["a", "b"]


def test_every_decoder_and_size_is_measured_and_compared_with_batch_one(tiny):
    decoders = [build_decoder(name, tiny) for name in ("vanilla", "prompt_lookup")]
    result = measure(tiny, decoders, QUESTIONS, [1, 3])
    assert [(c.batch, c.decoder) for c in result.cells] == [
        (batch, name) for batch in (1, 3) for name in ("vanilla", "prompt_lookup")
    ]
    assert [c.requests for c in result.cells] == [2, 2, 6, 6]
    assert {c.verdict for c in result.cells} == {"exact"}
    assert {c.differing for c in result.cells} == {0}
    vanilla = result.of("vanilla")[1]
    assert vanilla.tokens == vanilla.steps == [4, 5]
    assert not result.keeps_bits


def test_rows_that_reach_the_wrong_request_are_counted(tiny, monkeypatch):
    own = together.each_its_own

    def shifted(attends, sizes):
        attend = own(attends, sizes)
        return lambda *inputs: torch.roll(attend(*inputs), 1, dims=0)

    monkeypatch.setattr(together, "each_its_own", shifted)
    result = measure(tiny, [build_decoder("vanilla", tiny)], QUESTIONS, [1, 2])
    assert [c.differing for c in result.cells] == [0, 4]
    assert [c.verdict for c in result.cells] == ["exact", "lossy"]
    assert result.is_lossy
    assert "lossy: requests got tokens that they do not get at batch 1" in render(result)


def test_speedups_compare_equal_batches_and_drop_prompts_without_a_step():
    result = measured(
        cell("vanilla", 1, [4.0, 4.0], [4, 4]),
        cell("x", 1, [1.0, 3.0], [4, 4]),
        cell("vanilla", 2, [1.0, 1.0], [4, 0]),
        cell("x", 2, [2.0, 9.0], [4, 4]),
    )
    one, two = result.of("x").values()
    assert result.speedup(one).value == pytest.approx(2.0)
    assert result.speedup(two).value == pytest.approx(0.5)
    assert result._pair(two) == ([Cost(1.0, 4)], [Cost(2.0, 4)])
    assert result.break_even("x").value == pytest.approx(2**0.5)


def test_the_sentence_says_from_which_batch_on_it_is_to_be_switched_off():
    slow = {size: cell("vanilla", size, [1.0, 1.0], [4, 4]) for size in (1, 4)}
    cases = {
        (2.0, 0.5): "x: break-even at batch 2.0: switch it off from 2 on, --speculate-up-to 1",
        (2.0, 1.5): "x: break-even not reached up to batch 4",
        (0.5, 0.5): "x: slower than vanilla from batch 1 on: switch it off",
    }
    for speedups, sentence in cases.items():
        own = [
            cell("x", size, [1 / speedup, 1 / speedup], [4, 4])
            for size, speedup in zip((1, 4), speedups, strict=True)
        ]
        assert sentences(measured(*slow.values(), *own)) == [sentence]
    tokens = [4] * 5
    cells = [cell("vanilla", size, [1.0] * 5, tokens) for size in (1, 4)]
    cells.append(cell("x", 1, [0.5] * 5, tokens))
    cells.append(cell("x", 4, [0.4, 0.4, 0.4, 1.2, 1.2], tokens))
    (sentence,) = sentences(measured(*cells, prompts=5))
    assert re.match(r"x: break-even not reached \[[23]\.\d, above 4\] up to batch 4", sentence)


def test_few_prompts_have_no_interval():
    """As in a table of `run`."""
    cells = [cell(name, 1, [1.0] * 4, [4] * 4) for name in ("vanilla", "x")]
    result = measured(*cells, prompts=4)
    assert "1.00 [±?]" in render(result)
    assert "fewer than 5 prompts have no interval" in render(result)
    cells = [cell(name, 1, [1.0] * 5, [4] * 5) for name in ("vanilla", "x")]
    assert "1.00 [1.00, 1.00]" in render(measured(*cells, prompts=5))


def test_json_holds_none_for_what_has_no_number():
    result = measured(cell("vanilla", 1, [1.0, 1.0], [4, 4]), cell("x", 1, [0.5, 0.5], [4, 4]))
    content = facts(result)
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["break_even"] == {"x": [None, None, None]}
    assert content["cells"][1]["speedup"] == [2.0, None, None]
    assert math.isinf(result.break_even("x").value)


def test_other_work_is_told(monkeypatch):
    result = measured(cell("vanilla", 1, [1.0, 1.0], [4, 4]))
    assert "noisy" not in render(result)
    result.others = machine.NOISY + 1
    assert "other work used 1.1 cores meanwhile: these times are noisy" in render(result)


def arguments(*more):
    words = "throughput --target tiny --device cpu --limit 2 --max-new-tokens 5 --threads 1"
    return [*words.split(), *more]


def test_the_verb_prints_what_was_measured(capsys, quick_runs):
    assert main(arguments("--decoder", "suffix", "--batch", "2,1,2", "--format", "json")) == 0
    content = json.loads(capsys.readouterr().out)
    assert [(c["decoder"], c["batch"]) for c in content["cells"]] == [
        ("vanilla", 1), ("suffix", 1), ("vanilla", 2), ("suffix", 2)
    ]  # fmt: skip
    assert {c["differing"] for c in content["cells"]} == {0}
    assert content["rows"] == "same up to rounding"
    assert content["decoders"]["suffix"]["nodes"] == 64
    assert (content["target"], content["temperature"]) == ("tiny", 0.0)
    assert list(content["break_even"]) == ["suffix"]


def test_a_wrong_token_fails_the_verb(capsys, quick_runs, monkeypatch):
    own = together.each_its_own
    monkeypatch.setattr(together, "each_its_own", lambda *a: lambda *b: own(*a)(*b).flip(0))
    assert main(arguments("--decoder", "vanilla", "--batch", "2")) == 1
    assert "lossy: requests got tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--decoder", "suffix", "-D", "suffix.scope=run"], "suffix learns across prompts"),
        (["--batch", "1,1000"], "--batch 1000 is too large"),
        (["--batch", "0"], "'0' is not a whole number above 0"),
        (["--decoder", "nothing"], "unknown decoder 'nothing'"),
        (["--task", "nothing"], "nothing"),
        (["--temperature", "-1"], "temperature -1.0 is out of range"),
    ],
)
def test_what_cannot_be_measured_is_one_clear_error(more, message, capsys, quick_runs):
    assert main(arguments(*more)) == 2
    assert message in capsys.readouterr().err


def test_answers_without_a_step_have_no_speed(tiny):
    short = [question._replace(limit=Limit(1)) for question in QUESTIONS]
    with pytest.raises(BenchError, match="no round had 2 answers that are longer than"):
        measure(tiny, [build_decoder("vanilla", tiny)], short, [2])


def test_a_smaller_batch_that_is_slower_is_told_beside_the_break_even():
    speedups = {1: 0.5, 2: 1.5, 4: 0.5}
    cells = [
        cell(name, batch, [20.0 / (speedup if name == "x" else 1.0)] * 2, [10, 10])
        for batch, speedup in speedups.items()
        for name in ("vanilla", "x")
    ]
    (sentence,) = sentences(measured(*cells))
    assert "but slower than vanilla at 1: switch it off from 3 on" in sentence
    (sentence,) = sentences(measured(*cells[:4]))
    assert sentence.endswith("not reached up to batch 2, but slower than vanilla at 1")


def test_a_break_even_is_looked_for_where_something_is_drafted():
    """Above N nothing is: speedups of 0.99 there are noise."""
    speedups = {1: 2.0, 2: 1.5, 4: 0.99, 8: 0.99}
    cells = [
        cell(name, batch, [20.0 / (speedup if name == "x" else 1.0)] * 2, [10, 10])
        for batch, speedup in speedups.items()
        for name in ("vanilla", "x")
    ]
    result = measured(*cells)
    assert 2 < result.break_even("x").value < 4
    result.speculate_up_to = 3
    assert math.isinf(result.break_even("x").value)
    assert sentences(result) == ["x: break-even not reached up to batch 2, not looked for above 3"]
    assert facts(result)["break_even"] == {"x": [None, None, None]}
    result.speculate_up_to = 8
    assert "not looked for" not in sentences(result)[0]
    above = measured(*cells[4:])
    above.speculate_up_to = 2
    assert sentences(above) == ["x: no break-even, not looked for above 2"]
    assert facts(above)["break_even"] == {"x": [None, None, None]}


def test_the_measurement_knows_up_to_which_batch_it_drafted(tiny):
    decoders = [build_decoder(name, tiny) for name in ("vanilla", "prompt_lookup")]
    result = measure(tiny, decoders, QUESTIONS, [1, 3], speculate_up_to=2)
    assert list(result.drafting("prompt_lookup")) == [1]
    assert "not looked for above 2" in render(result)


@pytest.mark.parametrize(("sizes", "kept"), [([1, 3], [1]), ([3], None)])
def test_a_batch_that_does_not_fit_the_memory_keeps_the_smaller_ones(
    sizes, kept, tiny, monkeypatch
):
    real = throughput.SharedLoop.step

    def step(loop):
        if len(loop.idle) + len(loop.working) == 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return real(loop)

    monkeypatch.setattr(throughput.SharedLoop, "step", step)
    decoders = [build_decoder("vanilla", tiny)]
    if kept is None:
        with pytest.raises(BenchError, match="a batch of 3 does not fit the memory"):
            measure(tiny, decoders, QUESTIONS, sizes)
        return
    result = measure(tiny, decoders, QUESTIONS, sizes)
    assert [own.batch for own in result.cells] == kept
    assert "a batch of 3 does not fit the memory: left out" in render(result)
    assert facts(result)["does_not_fit"] == 3
