"""What each kind of server is sent, and how its answers are read."""

import json

import pytest
from serving.scripts import piece, scripted

from fspad_bench.serving.dialect import merged
from fspad_bench.serving.engine import Ask
from fspad_bench.serving.openai import OpenAIEngine
from fspad_bench.util.errors import BenchError

PROMPT = (3, 4, 5)
ASK = Ask(PROMPT, 8, temperature=0.7, top_p=0.9, top_k=5, min_p=0.1, seed=3, logprobs=2)
PLAIN = Ask(PROMPT, 8)


def asked(events, ask, dialect, **options):
    """Return the reply to an ask, and the body that was sent."""
    with scripted(events) as server:
        reply = OpenAIEngine(server.url, dialect=dialect, **options).ask(ask)
    return reply, server.bodies[0]


def vllm_events():
    def logprobs(*tokens):
        return {
            "tokens": [f"token_id:{token}" for token in tokens],
            "token_logprobs": [-token / 10 for token in tokens],
            "top_logprobs": [{f"token_id:{token}": -1.0, "token_id:1": -2.0} for token in tokens],
        }

    return [
        piece([7, 8], logprobs=logprobs(7, 8)),
        piece([9], "stop", logprobs=logprobs(9)),
        {"choices": [], "usage": {"completion_tokens": 3}},
    ]


class TestVllm:
    def test_sends_neutral_values_too(self):
        _, body = asked(vllm_events(), PLAIN, "vllm")
        assert body["prompt"] == [3, 4, 5]
        assert (body["temperature"], body["top_p"], body["top_k"], body["min_p"]) == (0, 1, 0, 0)
        assert body["repetition_penalty"] == 1
        assert "seed" not in body
        assert "logprobs" not in body

    def test_reads_ids_and_log_probabilities(self):
        reply, body = asked(vllm_events(), ASK, "vllm")
        assert (body["seed"], body["logprobs"], body["return_token_ids"]) == (3, 2, True)
        assert reply.tokens == (7, 8, 9)
        assert reply.finish == "stop"
        assert reply.chosen == (-0.7, -0.8, -0.9)
        assert reply.top[0] == {7: -1.0, 1: -2.0}

    def test_ids_may_come_with_the_log_probabilities_alone(self):
        events = vllm_events()
        for event in events[:2]:
            del event["choices"][0]["token_ids"]
        reply, _ = asked(events, ASK, "vllm")
        assert reply.tokens == (7, 8, 9)

    def test_text_alone(self):
        events = [{"choices": [{"text": " a b", "finish_reason": "length"}]}]
        reply, _ = asked(events, ASK, "vllm")
        assert (reply.text, reply.tokens, reply.tokens_known) == (" a b", (), False)
        assert reply.chosen is reply.top is None

    def test_an_answer_that_is_not_streamed(self):
        whole = (200, json.dumps(piece([7, 8], "length")), {"Content-Type": "application/json"})
        reply, _ = asked(whole, PLAIN, "vllm")
        assert reply.tokens == (7, 8)

    def test_log_probabilities_of_some_tokens_are_of_none(self):
        events = vllm_events()
        events[1]["choices"][0]["logprobs"] = None
        reply, _ = asked(events, ASK, "vllm")
        assert reply.tokens == (7, 8, 9)
        assert reply.chosen is reply.top is None


def test_tensorrt_gets_no_field_that_it_refuses():
    reply, body = asked([piece([7, 8], "stop")], ASK, "tensorrt_llm")
    assert reply.tokens == (7, 8)
    assert body["detokenize"] is False
    assert not {"return_token_ids", "return_tokens_as_token_ids"} & body.keys()


def sglang_event(tokens, made, finish=None, **about):
    rows = [[-token / 10, token, None] for token in tokens]
    best = [[[-0.1, token, None], [-0.2, 1, None]] for token in tokens]
    about |= {"completion_tokens": made, "finish_reason": finish and {"type": finish}}
    about |= {"output_token_logprobs": rows, "output_top_logprobs": best}
    return {"text": "".join(f" {t}" for t in tokens), "output_ids": tokens, "meta_info": about}


class TestSglang:
    @pytest.mark.parametrize("increments", [False, True])
    def test_reads_what_grows_and_what_is_added(self, increments):
        counts = {"spec_verify_ct": 2, "spec_draft_token_num": 6, "spec_accept_token_num": 1}
        last = [9] if increments else [7, 8, 9]
        events = [sglang_event([7, 8], 2), sglang_event(last, 3, "length", **counts)]
        reply, body = asked(events, ASK, "sglang")
        assert reply.tokens == (7, 8, 9)
        assert reply.text == " 7 8 9"
        assert reply.chosen == (-0.7, -0.8, -0.9)
        assert reply.top[2] == {9: -0.1, 1: -0.2}
        assert (reply.finish, reply.drafted, reply.accepted) == ("length", 6, 1)
        assert body["sampling_params"]["sampling_seed"] == 3
        assert body["top_logprobs_num"] == 2

    def test_no_cut_is_minus_one(self):
        _, body = asked([sglang_event([7], 1, "stop")], PLAIN, "sglang")
        assert body["sampling_params"]["top_k"] == -1
        assert "return_logprob" not in body

    def test_extra_reaches_inside(self):
        ask = Ask(PROMPT, 8, extra={"sampling_params": {"ignore_eos": True}, "rid": "x"})
        _, body = asked([sglang_event([7], 1, "stop")], ask, "sglang")
        assert body["sampling_params"]["ignore_eos"] is True
        assert body["sampling_params"]["max_new_tokens"] == 8
        assert body["rid"] == "x"


class TestLlamaCpp:
    def event(self, tokens, logprobs=True, **more):
        rows = [
            {"id": t, "logprob": -t / 10, "top_logprobs": [{"id": t, "logprob": -0.1}]}
            for t in tokens
        ]
        probabilities = {"completion_probabilities": rows} if logprobs else {}
        return {"content": "x", "tokens": tokens, "stop": False} | probabilities | more

    def end(self, kind="limit", **timings):
        return {"content": "", "tokens": [], "stop": True, "stop_type": kind, "timings": timings}

    def test_reads_ids_log_probabilities_and_counts(self):
        counts = {"predicted_n": 2, "draft_n": 5, "draft_n_accepted": 2}
        reply, body = asked([self.event([7, 8]), self.end(**counts)], ASK, "llamacpp")
        assert reply.tokens == (7, 8)
        assert reply.chosen == (-0.7, -0.8)
        assert reply.top == ({7: -0.1}, {8: -0.1})
        assert (reply.finish, reply.drafted, reply.accepted) == ("length", 5, 2)
        assert (body["n_predict"], body["n_probs"], body["seed"]) == (8, 2, 3)
        assert body["cache_prompt"] is False

    def test_answers_come_whole_and_the_server_tells_when_the_first_token_was_there(self):
        """Its stream has no ids of tokens that end within a character."""
        whole = self.event([7, 8], stop=True, stop_type="limit", timings={"prompt_ms": 0.25})
        reply, body = asked([whole], ASK, "llamacpp")
        assert body["stream"] is False
        assert reply.tokens == (7, 8)
        assert reply.first_token_s == 0.00025 < reply.seconds

    @pytest.mark.parametrize("told", [-1.0, float("nan"), "soon", True])
    def test_a_time_that_is_none_is_refused(self, told):
        whole = self.event([7], stop=True, timings={"prompt_ms": told})
        with pytest.raises(BenchError, match="its times are none"):
            asked([whole], ASK, "llamacpp")

    def test_speculated_tokens_have_no_log_probabilities(self):
        events = [self.event([7]), self.event([8], logprobs=False), self.end("eos")]
        reply, _ = asked(events, ASK, "llamacpp")
        assert reply.tokens == (7, 8)
        assert reply.chosen is None
        assert (reply.finish, reply.drafted) == ("stop", None)

    def test_a_placeholder_of_a_speculated_token_is_no_log_probability(self):
        rows = [
            {"id": 7, "logprob": -0.7, "top_logprobs": [{"id": 7, "logprob": -0.7}]},
            {"id": 8, "logprob": 0.0, "top_logprobs": []},
        ]
        whole = self.event([7, 8], stop=True) | {"completion_probabilities": rows}
        reply, _ = asked([whole], ASK, "llamacpp")
        assert (reply.tokens, reply.chosen, reply.top) == ((7, 8), None, None)

    def test_a_count_of_none_is_left_out_by_the_server(self):
        reply, _ = asked([self.event([7]), self.end("eos", predicted_n=1)], ASK, "llamacpp")
        assert (reply.drafted, reply.accepted) == (0, 0)

    def test_no_seed_is_a_random_one(self):
        _, body = asked([self.event([7]), self.end()], PLAIN, "llamacpp")
        assert body["seed"] == -1
        assert body["repeat_penalty"] == 1
        assert body["repeat_last_n"] == len(PROMPT) + 8  # all of the text; -1 is refused


class TestText:
    """Servers that read and write text."""

    def text_of(self, tokens):
        return " ".join(map(str, tokens))

    def test_transformers_is_told_everything_in_its_generation_config(self):
        events = [
            {"choices": [{"text": "ab"}]},
            {"choices": [{"text": "c", "finish_reason": "stop"}]},
        ]
        ask = Ask(
            PROMPT,
            8,
            temperature=0.7,
            top_k=5,
            seed=3,
            extra={"generation_config": {"prompt_lookup_num_tokens": 4}},
        )
        reply, body = asked(events, ask, "transformers", text_of=self.text_of)
        settings = json.loads(body["generation_config"])
        assert (reply.text, reply.tokens, reply.tokens_known) == ("abc", (), False)
        assert settings["prompt_lookup_num_tokens"] == 4
        assert (settings["max_new_tokens"], settings["do_sample"], settings["top_k"]) == (
            8,
            True,
            5,
        )
        allowed = {"model", "prompt", "generation_config", "stream", "seed"}
        assert body.keys() == allowed
        assert body["prompt"] == "3 4 5"

    @pytest.mark.parametrize(
        ("temperature", "cuts"),
        [(1.0, {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}), (0.0, {})],
    )
    def test_transformers_is_told_neutral_cuts_where_they_count(self, temperature, cuts):
        events = [{"choices": [{"text": "a", "finish_reason": "stop"}]}]
        ask = Ask(PROMPT, 8, temperature=temperature)
        _, body = asked(events, ask, "transformers", text_of=self.text_of)
        other = {"max_new_tokens": 8, "do_sample": temperature > 0, "repetition_penalty": 1.0}
        assert json.loads(body["generation_config"]) == other | cuts

    def test_chat(self):
        events = [
            {"choices": [{"delta": {"role": "assistant"}}]},
            {"choices": [{"delta": {"content": "a"}}]},
            {"choices": [{"delta": {"content": "b"}, "finish_reason": "length"}]},
        ]
        reply, body = asked(events, PLAIN, "chat", text_of=self.text_of)
        assert (reply.text, reply.finish) == ("ab", "length")
        assert body["messages"] == [{"role": "user", "content": "3 4 5"}]
        settings = {name: body[name] for name in body.keys() - {"model", "messages", "stream"}}
        assert settings == {
            "max_tokens": 8,
            "temperature": 0.0,
            "top_p": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
        }

    @pytest.mark.parametrize(
        ("dialect", "options", "said"),
        [
            ("transformers", {"presence": 0.5}, "does not support presence"),
            ("chat", {"top_k": 5}, "does not support top_k"),
        ],
    )
    def test_refuses_what_it_could_not_tell_the_server(self, dialect, options, said):
        with pytest.raises(BenchError, match=said):
            asked([], Ask(PROMPT, 8, **options), dialect, text_of=self.text_of)

    @pytest.mark.parametrize("dialect", ["transformers", "chat"])
    def test_needs_a_tokenizer(self, dialect):
        with pytest.raises(BenchError, match="reads text") as caught:
            asked([], PLAIN, dialect)
        assert "tokenizer" in caught.value.hint


def test_merged_keeps_what_is_not_named():
    body = {"a": {"b": 1, "c": 2}, "d": 3}
    assert merged(body, {"a": {"b": 5}, "d": {"e": 1}}) == {"a": {"b": 5, "c": 2}, "d": {"e": 1}}
    assert body["a"]["b"] == 1
