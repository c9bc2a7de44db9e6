"""Decoders as models of lm-eval: the same answers, scores and likelihoods as its own `hf`."""

from __future__ import annotations

import importlib.util
import json

import pytest
from harness import LENGTH, answered

from fspad_bench.core.sampling import Sampler
from fspad_bench.engine.penalties import Penalties
from fspad_bench.models.load import load_target
from fspad_bench.models.tiny import tiny_model, tiny_tokenizer
from fspad_bench.util.errors import BenchError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval is an extra"
)


@pytest.fixture(scope="module")
def target():
    return load_target("tiny", dtype="float32")


@pytest.fixture(scope="module")
def fspad(harness, target, tmp_path_factory):
    log = tmp_path_factory.mktemp("log") / "generations.jsonl"
    return harness.Model(target, "fspad", log=str(log), **{"fspad.depth": 3})


@pytest.fixture(scope="module")
def vanilla(harness, target):
    return harness.Model(target, "vanilla")


class TestDecodersAsModels:
    def test_ours_joins_the_names_of_lm_eval(self, harness):
        assert harness.get_model("hf") is harness.HFLM
        assert harness.Model.__name__ == "DecoderLM"

    def test_gsm8k_is_answered_as_hf_does_and_scores_the_same(self, harness, fspad, hf, gsm8k):
        results, samples = answered(harness, fspad, gsm8k)
        expected, theirs = answered(harness, hf, gsm8k)
        assert samples == theirs
        assert results == expected
        assert results["exact_match,flexible-extract"] == 0.5
        (first, *_) = fspad.generations
        assert first.task == "gsm8k_mine"
        assert first.tokens_per_step > 1
        logged = [json.loads(line) for line in fspad.log.read_text().splitlines()]
        assert [line["doc_id"] for line in logged[:4]] == [0, 1, 2, 3]
        assert logged[0]["tokens"] == LENGTH
        assert fspad.get_model_info()["decoding"]["generations"] == len(fspad.generations)
        assert fspad.get_model_info()["decoder_options"]["depth"] == 3

    def test_sampled_text_is_the_same_for_every_decoder(self, harness, fspad, vanilla, gsm8k):
        sampled = {"do_sample": True, "temperature": 0.9, "top_p": 0.9}
        first = answered(harness, fspad, gsm8k, **sampled)
        assert first == answered(harness, vanilla, gsm8k, **sampled)
        assert first[1] != answered(harness, vanilla, gsm8k)[1]
        other = harness.Model(vanilla.target, "vanilla", seed=5)
        assert first[1] != answered(harness, other, gsm8k, **sampled)[1]

    def test_equal_requests_are_sampled_apart(self, harness, vanilla):
        sampled = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 12}
        one, two = vanilla.generate_until([harness.request("Hm.", sampled)] * 2)
        assert one != two
        assert [line.repeat for line in vanilla.generations[-2:]] == [0, 1]

    def test_sampling_cuts_as_hf_does_unless_told_otherwise(self, vanilla):
        def sampler(**settings):
            return vanilla._sampler({"do_sample": True, "temperature": 0.5, **settings}, 3, "s")

        assert sampler() == Sampler(0.5, 50, 1.0, 3, "s")
        assert sampler(top_k=0, top_p=0.8) == Sampler(0.5, 0, 0.8, 3, "s")
        assert sampler(do_sample=False) == Sampler(stream="s")

    @pytest.mark.parametrize("start", [0, 1, 9])
    @pytest.mark.parametrize("length", [1, 4])
    def test_a_stop_string_ends_the_text_to_the_character(self, harness, fspad, hf, start, length):
        given = {"until": [], "max_gen_toks": 40}
        (whole,) = fspad.generate_until([harness.request("Count: ", given)], disable_tqdm=True)
        string = whole[start : start + length]  # tokens are characters
        given = {"until": ["never", string], "max_gen_toks": 40}
        asked = [harness.request("Count: ", given)]
        (text,) = fspad.generate_until(asked, disable_tqdm=True)
        assert text == whole[: whole.index(string)] == hf.generate_until(asked, True)[0]
        assert fspad.generations[-1].tokens == len(text) + length

    @pytest.mark.parametrize("place", [3, None])
    def test_thinking_may_end_with_a_token_as_for_hf(self, harness, target, place):
        (whole,) = harness.Model(target, "vanilla").generate_until(
            [harness.request("Count: ", {"max_gen_toks": 12})], disable_tqdm=True
        )
        token = 95 if place is None else target.tokenizer(whole[place])["input_ids"][-1]
        given = {"think_end_token": str(token)}
        hf = harness.HFLM(
            pretrained=tiny_model().float(), tokenizer=tiny_tokenizer(), batch_size=1, **given
        )
        asked = [harness.request("Count: ", {"max_gen_toks": 12})]
        model = harness.Model(target, "fspad", **given)
        texts = model.generate_until(asked, disable_tqdm=True)
        assert texts == hf.generate_until(asked, True)
        assert (len(texts[0]) < len(whole)) == (place is not None)

    def test_likelihoods_are_those_of_hf(self, harness, fspad, hf):
        (next_words,) = hf.generate_until([harness.request("One, two:", {"max_gen_toks": 5})])
        pairs = [("One, two:", next_words), ("One, two:", "three"), ("", "alone"), ("a ", "b c")]
        asked = [harness.request(*pair, kind="loglikelihood") for pair in pairs]
        ours = fspad.loglikelihood(asked, disable_tqdm=True)
        theirs = hf.loglikelihood(asked, disable_tqdm=True)
        assert [is_greedy for _, is_greedy in ours] == [True, False, False, False]
        assert [is_greedy for _, is_greedy in theirs] == [True, False, False, False]
        assert [value for value, _ in ours] == pytest.approx([v for v, _ in theirs], abs=1e-4)
        rolled = [harness.request("A text, rolled.", kind="loglikelihood_rolling")]
        assert fspad.loglikelihood_rolling(rolled, True) == pytest.approx(
            hf.loglikelihood_rolling(rolled, True), abs=1e-4
        )

    def test_chat_templates_are_the_targets(self, fspad, hf):
        chat = [{"role": "user", "content": "hi"}]
        assert fspad.apply_chat_template(chat) == hf.apply_chat_template(chat)
        assert fspad.chat_template(True) == hf.chat_template(True)

    def test_a_prompt_too_long_loses_its_beginning_as_for_hf(self, harness, target):
        model = harness.Model(target, "vanilla", max_length=30)
        asked = [harness.request("x" * 90 + "yz", {"max_gen_toks": 10})]
        short = [harness.request("x" * 18 + "yz", {"max_gen_toks": 10})]
        assert model.generate_until(asked, True) == model.generate_until(short, True)
        assert model.generations[0].prompt_tokens == 20

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({}, "needs a target and a decoder"),
            ({"pretrained": "tiny"}, "needs a target and a decoder"),
            ({"batch_size": 4}, "batch_size=4: a decoder answers one request at a time"),
            ({"batch_size": "auto"}, "batch_size=auto: a decoder answers one"),
            ({"peft": "x"}, "no argument 'peft'"),
            ({"trust_remote_code": True}, "no argument 'trust_remote_code'"),
            ({"dtype": "int8"}, "unknown dtype 'int8'"),
            ({"decoder": "fsapd"}, "unknown decoder 'fsapd'"),
            ({"fspad.deep": 3}, "no option 'deep'"),
            ({"fpsad.depth": 9}, "no decoder 'fpsad'"),
            ({"pretrained": "tinny", "decoder": "fspad", "fpsad.depth": 9}, "no decoder 'fpsad'"),
            ({"decoder": 5}, "5 is no name of a decoder"),
            ({"log": "/nowhere/at/all"}, "cannot write /nowhere/at/all"),
        ],
    )
    def test_arguments_that_it_cannot_honour_are_refused(self, harness, target, given, message):
        whole = {"pretrained": target, "decoder": "fspad"} if given and len(given) == 1 else {}
        if "pretrained" in given:
            whole = {}
        if "dtype" in given:
            given = {**given, "pretrained": "tiny"}
        with pytest.raises(BenchError, match=message):
            harness.Model(**{**whole, **given})

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"num_beams": 4}, "does not know the generation setting num_beams=4"),
            ({"typical_p": 0.9}, "does not know the generation setting typical_p=0.9"),
            ({"repetition_penalty": 0}, "repetition-penalty 0.0 is out of range"),
            ({"repetition_penalty": "much"}, "repetition_penalty='much' is no number"),
            ({"no_repeat_ngram_size": 1.5}, "no-repeat-ngram-size 1.5 is out of range"),
            ({"do_sample": True, "temperature": 1, "min_p": 2}, "min-p 2.0 is out of range"),
            ({"do_sample": True, "temperature": 1, "top_k": [5]}, r"top_k=\[5\] is no number"),
            ({"do_sample": True}, "do_sample=True at temperature 0"),
            ({"max_gen_toks": 0}, "max_gen_toks=0 is out of range"),
            ({"max_gen_toks": "many"}, "cannot be read.*'many'"),
            ({"until": 5}, "the stop string 5 is no text"),
            ({"max_gen_toks": 8192}, "max_gen_toks=8192 is out of range"),
        ],
    )
    def test_settings_that_it_cannot_honour_are_refused_first(
        self, harness, vanilla, given, message
    ):
        before = len(vanilla.generations)
        with pytest.raises(BenchError, match=message):
            vanilla.generate_until([harness.request("a", {}), harness.request("b", given)])
        assert len(vanilla.generations) == before

    def test_neutral_settings_are_no_matter(self, harness, vanilla):
        given = {"max_gen_toks": 3, "num_beams": 1, "repetition_penalty": 1.0}
        asked = [harness.request("a", given), harness.request("a", {"max_gen_toks": 3})]
        one, two = vanilla.generate_until(asked, disable_tqdm=True)
        assert one == two

    @pytest.mark.parametrize(
        "given",
        [
            {"repetition_penalty": 1.5},
            {"no_repeat_ngram_size": 2},
            {"repetition_penalty": 1.5, "no_repeat_ngram_size": 1},
        ],
    )
    def test_penalties_are_those_of_hf(self, harness, fspad, hf, monkeypatch, given):
        plain = {"max_gen_toks": 30}
        asked = [harness.request("Count: ", plain | given)]
        (text,) = fspad.generate_until(asked, disable_tqdm=True)
        assert [text] == hf.generate_until(asked, True)
        unasked = [harness.request("Count: ", plain)]
        assert fspad.generate_until(unasked, True) != [text]
        for name, value in given.items():
            for model in (fspad.target.model, hf.model):
                monkeypatch.setattr(model.generation_config, name, value)
        assert fspad.generate_until(unasked, True) == hf.generate_until(unasked, True) == [text]

    def test_penalties_of_the_output_are_taken_from_requests(self, vanilla):
        given = {"presence_penalty": 0.5, "frequency_penalty": 0.1}
        sampler = vanilla._sampler({"do_sample": False, **given}, 3, "s")
        assert sampler == Sampler(stream="s", processors=Penalties(**given).processors)

    def test_min_p_is_a_requests_or_the_targets(self, target, vanilla, monkeypatch):
        sampled = {"do_sample": True, "temperature": 0.5}
        monkeypatch.setattr(target.model.generation_config, "min_p", 0.2)
        assert vanilla._sampler(sampled, 3, "s") == Sampler(0.5, 50, 1.0, 3, "s", 0.2)
        assert vanilla._sampler(sampled | {"min_p": 0}, 3, "s") == Sampler(0.5, 50, 1.0, 3, "s")

    def test_settings_of_the_target_that_only_hf_applies_are_named(
        self, harness, target, monkeypatch
    ):
        from fspad_bench.integrations import lm_eval_model

        told = []
        monkeypatch.setattr(
            lm_eval_model.logger, "warning", lambda text, *words: told.append(text % words)
        )
        monkeypatch.setattr(target.model.generation_config, "repetition_penalty", 1.3)
        monkeypatch.setattr(target.model.generation_config, "suppress_tokens", [5])
        harness.Model(target, "vanilla")
        (text,) = told
        assert text.endswith(" does not: {'suppress_tokens': [5]}")
