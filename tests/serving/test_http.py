"""A server's failures are one error each, some after more tries; the token is shown nowhere."""

import json

import pytest
from serving.scripts import RESET, piece, scripted

from fspad_bench.errors import BenchError
from fspad_bench.serving.double.server import serving
from fspad_bench.serving.double.service import Double, Settings
from fspad_bench.serving.engine import Ask
from fspad_bench.serving.http import Client, token_from_env
from fspad_bench.serving.openai import OpenAIEngine

SECRET = "sk-very-secret"
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


@pytest.mark.parametrize("tail", ["", "/", "/v1", "/v1/"])
def test_an_address_may_name_the_api(tail):
    assert Client(f"http://host:1{tail}").url == "http://host:1"


@pytest.mark.parametrize("page", ["[]", "{}", "no json", '{"data": 3}'])
def test_a_server_of_something_else(page):
    with scripted(GOOD, pages={"/v1/models": page}) as server, pytest.raises(BenchError):
        engine(server)


class TestTheToken:
    """It is sent, and stands nowhere else."""

    def test_comes_from_the_environment(self, monkeypatch):
        monkeypatch.delenv("FSPAD_BENCH_API_KEY", raising=False)
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        assert token_from_env() is None
        monkeypatch.setenv("OPENAI_API_KEY", "second")
        assert token_from_env() == "second"
        monkeypatch.setenv("FSPAD_BENCH_API_KEY", "first")
        assert token_from_env() == "first"

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

    def test_nor_is_a_password_in_the_address(self):
        client = Client("http://me:hidden@host:1/v1")
        assert client.shown == "http://host:1"
