"""The preset `tiny`: fixed weights, varied text, a lossless tokenizer."""

from __future__ import annotations

import hashlib
import string

import pytest
import torch

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.models.tiny import CONFIG, END, tiny_model, tiny_tokenizer

PRINTABLE = "".join(chr(code) for code in range(32, 127)) + "\n"


def weights_hash(model) -> str:
    total = hashlib.sha256()
    for name, weight in model.state_dict().items():
        total.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        total.update(weight.numpy().tobytes())
    return total.hexdigest()


def test_weights_never_change():
    """Heads are shipped for these weights; others would need another identity and other heads."""
    golden = "0d06318a4746163a2d7166b9dc531af750054fa380f1f33953b83e6022e2e4e2"
    assert weights_hash(tiny_model()) == golden


def test_weights_leave_the_random_stream_alone():
    torch.manual_seed(5)
    tiny_model()
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.rand(3).equal(after)


def test_models_share_nothing(tiny):
    """Changing one model's attention must not change the others through a shared configuration."""
    one = tiny_model()
    one.set_attn_implementation("eager")
    assert tiny.model.config._attn_implementation == "fspad_tree"
    assert tiny_model().config._attn_implementation != "eager"
    assert CONFIG.vocab_size == one.config.vocab_size == 97


def test_is_small_and_in_float64():
    model = tiny_model()
    assert {weight.dtype for weight in model.parameters()} == {torch.float64}
    assert sum(weight.numel() for weight in model.parameters()) < 100_000
    assert not model.training


def test_rotary_tables_are_real(tiny):
    """`to_empty` leaves buffers that no checkpoint fills undefined."""
    half = torch.arange(8) / 8
    torch.testing.assert_close(tiny.model.model.rotary_emb.inv_freq.float(), 10000.0**-half)


@torch.inference_mode()
def test_logits_are_spread_so_that_greedy_and_sampled_choices_differ(tiny):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(97, (1, 400), generator=generator)
    p = tiny.model(ids).logits[0].softmax(-1)
    top = p.max(-1).values
    assert 0.2 < top.mean() < 0.8
    assert top.max() < 0.9999
    assert len(p.argmax(-1).unique()) > 40


def test_greedy_and_sampled_text_vary(tiny):
    for sampler in (Sampler(), Sampler(1.0)):
        texts = [
            generate(
                tiny, Vanilla(tiny), sampler, tiny.tokenizer(prompt)["input_ids"], Limit(60)
            ).tokens
            for prompt in ("hello", "world", "u:Why?<|end|>a:")
        ]
        assert len({tuple(text) for text in texts}) == 3
        assert min(len(set(text)) for text in texts) > 12


class TestTokenizer:
    @pytest.fixture(scope="class")
    def tokenizer(self):
        return tiny_tokenizer()

    def test_a_character_is_a_token(self, tokenizer):
        assert tokenizer(PRINTABLE)["input_ids"] == list(range(96))
        assert len(tokenizer) == CONFIG.vocab_size

    @pytest.mark.parametrize(
        "text",
        [
            PRINTABLE,
            "",
            " ",
            "  two  blanks ",
            "don't , stop . ! ? n't",
            "a\n\nb\n",
            string.punctuation,
        ],
    )
    def test_text_survives(self, tokenizer, text):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text

    def test_what_is_not_known_reads_as_a_question_mark(self, tokenizer):
        assert tokenizer.decode(tokenizer("é\t猫x")["input_ids"]) == "???x"

    def test_the_end_is_one_token(self, tokenizer, tiny):
        assert tokenizer(f"a{END}b")["input_ids"] == [65, 96, 66]
        assert tokenizer.decode([65, 96, 66], skip_special_tokens=True) == "ab"
        assert tiny.stop_ids == {tokenizer.eos_token_id} == {96}

    def test_the_template(self, tokenizer):
        messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert text == f"u:Hi{END}a:Ho{END}a:"
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)[
            "input_ids"
        ]
        assert ids == tokenizer(text)["input_ids"]
