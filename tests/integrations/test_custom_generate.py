"""Our loop inside `model.generate`: greedy output is generate's own, sampled output vanilla's."""

import copy
import functools
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteriaList,
    StopStringCriteria,
    set_seed,
)
from transformers.generation import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

import fspad_bench
from fspad_bench.core.sampling import Sampler
from fspad_bench.integrations import custom_generate as own
from fspad_bench.models.load import load_target
from fspad_bench.models.tiny import tiny_model
from fspad_bench.util.errors import BenchError

PROMPT = torch.tensor([[*range(40, 48), *range(40, 48), 41, 42]])
custom = fspad_bench.custom_generate


@pytest.fixture(scope="module")
def model():
    """The tiny model as a user has it: no target, transformers' own attention."""
    model = tiny_model()
    model.set_attn_implementation("sdpa")
    model.name_or_path = "tiny"
    return model


@pytest.fixture(scope="module")
def plain(model):
    """Return what `model.generate` gives by itself, as a list."""

    def generated(**settings):
        return model.generate(PROMPT, **settings)[0].tolist()

    return generated


@pytest.fixture
def ours(model):
    def generated(decoder="fspad", /, **settings):
        settings = {"custom_generate": custom, "decoder": decoder} | settings
        return model.generate(PROMPT, **settings)[0].tolist()

    return generated


class Classes(LogitsProcessor):
    """A small grammar: three classes of tokens, none of which follows itself."""

    def __call__(self, input_ids, scores):
        scores = scores.clone()
        scores[:, int(input_ids[0, -1]) % 3 :: 3] = -torch.inf
        return scores


GREEDY = {
    "plain": {},
    "one token": {"max_new_tokens": 1},
    "max length": {"max_new_tokens": None, "max_length": 30},
    "repetition": {"repetition_penalty": 1.4},
    "n-grams": {"no_repeat_ngram_size": 2},
    "bad words": {"bad_words_ids": [[43], [40, 41], [59, 85]]},
    "sequence bias": {"sequence_bias": [[[59], 4.0], [[40, 41], -3.0]]},
    "suppressed": {"suppress_tokens": [21, 59], "begin_suppress_tokens": [42]},
    "eos": {"eos_token_id": [3, 59, 21]},
    "min new tokens": {"eos_token_id": [3, 59, 21], "min_new_tokens": 9},
    "min length": {"eos_token_id": list(range(0, 97, 2)), "min_length": 25},
    "forced": {"forced_eos_token_id": 5, "eos_token_id": 5},
    "decay": {"eos_token_id": 5, "exponential_decay_length_penalty": (4, 1.5)},
    "grammar": {"logits_processor": LogitsProcessorList([Classes()])},
    "allowed": {
        "prefix_allowed_tokens_fn": lambda batch, ids: [int(ids[-1]) // 2, 7, 9, 50 + batch]
    },
    "all": {
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 3,
        "bad_words_ids": [[43]],
        "min_new_tokens": 4,
        "eos_token_id": [3, 59],
        "logits_processor": LogitsProcessorList([Classes()]),
    },
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", GREEDY)
@pytest.mark.parametrize("decoder", ["fspad", "prompt_lookup"])
def test_greedy_output_is_generates(plain, ours, decoder, name):
    settings = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0} | GREEDY[name]
    assert ours(decoder, **settings) == plain(**settings)


def test_the_settings_matter(plain):
    usual = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
    texts = [tuple(plain(**usual | settings)) for settings in GREEDY.values()]
    assert len(set(texts)) >= 12


@pytest.mark.parametrize("strings", ["Y", ["zz", "U5"], [" "]])
def test_stop_strings_keep_the_token_in_which_they_end(tiny, plain, ours, strings):
    text = tiny.tokenizer.decode(plain(max_new_tokens=30)[PROMPT.shape[1] :])
    strings = [text[9:12]] if strings == "Y" else strings
    settings = {"max_new_tokens": 30, "stop_strings": strings}
    expected = plain(**settings, tokenizer=tiny.tokenizer)
    bound = functools.partial(custom, decoder="fspad", tokenizer=tiny.tokenizer)
    assert ours(**settings, custom_generate=bound) == expected
    criterion = StoppingCriteriaList([StopStringCriteria(tiny.tokenizer, strings)])
    assert ours(max_new_tokens=30, stopping_criteria=criterion) == expected


def test_stop_strings_end_a_text(tiny, plain):
    usual = plain(max_new_tokens=30)
    text = tiny.tokenizer.decode(usual[PROMPT.shape[1] :])
    cut = plain(max_new_tokens=30, stop_strings=[text[9:12]], tokenizer=tiny.tokenizer)
    assert len(cut) < len(usual)


SAMPLED = {
    "plain": {"top_k": 0},
    "default top-k": {},
    "cuts": {"temperature": 0.7, "top_k": 20, "top_p": 0.9},
    "min-p": {"temperature": 1.3, "top_k": 0, "min_p": 0.05},
    "typical": {"top_k": 0, "typical_p": 0.8},
    "penalties": {"temperature": 0.8, "repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
    "grammar": {"logits_processor": LogitsProcessorList([Classes()]), "top_p": 0.8},
    "normalised": {"temperature": 0.8, "renormalize_logits": True},
}


@pytest.mark.parametrize("name", SAMPLED)
def test_sampled_output_is_vanillas(ours, name):
    settings = {"max_new_tokens": 24, "do_sample": True, "seed": 5} | SAMPLED[name]
    texts = [ours(decoder, **settings) for decoder in ("vanilla", "fspad", "prompt_lookup")]
    assert texts[0] == texts[1] == texts[2]
    assert texts[0] != ours("vanilla", **settings | {"seed": 6})


def test_the_seed_comes_from_torch_unless_it_is_given(ours):
    texts = []
    for seed in (1, 1, 2):
        set_seed(seed)
        texts.append(ours(max_new_tokens=24, do_sample=True))
    assert texts[0] == texts[1] != texts[2]


def listed(*processors):
    return LogitsProcessorList(processors)


def test_temperature_and_cuts_are_the_samplers():
    config = GenerationConfig(do_sample=True)
    cuts = (TopKLogitsWarper(7), TopPLogitsWarper(0.9), MinPLogitsWarper(0.1))
    grammar = Classes()
    sampler = own.sampler_of(listed(grammar, TemperatureLogitsWarper(0.5), *cuts), config, 3)
    assert sampler == Sampler(0.5, 7, 0.9, 3, min_p=0.1, processors=(grammar,))
    assert own.sampler_of(listed(), config, 3) == Sampler(1.0, seed=3)


def test_what_precedes_a_strange_warper_is_processed_as_it_stands():
    config = GenerationConfig(do_sample=True)
    first = TemperatureLogitsWarper(0.5)
    typical = TypicalLogitsWarper(0.8)
    cut = TopPLogitsWarper(0.9)
    assert own.sampler_of(listed(first, cut, typical), config, 0) == Sampler(
        1.0, processors=(first, cut, typical)
    )
    assert own.sampler_of(listed(first, typical, cut), config, 0) == Sampler(
        1.0, top_p=0.9, processors=(first, typical)
    )
    assert own.sampler_of(listed(cut, first), config, 0) == Sampler(0.5, processors=(cut,))
    wide = TopPLogitsWarper(0.1, min_tokens_to_keep=5)
    assert own.sampler_of(listed(first, wide), config, 0) == Sampler(1.0, processors=(first, wide))


class Shown:
    def __init__(self):
        self.puts = []
        self.ended = False

    def put(self, value):
        assert not self.ended
        self.puts.append(value.flatten().tolist())

    def end(self):
        self.ended = True


@pytest.mark.parametrize("length", [1, 20])
def test_a_streamer_gets_what_transformers_gives_it(plain, ours, length):
    theirs = Shown()
    expected = plain(max_new_tokens=length, streamer=theirs)
    shown = Shown()
    bound = functools.partial(custom, decoder="fspad", streamer=shown)
    assert ours(max_new_tokens=length, custom_generate=bound) == expected
    assert (shown.puts, shown.ended) == (theirs.puts, True)


def test_tokens_are_streamed_step_by_step(ours, monkeypatch):
    shown = Shown()
    sizes = []
    real = own.StreamedLimit.reached

    def reached(self, context):
        sizes.append(len(shown.puts))
        return real(self, context)

    monkeypatch.setattr(own.StreamedLimit, "reached", reached)
    bound = functools.partial(custom, decoder="fspad", streamer=shown)
    ours(max_new_tokens=20, custom_generate=bound)
    assert len(set(sizes)) > 5


def test_a_dict_holds_the_generation(model, plain):
    output = model.generate(
        PROMPT,
        max_new_tokens=20,
        custom_generate=custom,
        decoder="fspad",
        return_dict_in_generate=True,
    )
    assert output.sequences[0].tolist() == plain(max_new_tokens=20)
    generation = output.generation
    assert sum(generation.committed) == 19
    assert generation.forwards == len(generation.committed) < 19
    assert list(output.keys()) == ["sequences"]


def test_the_model_is_left_as_it_was(model, plain, ours):
    before = plain(max_new_tokens=20)
    ours(max_new_tokens=20)
    assert model.config._attn_implementation == "sdpa"
    assert plain(max_new_tokens=20) == before
    batch = PROMPT.repeat(2, 1)
    mask = torch.ones_like(batch)
    mask[1, :4] = 0
    padded = model.generate(batch, attention_mask=mask, max_new_tokens=5, pad_token_id=0)
    assert padded[0].tolist() == before[: padded.shape[1]]


def test_target_and_decoders_are_made_once_and_anew_for_changed_weights(ours, plain):
    changing = tiny_model()
    changing.name_or_path = "tiny"
    first = own.host_of(changing, None)
    assert own.host_of(changing, None) is first
    assert first.decoder("eagle", {"depth": 3}) is first.decoder("eagle", {"depth": 3})
    assert first.decoder("eagle", {"depth": 2}) is not first.decoder("eagle", {"depth": 3})
    assert first.decoder("eagle", {"depth": 3}).options["depth"] == 3
    with torch.no_grad():
        changing.lm_head.weight.mul_(-1.0)
    second = own.host_of(changing, None)
    assert second is not first
    weight = changing.model.layers[1].mlp.up_proj.weight
    weight.data += 0.1  # as adapters are merged: no write that torch counts
    assert own.host_of(changing, None) is not second


def test_a_model_with_adapters_is_refused(ours):
    model = tiny_model()
    model.model.layers[0].self_attn.q_proj.add_module("lora_A", torch.nn.Linear(2, 2))
    with pytest.raises(BenchError, match="a model with adapters that are not merged"):
        model.generate(PROMPT, custom_generate=custom, decoder="prompt_lookup", max_new_tokens=2)


def test_a_target_of_ones_own(tiny, plain):
    settings = {"max_new_tokens": 20, "decoder": "eagle", "target": tiny}
    output = tiny.model.generate(PROMPT, custom_generate=custom, **settings)
    assert output[0].tolist() == plain(max_new_tokens=20)
    stopped = tiny.model.generate(PROMPT, custom_generate=custom, stop_strings=["U"], **settings)
    assert output[0].tolist()[: stopped.shape[1]] == stopped[0].tolist()
    with pytest.raises(BenchError, match="over other weights"):
        tiny_model().generate(PROMPT, custom_generate=custom, **settings)


def test_a_target_of_ones_own_is_let_go():
    target = load_target("tiny")
    target.model.generate(
        PROMPT, custom_generate=custom, decoder="prompt_lookup", target=target, max_new_tokens=2
    )
    gone = weakref.ref(target)
    del target
    gc.collect()
    assert gone() is None


def test_threads_take_turns(ours, plain):
    expected = plain(max_new_tokens=16)
    with ThreadPoolExecutor(4) as pool:
        texts = [pool.submit(ours, "prompt_lookup", max_new_tokens=16) for _ in range(8)]
        assert [text.result() for text in texts] == [expected] * 8


@pytest.mark.parametrize("place", ["lm_head", "model", "model.layers.1"])
def test_a_model_with_hooks_is_refused_whenever_they_came(place):
    model = tiny_model()
    model.name_or_path = "tiny"
    settings = {"custom_generate": custom, "decoder": "vanilla", "max_new_tokens": 3}
    model(PROMPT, output_hidden_states=True)  # for which transformers sets hooks of its own
    before = model.generate(PROMPT, **settings)
    handle = model.get_submodule(place).register_forward_hook(lambda module, given, output: output)
    with pytest.raises(BenchError, match="a model with forward hooks"):
        model.generate(PROMPT, **settings)
    handle.remove()
    assert torch.equal(model.generate(PROMPT, **settings), before)


def test_an_empty_stop_string_ends_a_text_as_for_transformers(tiny, ours, plain):
    bound = functools.partial(custom, decoder="vanilla", tokenizer=tiny.tokenizer)
    settings = {"max_new_tokens": 8, "stop_strings": ""}
    expected = plain(**settings, tokenizer=tiny.tokenizer)
    assert ours(**settings, custom_generate=bound) == expected
    assert len(expected) == PROMPT.shape[1] + 1


REFUSED = {
    "beam search": {"num_beams": 3},
    "num_return_sequences": {"num_return_sequences": 2, "do_sample": True},
    "output_scores": {"output_scores": True, "return_dict_in_generate": True},
    "output_logits": {"output_logits": True, "return_dict_in_generate": True},
    "output_attentions": {"output_attentions": True, "return_dict_in_generate": True},
    "contrastive search": {"penalty_alpha": 0.6, "top_k": 4},
    "assisted generation": {"prompt_lookup_num_tokens": 4},
    "guidance_scale": {"guidance_scale": 2.0},
    "a batch of prompts": {"inputs": PROMPT.repeat(2, 1)},
    "a padded prompt": {"attention_mask": torch.tensor([[0] * 2 + [1] * 16])},
    "needs decoder=NAME": {"decoder": ""},
    "unknown decoder 'fsapd'": {"decoder": "fsapd"},
    "stop_strings need a tokenizer": {"stop_strings": ["a"]},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_another_loop_is_refused_by_name(model, name):
    settings = {"inputs": PROMPT, "max_new_tokens": 4, "decoder": "prompt_lookup"} | REFUSED[name]
    with pytest.raises(BenchError, match=name):
        model.generate(custom_generate=custom, **settings)


def test_an_encoder_decoder_model_is_refused(model, monkeypatch):
    config = copy.copy(model.config)
    config.is_encoder_decoder = True
    monkeypatch.setattr(model, "config", config)
    with pytest.raises(BenchError, match="an encoder-decoder model"):
        own.check_supported(model, PROMPT, GenerationConfig(), {})


def test_a_grammar_with_state_is_refused(ours):
    class Stateful(LogitsProcessor):
        calls = 0

        def __call__(self, input_ids, scores):
            self.calls += 1
            return scores + torch.arange(scores.shape[1]) * self.calls

    with pytest.raises(BenchError, match="Stateful keeps state"):
        ours(max_new_tokens=5, logits_processor=LogitsProcessorList([Stateful()]))
