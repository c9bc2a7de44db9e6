"""A server's failures are one error each, some after more tries; the token is shown nowhere."""

import json
import math
import traceback

import pytest
from serving.scripts import RESET, piece, scripted

from fspad_bench.serving.double.server import serving
from fspad_bench.serving.double.service import Double, Settings
from fspad_bench.serving.engine import Ask
from fspad_bench.serving.http import Client
from fspad_bench.serving.openai import OpenAIEngine
from fspad_bench.util.errors import BenchError

SECRET = "sk/very'secret"
ECHOES = [
    (400, f"bad key {SECRET}"),
    (400, json.dumps({"error": {"message": SECRET}})),
    (404, SECRET),
    (503, SECRET),
    [f"<html>{SECRET}"],
    [{"error": {"message": SECRET}}],
    [{"choices": 3, "headers": {"Authorization": f"Bearer {SECRET}"}}],
]
ASK = Ask((3, 4), 4)
GOOD = [piece([7, 8]), piece([9], "length")]


def engine(server, **options):
    asked = OpenAIEngine(server.url, lambda: SECRET, **options)
    asked.client.sleep = lambda seconds: pauses.append(seconds)
    return asked


pauses = []


@pytest.fixture(autouse=True)
def no_pauses():
    pauses.clear()


@pytest.mark.parametrize("failure", [(429, "slow down"), (503, "loading"), (500, "oh"), RESET])
def test_what_may_pass_is_tried_again_with_growing_pauses(failure):
    with scripted(failure, failure, GOOD) as server:
        reply = engine(server).ask(ASK)
    assert reply.tokens == (7, 8, 9)
    assert len(server.bodies) == 3
    assert 0.3 < pauses[0] < pauses[1] < 1.5


def test_a_server_says_when_to_come_back():
    with scripted((429, "later", {"Retry-After": "7"}), GOOD) as server:
        engine(server).ask(ASK)
    assert pauses == [7.0]


def test_what_does_not_pass_is_given_up():
    said = r"answered 503: loading model \(tried 3 times\)"
    loading = (503, json.dumps({"error": {"message": "loading model"}}))
    with scripted(loading) as server, pytest.raises(BenchError, match=said):
        engine(server, retries=2).ask(ASK)
    assert len(server.bodies) == 3


@pytest.mark.parametrize(
    ("answer", "said", "hint"),
    [
        ((400, json.dumps({"error": {"message": "top_k"}})), "answered 400: top_k", "log"),
        ((422, json.dumps({"detail": "Unexpected fields"})), "422: Unexpected fields", "log"),
        ((401, "no"), r"refuses the bearer token \(401\)", "FSPAD_BENCH_API_KEY"),
        ((403, "no"), r"refuses the bearer token \(403\)", "FSPAD_BENCH_API_KEY"),
        ((404, "nothing"), "has no /v1/completions", "right server"),
        ((GOOD[:1], "cut"), "broke off", "log"),
        (GOOD[:1], "broke off after 2 tokens", "log"),
        ([piece([7, 8], "abort")], "gave an answer up after 2 tokens", "log"),
        ([{"error": {"message": "out of memory"}}], "out of memory", "log"),
        (["<html>"], "does not speak the OpenAI API: '<html>'", "address"),
        ([piece([7], logprobs=3)], "not of the dialect 'vllm'", "dialect"),
    ],
)
def test_other_failures_are_one_error_at_once(answer, said, hint):
    with scripted(answer) as server, pytest.raises(BenchError, match=said) as caught:
        engine(server).ask(ASK)
    assert hint in caught.value.hint
    assert caught.value.exit_code == 2
    assert len(server.bodies) == 1
    assert not pauses


def test_no_server():
    with scripted(GOOD) as server:
        url = server.url
    with pytest.raises(BenchError, match=f"no server answers at {url}"):
        OpenAIEngine(url)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", "", "served"])
def test_no_address(url):
    with pytest.raises(BenchError, match="address") as caught:
        Client(url)
    assert "http://HOST:PORT" in caught.value.hint


def test_silence_is_a_timeout():
    with serving(Double(Settings(step_seconds=1.0))) as url:
        asked = OpenAIEngine(url, timeout=0.2)
        with pytest.raises(BenchError, match=r"silent for 0\.2 s"):
            asked.ask(ASK)


@pytest.mark.parametrize(
    "options", [{"timeout": 0.0}, {"timeout": -1.0}, {"timeout": math.nan}, {"retries": -1}]
)
def test_no_timeout_and_no_tries(options):
    with pytest.raises(BenchError, match="a timeout of"):
        Client("http://host:1", **options)


@pytest.mark.parametrize("tail", ["", "/", "/v1", "/v1/"])
def test_an_address_may_name_the_api(tail):
    assert Client(f"http://host:1{tail}").url == "http://host:1"


@pytest.mark.parametrize("page", ["[]", "{}", "no json", '{"data": 3}'])
def test_a_server_of_something_else(page):
    with scripted(GOOD, pages={"/v1/models": page}) as server, pytest.raises(BenchError):
        engine(server)


class TestTheToken:
    """It is sent, and stands nowhere else."""

    def test_is_sent_with_every_request(self):
        with scripted(GOOD) as server:
            engine(server).ask(ASK)
        assert set(server.tokens) == {f"Bearer {SECRET}"}

    def test_opens_a_locked_server(self):
        with serving(Double(), key=SECRET) as url:
            assert OpenAIEngine(url, lambda: SECRET).ask(ASK).tokens
            with pytest.raises(BenchError, match="refuses the bearer token"):
                OpenAIEngine(url, lambda: "wrong")

    def test_is_in_no_message_no_fact_and_no_repr(self):
        with scripted((400, f"bad key {SECRET}")) as server:
            asked = engine(server)
            with pytest.raises(BenchError) as caught:
                asked.ask(ASK)
            shown = [str(caught.value), caught.value.hint, repr(asked), repr(asked.client)]
            shown += [
                repr(asked.client._http),
                repr(asked.client._http.headers),
                str(asked.facts()),
            ]
        assert "bad key ***" in shown[0]
        assert not [text for text in shown if SECRET in text]

    def test_may_stand_on_a_line_of_its_own(self):
        with scripted(GOOD) as server:
            OpenAIEngine(server.url, lambda: f" {SECRET}\n").ask(ASK)
        assert set(server.tokens) == {f"Bearer {SECRET}"}

    @pytest.mark.parametrize("answer", ECHOES)
    def test_echoed_in_an_answer_is_in_no_message(self, answer):
        with scripted(answer) as server, pytest.raises(BenchError) as caught:
            engine(server, retries=0).ask(ASK)
        assert SECRET not in "".join(traceback.format_exception(caught.value))
        assert "***" in caught.value.message

    def test_echoed_in_what_is_recorded_is_hidden(self):
        pages = {
            "/v1/models": json.dumps({"data": [{"id": "m", "owned_by": SECRET}]}),
            "/version": json.dumps({"version": f"1 {SECRET}"}),
        }
        with scripted([piece([7], f"stop {SECRET}", text=SECRET)], pages=pages) as server:
            asked = engine(server)
            recorded = [str(asked.facts()), str(asked.ask(ASK))]
        assert not [text for text in recorded if SECRET in text]


class TestTheAddress:
    """It is kept and shown, and so it may hold no secret."""

    @pytest.mark.parametrize(
        "url",
        [
            "http://me:hidden@host:1/v1",
            "http://hidden@host",
            "http://me:hidden@h:abc",
            "me:hidden@",
            "http://host?key=hidden",
            "http://host#hidden",
            "ftp://host?hidden",
        ],
    )
    def test_with_a_user_or_a_query_is_refused_and_not_shown(self, url):
        with pytest.raises(BenchError, match="address of a served engine holds a") as caught:
            Client(url)
        assert "FSPAD_BENCH_API_KEY" in caught.value.hint
        assert "hidden" not in "".join(traceback.format_exception(caught.value))

    @pytest.mark.parametrize("host", ["a..b", "a" * 70, ".", "[::"])
    def test_that_no_connection_can_use(self, host):
        with pytest.raises(BenchError, match=r"is not (an|the) address"):
            Client(f"http://{host}:1")


class TestTheProxy:
    @pytest.mark.parametrize("name", ["ALL_PROXY", "HTTP_PROXY"])
    @pytest.mark.parametrize(
        "proxy", ["socks5://me:hidden@h:1", "ftp://me:hidden@h", "http://me:hidden@h:abc"]
    )
    def test_that_cannot_be_used_is_named(self, name, proxy, monkeypatch):
        monkeypatch.setenv(name, proxy)
        with pytest.raises(BenchError, match="proxy that the environment names") as caught:
            Client("http://host:1", token=SECRET)
        assert "NO_PROXY" in caught.value.hint
        assert "hidden" not in "".join(traceback.format_exception(caught.value))

    @pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://h:1", "ftp://h"])
    def test_is_not_asked_for_this_machine(self, proxy, monkeypatch):
        for name in ("ALL_PROXY", "HTTP_PROXY", "http_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        with scripted(GOOD) as server:
            port = server.server_address[1]
            for host in ("127.0.0.1", "localhost", "0.0.0.0"):
                assert OpenAIEngine(f"http://{host}:{port}").ask(ASK).tokens == (7, 8, 9)


DEEP = "[" * 100_000


class TestWhatNoServerShouldSay:
    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            (
                (200, "not gzip", {"Content-Encoding": "gzip", "Content-Type": "application/json"}),
                "cannot be decompressed",
            ),
            ((400, "not gzip", {"Content-Encoding": "gzip"}), "cannot be decompressed"),
            ([DEEP], "does not speak the OpenAI API"),
            ((400, DEEP), "answered 400"),
            ([piece([7], 3)], "finish reason"),
            ([piece([7], {"type": "stop"})], "finish reason"),
            ([piece("ab", "stop")], "token ids"),
            ([piece([7.5], "stop")], "token ids"),
            ([piece([True], "stop")], "token ids"),
            ([piece([-1], "stop")], "token ids"),
            ([piece([7], "stop", logprobs={"token_logprobs": [None]})], "log-probabilities"),
            ([piece([7], "stop", logprobs={"token_logprobs": "x"})], "log-probabilities"),
            ([piece([7], "stop", logprobs={"token_logprobs": [10**400]})], "log-probabilities"),
            (
                ['{"choices": [{"logprobs": {"token_logprobs": [NaN]}, "finish_reason": "stop"}]}'],
                "log-probabilities",
            ),
            (
                [piece([7], "stop", logprobs={"top_logprobs": [{"token_id:7": None}]})],
                "alternatives",
            ),
            (
                [
                    piece([7], "stop")
                    | {"metrics": {"speculative_decoding": {"num_draft_tokens": "3"}}}
                ],
                "draft counts",
            ),
        ],
    )
    def test_is_one_error(self, answer, said):
        with scripted(answer) as server, pytest.raises(BenchError, match=said) as caught:
            engine(server).ask(ASK)
        assert caught.value.exit_code == 2
        assert caught.value.hint

    @pytest.mark.parametrize("charset", ["base64", "idna", "undefined", "none"])
    def test_of_its_encoding_is_not_believed(self, charset):
        kind = {"Content-Type": f"application/json; charset={charset}"}
        with scripted((200, json.dumps(piece([7], "stop")), kind)) as server:
            assert engine(server).ask(ASK).tokens == (7,)

    def test_half_a_character_is_an_escape(self):
        with scripted(['{"choices": [{"text": "\\ud800", "finish_reason": "stop"}]}']) as server:
            assert engine(server).ask(ASK).text == r"\ud800"

    @pytest.mark.parametrize("page", ["/v1/models", "/version", "/metrics", "/openapi.json"])
    def test_is_one_error_or_nothing_on_a_page(self, page):
        with scripted(GOOD, pages={page: DEEP}) as server:
            if page == "/v1/models":
                with pytest.raises(BenchError, match="does not speak"):
                    engine(server)
            else:
                assert engine(server).facts()["version"] is None

    @pytest.mark.parametrize(
        "extra", [{"x": float("nan")}, {"x": float("inf")}, {"x": "\ud800"}, {"x": {1, 2}}]
    )
    def test_nor_a_request(self, extra):
        with scripted(GOOD) as server:
            with pytest.raises(BenchError, match="what JSON cannot say"):
                engine(server).ask(Ask((3, 4), 4, extra=extra))
            assert not server.bodies
