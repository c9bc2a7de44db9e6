"""A served engine in a run: its tokens are vanilla's or the row says so; its figures are claims."""

import json
from dataclasses import replace

import pytest
from runs import LENGTH, plan_of, row_of, run
from serving.scripts import CARD, piece, scripted

from fspad_bench.core.protocols import Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.build import build_decoder, check_options
from fspad_bench.decoders.label import Label
from fspad_bench.serving import decoder
from fspad_bench.serving.decoder import Served
from fspad_bench.serving.double.server import serving
from fspad_bench.serving.double.target import OwnTarget
from fspad_bench.util.errors import BenchError


@pytest.fixture(scope="module")
def url(tiny):
    with serving(OwnTarget(tiny)) as address:
        yield address


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "questions.jsonl"
    lines = [{"id": f"q{i}", "turns": [f"What is {i} and {i}, and {i}?"]} for i in range(3)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_greedy_over_http_is_vanilla_and_its_figures_are_claims(data, tmp_path, url, quick_runs):
    label = f"served:{url}"
    _, records = run(plan_of(data, label), tmp_path / "out")
    row = row_of(records, label)
    assert (row["verdict"], row["errors"], row["tokens"]) == ("exact", 0, 3 * LENGTH)
    assert row["speedup"] is row["tokens_per_step"] is row["time_to_first_token"] is None
    assert row["speedup_end_to_end"] > 0
    assert row["claimed_time_to_first_token"] is row["claimed_speedup"] is None  # all came at once
    samples = [s for s in records.samples if records.keys[s.key].decoder == label]
    assert all(s.claims["drafted"] >= s.claims["accepted"] >= 0 for s in samples)
    drafted = sum(s.claims["drafted"] for s in samples)
    accepted = sum(s.claims["accepted"] for s in samples)
    assert row["claimed_acceptance"] == (accepted / drafted if drafted else None)
    steps = sum(LENGTH - 1 - s.claims["accepted"] for s in samples)
    assert row["claimed_tokens_per_step"] == pytest.approx(3 * (LENGTH - 1) / steps)


def test_the_servers_processes_work_in_its_turns(tiny, url, monkeypatch):
    monkeypatch.setattr(decoder, "processes_behind", {url: [7, 8]}.get)
    built = build_decoder(f"served:{url}", tiny)
    built.prepare()
    assert built.processes == [7, 8]


def test_a_row_says_which_engine_answered(url, tiny):
    options = build_decoder(f"served:{url}", tiny).options
    assert (options["url"], options["engine"], options["model"]) == (url, "fspad-bench", "double")
    assert options["version"]
    assert options["extra"] == {}


def test_other_tokens_are_returned_as_they_are(tiny):
    with scripted([piece([7, 8]), piece([9, 10], "length")]) as server:
        decoder = build_decoder(f"served:{server.url}", tiny)
        generation = decoder.generate(tiny, Sampler(), [40, 41], Limit(4))
    assert generation.tokens == [7, 8, 9, 10]
    assert generation.claims["prefill_seconds"] > 0
    assert server.bodies[0]["prompt"] == [40, 41]


def test_what_is_sampled_is_told_to_the_server(tiny):
    with scripted([piece([7, 8], "length")]) as server:
        served = Served(tiny, url=server.url, extra='{"depth": 3}')
        sampler = Sampler(temperature=0.7, top_p=0.9, top_k=5, seed=3)
        served.generate([40], sampler, Limit(2))
        served.generate([40], sampler.streamed("another"), Limit(2))
    first, second = server.bodies
    assert (first["temperature"], first["top_p"], first["top_k"]) == (0.7, 0.9, 5)
    assert first["depth"] == 3
    assert first["seed"] != second["seed"]


@pytest.mark.parametrize(
    ("stops", "tokens"),
    [({2}, [7, 8, 2]), ({2, 3}, [7, 8]), ({8}, [7, 8])],
)
def test_a_stop_that_the_server_leaves_out_is_put_back_if_it_is_known(tiny, stops, tokens):
    with scripted([piece([7, 8], "stop")]) as server:
        generation = Served(tiny, url=server.url).generate(
            [40], Sampler(), Limit(9, frozenset(stops))
        )
    assert generation.tokens == tokens


def test_a_stop_that_is_put_back_is_a_step_of_its_own(tiny):
    """One token a step where nothing was accepted, the prefill's left out."""
    with scripted([piece([7, 8], "stop")]) as server:
        served = Served(tiny, url=server.url)
        served.engine.ask = lambda ask, own=served.engine.ask: replace(
            own(ask), drafted=4, accepted=0
        )
        generation = served.generate([40], Sampler(), Limit(9, frozenset({2})))
    assert (len(generation.tokens), generation.forwards) == (3, 2)


def test_a_failure_is_that_samples_error(data, tmp_path, quick_runs):
    with scripted((400, "no")) as server:
        label = f"served:{server.url}"
        _, records = run(plan_of(data, label), tmp_path / "out")
    samples = [s for s in records.samples if records.keys[s.key].decoder == label]
    assert all("answered 400: no" in s.error for s in samples)
    assert len(samples) == 3


class TestLabel:
    URL = "http://127.0.0.1:8000"

    def test_is_a_name_and_an_address(self):
        label = Label.of(f"served:{self.URL}")
        assert (label.served, label.preset, label.own) == (self.URL, "", "")
        assert Label.of(f"there=served:{self.URL}").shown == "there"
        assert Label.of("eagle@paper").served == ""

    def test_takes_options_by_its_kind_or_its_own_name(self):
        check_options([f"served:{self.URL}"], {"served": {"model": "m"}})
        check_options([f"there=served:{self.URL}"], {"there": {"timeout": "5"}})
        with pytest.raises(BenchError, match="no option 'modle'"):
            check_options([f"served:{self.URL}"], {"served": {"modle": "m"}})

    def test_may_be_of_a_host_of_that_name(self):
        assert Label.of("a=served:http://served:1").served == "http://served:1"

    @pytest.mark.parametrize("own", ["", "mine="])
    @pytest.mark.parametrize("end", ["me:hidden@host:1", "host?key=hidden", "host#hidden"])
    def test_holds_no_secret(self, own, end):
        with pytest.raises(BenchError, match="records hold addresses") as caught:
            Label.of(f"{own}served:http://{end}")
        assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("extra", ["3", "{", "[]", "[" * 100_000])
def test_extra_is_an_object(tiny, extra):
    with pytest.raises(BenchError, match="not a JSON object"):
        Served(tiny, url="http://127.0.0.1:1", extra=extra)


def test_text_alone_is_refused(tiny):
    pages = {"/v1/models": json.dumps({"data": [CARD | {"owned_by": "x"}]})}
    with scripted([], pages=pages) as server, pytest.raises(BenchError, match="text alone"):
        Served(tiny, url=server.url, dialect="transformers")
    with scripted([{"choices": [{"text": "a", "finish_reason": "stop"}]}]) as server:
        served = Served(tiny, url=server.url)
        with pytest.raises(BenchError, match="text without token ids"):
            served.generate([40], Sampler(), Limit(3))


def test_the_bearer_token_reaches_no_record(data, tmp_path, quick_runs, monkeypatch, tiny, capsys):
    monkeypatch.setenv("FSPAD_BENCH_API_KEY", "sk-very-secret")
    with serving(OwnTarget(tiny), key="sk-very-secret") as url:
        label = f"served:{url}"
        path, records = run(plan_of(data, label), tmp_path / "out")
    assert row_of(records, label)["verdict"] == "exact"
    assert url in path.read_text()
    printed = capsys.readouterr()
    assert "sk-very-secret" not in path.read_text() + printed.out + printed.err
