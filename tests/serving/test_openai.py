"""An engine behind HTTP gives what the double gives; its kind, its models, its counters."""

import json

import pytest
from serving.scripts import piece, scripted

from fspad_bench.serving.double.server import serving
from fspad_bench.serving.double.service import Direct, Double, Settings
from fspad_bench.serving.engine import Ask
from fspad_bench.serving.metrics import VLLM, drafts, total
from fspad_bench.serving.openai import OpenAIEngine
from fspad_bench.util.errors import BenchError

PROMPT = (3, 4, 5)
GOOD = [piece([7, 8]), piece([9], "length")]


@pytest.fixture(scope="module")
def double():
    return Double(Settings(depth=3))


@pytest.fixture(scope="module")
def engine(double):
    with serving(double) as url:
        yield OpenAIEngine(url)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.0, "seed": 4, "logprobs": 3},
        {"temperature": 0.7, "seed": 5, "top_k": 5, "top_p": 0.8, "min_p": 0.05},
        {"temperature": 1.0, "seed": 6, "presence": 0.5, "frequency": 0.2, "repetition": 1.3},
        {"temperature": 1.0, "seed": 7, "extra": {"speculative": False}},
    ],
)
def test_http_changes_nothing(engine, double, options):
    ask = Ask(PROMPT, 10, **options)
    got, own = engine.ask(ask), Direct(double).ask(ask)
    for name in ("tokens", "text", "finish", "chosen", "top", "drafted", "accepted"):
        assert getattr(got, name) == getattr(own, name), name
    assert 0 < got.first_token_s <= got.seconds
    assert got.tokens_known


def test_many_at_once_are_answered_in_order(engine):
    asks = [Ask(PROMPT, 6, temperature=1.0, seed=seed) for seed in range(16)]
    alone = engine.ask_all(asks, 1)
    together = engine.ask_all(asks, 8)
    assert [reply.tokens for reply in together] == [reply.tokens for reply in alone]
    assert [reply.drafted for reply in together] == [reply.drafted for reply in alone]


def test_the_first_token_is_timed_apart():
    """A busy machine may see the first token late, but neither it nor the last one early."""
    with serving(Double(Settings(depth=0, step_seconds=0.2))) as url:
        reply = OpenAIEngine(url).ask(Ask(PROMPT, 4))
    assert 0.2 <= reply.first_token_s < 0.6
    assert reply.seconds >= 0.8


def test_facts(engine):
    facts = engine.facts()
    assert facts["model"] == "double"
    assert facts["engine"] == "fspad-bench"
    assert facts["version"]
    assert facts["url"].startswith("http://127.0.0.1:")
    assert facts["token_ids"] is facts["logprobs"] is facts["seeds"] is True


class TestModels:
    def pages(self, *cards):
        return {"/v1/models": json.dumps({"data": list(cards)})}

    def test_the_first_is_the_default(self):
        pages = self.pages({"id": "a", "owned_by": "vllm"}, {"id": "b"})
        with scripted(GOOD, pages=pages) as server:
            OpenAIEngine(server.url).ask(Ask(PROMPT, 4))
            OpenAIEngine(server.url, model="b").ask(Ask(PROMPT, 4))
        assert [body["model"] for body in server.bodies] == ["a", "b"]

    def test_an_unknown_one_names_the_nearest(self):
        said = pytest.raises(BenchError, match="does not serve 'llama-8'")
        with scripted(GOOD, pages=self.pages({"id": "llama-8b"})) as server, said as caught:
            OpenAIEngine(server.url, model="llama-8")
        assert "did you mean 'llama-8b'" in caught.value.hint

    def test_none(self):
        with scripted(GOOD, pages=self.pages()) as server:
            with pytest.raises(BenchError, match="serves no model"):
                OpenAIEngine(server.url)
            assert OpenAIEngine(server.url, model="mine").facts()["model"] == "mine"

    @pytest.mark.parametrize(
        ("owner", "dialect"),
        [
            ("vllm", "vllm"),
            ("sglang", "sglang"),
            ("llamacpp", "llamacpp"),
            ("tensorrt_llm", "tensorrt_llm"),
            ("HuggingFaceTB", "vllm"),
        ],
    )
    def test_the_owner_tells_the_dialect(self, owner, dialect):
        with scripted(GOOD, pages=self.pages({"id": "a", "owned_by": owner})) as server:
            assert OpenAIEngine(server.url).facts()["dialect"] == dialect
            assert OpenAIEngine(server.url, dialect="chat").facts()["dialect"] == "chat"
            with pytest.raises(BenchError, match="unknown dialect 'lama'"):
                OpenAIEngine(server.url, dialect="lama")

    def test_transformers_is_known_by_its_routes(self):
        pages = {"/openapi.json": '{"paths": {"/load_model": {}}}'}
        pages |= self.pages({"id": "a", "owned_by": "somebody"})
        with scripted(GOOD, pages=pages) as server:
            facts = OpenAIEngine(server.url).facts()
        assert facts["dialect"] == "transformers"
        assert facts["token_ids"] is False


class TestCounters:
    """Those of `/metrics`, where a reply has none."""

    def page(self, drafted, accepted):
        names = zip(VLLM, (drafted, accepted), strict=True)
        return "".join(f'{name}{{engine="0"}} {value}.0\n' for name, value in names)

    def test_the_difference_around_a_request(self):
        counts = iter([(5, 2), (5, 2), (11, 6)])
        pages = {"/metrics": lambda: self.page(*next(counts))}
        with scripted(GOOD, pages=pages) as server:
            reply = OpenAIEngine(server.url).ask(Ask(PROMPT, 4))
        assert (reply.drafted, reply.accepted) == (6, 4)

    def test_requests_at_once_cannot_be_told_apart(self):
        with scripted(GOOD, pages={"/metrics": self.page(5, 2)}) as server:
            engine = OpenAIEngine(server.url)
            replies = engine.ask_all([Ask(PROMPT, 4)] * 3, 2)
            assert engine.drafts() == (5, 2)
        assert [reply.drafted for reply in replies] == [None] * 3

    def test_a_reply_that_has_its_own_counts_first(self):
        own = {"speculative_decoding": {"num_draft_tokens": 4, "num_accepted_draft_tokens": 1}}
        events = [*GOOD, {"choices": [], "metrics": own}]
        with scripted(events, pages={"/metrics": self.page(5, 2)}) as server:
            reply = OpenAIEngine(server.url).ask(Ask(PROMPT, 4))
        assert (reply.drafted, reply.accepted) == (4, 1)

    def test_counters_that_fall_are_of_a_server_that_began_anew(self):
        counts = iter([(50, 20), (50, 20), (5, 2)])
        with scripted(GOOD, pages={"/metrics": lambda: self.page(*next(counts))}) as server:
            assert OpenAIEngine(server.url).ask(Ask(PROMPT, 4)).drafted is None

    def test_no_counters(self):
        with scripted(GOOD) as server:
            reply = OpenAIEngine(server.url).ask(Ask(PROMPT, 4))
        assert reply.drafted is None

    def test_labels_are_summed(self):
        page = '# HELP x y\nx{a="1"} 2\nx{a="2",b="} {"} 3 1700\nxy 9\nz 1e3\n'
        assert total(page, "x") == 5
        assert total(page, "z") == 1000
        assert total(page, "q") is None
        assert drafts(page, ("x", "q")) is None

    @pytest.mark.parametrize("value", ["NaN", "+Inf", "", "many", "{"])
    def test_what_is_no_number_is_not_told(self, value):
        page = self.page(5, 2) + f'{VLLM[0]}{{engine="1"}} {value}\n'
        assert total(page, VLLM[0]) is None
        with scripted(GOOD, pages={"/metrics": page}) as server:
            assert OpenAIEngine(server.url).ask(Ask(PROMPT, 4)).drafted is None


def test_an_answer_that_comes_at_once_has_no_first_token_of_its_own():
    with scripted([piece([7, 8], "length")]) as server:
        reply = OpenAIEngine(server.url).ask(Ask(PROMPT, 4))
    assert reply.first_token_s == reply.seconds > 0
    with scripted(GOOD) as server:
        reply = OpenAIEngine(server.url).ask(Ask(PROMPT, 4))
    assert 0 < reply.first_token_s < reply.seconds
