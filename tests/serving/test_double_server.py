"""The double's API as a stranger sees it, and its command line."""

import json

import httpx2
import pytest

from fspad_bench.serving.double.__main__ import KEY, main, parser, served
from fspad_bench.serving.double.generation import FAULTS
from fspad_bench.serving.double.server import Server, serving
from fspad_bench.serving.double.service import Direct, Double
from fspad_bench.serving.engine import Ask

BODY = {"prompt": [3, 4, 5], "max_tokens": 6, "temperature": 1.0, "seed": 2}


@pytest.fixture(scope="module")
def double():
    return Double()


@pytest.fixture(scope="module")
def client(double):
    with serving(double) as url, httpx2.Client(base_url=url) as client:
        yield client


def test_a_whole_completion(client, double):
    body = BODY | {"return_token_ids": True, "logprobs": 2}
    answer = client.post("/v1/completions", json=body).json()
    own = Direct(double).ask(Ask((3, 4, 5), 6, temperature=1.0, seed=2, logprobs=2))
    choice = answer["choices"][0]
    assert choice["token_ids"] == list(own.tokens)
    assert choice["logprobs"]["token_logprobs"] == list(own.chosen)
    assert choice["finish_reason"] == own.finish
    assert answer["usage"]["completion_tokens"] == len(own.tokens)
    counts = answer["metrics"]["speculative_decoding"]
    assert counts["num_draft_tokens"] == own.drafted
    assert counts["num_accepted_draft_tokens"] == own.accepted


def test_ids_and_log_probabilities_are_given_if_asked_for(client):
    choice = client.post("/v1/completions", json=BODY).json()["choices"][0]
    assert "token_ids" not in choice
    assert choice["logprobs"] is None


def test_a_prompt_may_be_text(client):
    told = client.post("/v1/completions", json=BODY | {"prompt": "3 4 5"}).json()
    assert told["choices"] == client.post("/v1/completions", json=BODY).json()["choices"]


def test_the_counters_grow(client, double):
    client.post("/v1/completions", json=BODY)
    page = client.get("/metrics").text
    assert f'draft_tokens_total{{model_name="double"}} {double.drafted}\n' in page


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (BODY | {"prompt": [99]}, "tokens below 24"),
        (BODY | {"prompt": ""}, "tokens below 24"),
        (BODY | {"temperature": -1}, "temperature -1.0 is out of range"),
        (BODY | {"top_k": "many"}, "many"),
        ([1], "list"),
    ],
)
def test_a_bad_request_is_refused(client, body, said):
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]


def test_what_is_not_there(client):
    assert client.get("/nothing").status_code == 404
    assert client.post("/v1/chat/completions", json={}).status_code == 404
    assert client.post("/v1/completions", content="{").status_code == 400


class TestCommandLine:
    def test_says_every_fault(self):
        text = parser().format_help()
        assert all(f"{name}: {what}" in text for name, what in FAULTS.items())
        assert KEY in text

    def test_flags_reach_the_settings(self):
        chosen = "--fault short-rollback --fault-depth 3 --depth 2 --rule match --salt 7".split()
        settings = served(parser().parse_args(chosen)).settings
        assert (settings.fault, settings.fault_depth, settings.depth) == ("short-rollback", 3, 2)
        assert (settings.rule, settings.salt) == ("match", 7)

    def test_our_own_target(self):
        own = served(parser().parse_args("--model tiny --decoder vanilla".split()))
        pieces = list(own.pieces({"prompt": [40, 41], "max_tokens": 3, "temperature": 0}))
        assert len(pieces[0].tokens) == 3
        assert (pieces[0].drafted, pieces[0].accepted) == (0, 0)

    def test_an_unknown_fault_is_an_error_with_a_hint(self, capsys):
        assert main(["--fault", "one-hot", "--port", "0"]) == 2
        assert "did you mean 'one-hot-residual'" in capsys.readouterr().err

    def test_a_port_in_use_is_an_error(self, capsys):
        taken = Server(Double())
        assert main(["--port", str(taken.server_address[1])]) == 2
        taken.server_close()
        assert "cannot listen" in capsys.readouterr().err


def test_events_end_with_done(client):
    body = BODY | {"stream": True, "stream_options": {"include_usage": True}}
    lines = client.post("/v1/completions", json=body).text.split("\n\n")
    events = [line.removeprefix("data: ") for line in lines if line]
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["usage"]["prompt_tokens"] == 3
    assert not json.loads(events[-2])["choices"]
