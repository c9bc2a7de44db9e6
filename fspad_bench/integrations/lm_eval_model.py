"""A decoder on a target as a model of lm-eval.

- Prompts, stop strings, truncation, chat templates and likelihoods are those of lm-eval's `hf`,
  whose class this one inherits. Only text is generated otherwise: by a decoder of ours.
- Greedy text is that of `hf` in the same precision. Sampled text has the same distribution, top-k
  and top-p included, and is the same for every decoder, not the text of `hf`: the noise is ours.
- What cannot be honoured is refused by its name, before anything is generated.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, postprocess_generated_text
from lm_eval.utils import hash_string
from tqdm import tqdm

from fspad_bench.benchmark.lm_eval_tasks import NEUTRAL, SAMPLING, generation_settings, quiet
from fspad_bench.benchmark.record import PENALTIES
from fspad_bench.core.protocols import Generation, Limit
from fspad_bench.core.sampling import Sampler, stream_of
from fspad_bench.decoders.build import build_decoder, check_options
from fspad_bench.decoders.options import read_options
from fspad_bench.engine.penalties import Penalties
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.models.load import load_target
from fspad_bench.models.stop_strings import StopStrings
from fspad_bench.util.errors import BenchError, near

logger = logging.getLogger("lm_eval.fspad_bench")

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")
INHERITED = (  # arguments of `hf` that concern prompts and likelihoods
    "add_bos_token",
    "chat_template_args",
    "enable_thinking",
    "logits_cache",
    "max_length",
    "prefix_token_id",
    "softmax_dtype",
    "think_end_token",
    "truncation",
)
TOP_K = 50  # of transformers, where neither a request nor the model says another
HONOURED = (*SAMPLING, "min_p", *PENALTIES)
IGNORED = {  # generation settings of a model that change no text of `hf`, or that are honoured here
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"),
    *("max_length", "max_new_tokens", "cache_implementation", "use_cache", "transformers_version"),
    *("return_dict_in_generate", "output_attentions", "output_hidden_states", *HONOURED),
}


@dataclass(frozen=True)
class Logged:
    """One generation: which request it answers, and what it took.

    `prompt_hash` is that of lm-eval's own log of samples.
    """

    task: str | None
    doc_id: int | None
    repeat: int
    prompt_hash: str
    decoder: str
    prompt_tokens: int
    tokens: int
    forwards: int
    prefill_seconds: float
    decode_seconds: float
    tokens_per_step: float | None


@dataclass(frozen=True)
class Request:
    """A request of lm-eval's, as the loop takes it; `until` cuts the text."""

    prompt: list[int]
    sampler: Sampler
    limit: Limit
    until: list[str]
    repeat: int


class DecoderLM(HFLM):
    """`--model fspad-bench --model_args pretrained=TARGET,decoder=NAME`.

    - `pretrained`: a preset, folder or hub id, or a target that is loaded already.
    - `decoder`: a name, name@preset or module:Class; its options are arguments such as
      `fspad.depth=3`.
    - `seed`: of sampled text; without it lm-eval's own, that of torch.
    - `log`: a file to write, a JSON line for each generation. All are in `generations` too.
    """

    def __init__(
        self,
        pretrained: str | TransformersTarget | None = None,
        decoder: str | None = None,
        *,
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        seed: int | None = None,
        log: str | None = None,
        **others: Any,
    ) -> None:
        if str(batch_size) != "1":
            raise BenchError(
                f"batch_size={batch_size}: a decoder answers one request at a time",
                "leave --batch_size out, or give 1",
            )
        if pretrained is None or decoder is None:
            raise BenchError(
                "the model fspad-bench needs a target and a decoder",
                "give --model_args pretrained=smollm2-135m,decoder=fspad",
            )
        options = _decoder_options(others)
        _check_arguments(others)
        check_options([decoder], options)
        self.target = _target(pretrained, device, dtype)
        limit = min(
            others.pop("max_length", None) or self.target.max_length, self.target.max_length
        )
        with quiet("lm_eval.models.huggingface"):
            super().__init__(
                pretrained=self.target.model,
                tokenizer=self.target.tokenizer,
                max_length=limit,
                batch_size=1,
                **others,
            )
        self.decoder = build_decoder(decoder, self.target, options)
        self.decoder.prepare()
        self.seed = seed
        self.log = _new_file(log)
        self.generations: list[Logged] = []
        _tell_other_settings(self.target)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answer requests in their order."""
        asked = list(self._read(requests))
        texts = []
        for instance, request in tqdm(
            zip(requests, asked, strict=True),
            total=len(asked),
            disable=disable_tqdm,
            desc=f"Generating with {self.decoder.label}",
        ):
            texts.append(self._answer(instance, request))
        logger.info("%s: %s", self.decoder.label, json.dumps(self.summary()))
        return texts

    def summary(self) -> dict[str, float | int | None]:
        """Return what all generations so far took together."""
        made = self.generations
        decoded = sum(one.tokens - 1 for one in made)
        seconds = sum(one.decode_seconds for one in made)
        return {
            "generations": len(made),
            "tokens": sum(one.tokens for one in made),
            "tokens_per_step": _ratio(decoded, sum(one.forwards for one in made)),
            "tokens_per_second": _ratio(decoded, seconds),
            "prefill_seconds": sum(one.prefill_seconds for one in made),
            "decode_seconds": seconds,
        }

    def get_model_info(self) -> dict[str, Any]:
        """Return what lm-eval writes into its results: the target, the decoder, what it took."""
        target = self.target
        return {
            "model_num_parameters": target.model.num_parameters(),
            "model_dtype": str(target.dtype),
            "model_sha": target.identity,
            "decoder": self.decoder.label,
            "decoder_options": self.decoder.options,
            "decoding": self.summary(),
        }

    def _read(self, requests: Sequence[Instance]) -> Iterator[Request]:
        """Yield requests as the loop takes them. Raises BenchError for what it cannot honour."""
        eos = self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        seed = torch.initial_seed() if self.seed is None else self.seed
        times: Counter[str] = Counter()
        for instance in requests:
            context, given = instance.args
            settings = generation_settings(given, self.max_gen_toks)
            until = list(filter(None, handle_stop_sequences(settings.pop("until"), eos=eos)))
            new_tokens = settings.pop("max_gen_toks")
            digest = hashlib.sha256(context.encode()).hexdigest()
            repeat = times[context]
            times[context] += 1
            stream = stream_of("lm-eval", digest, 0, repeat)
            yield Request(
                self._prompt(context, new_tokens),
                self._sampler(settings, seed, stream),
                Limit(new_tokens, self.target.stop_ids, StopStrings(self.tokenizer, until)),
                until,
                repeat,
            )

    def _prompt(self, context: str, new_tokens: int) -> list[int]:
        """Return the tokens of a prompt, without its beginning where it would not fit."""
        room = self.max_length - new_tokens
        if room < 1:
            raise BenchError(
                f"max_gen_toks={new_tokens} is out of range",
                f"1 <= max_gen_toks < {self.max_length}, the context of {self.target.name}",
            )
        ids, _ = self.tok_batch_encode(
            [context], left_truncate_len=room, truncation=bool(self.truncation)
        )
        return ids[0].tolist() or [self.prefix_token_id]

    def _sampler(self, settings: dict[str, Any], seed: int, stream: str) -> Sampler:
        """Return the sampler of a request's settings, what is missing as `hf` fills it in."""
        for name, value in settings.items():
            if name not in HONOURED and NEUTRAL.get(name, ...) != value:
                known = ", ".join(["until", "max_gen_toks", *HONOURED])
                raise BenchError(
                    f"fspad-bench does not know the generation setting {name}={value!r:.40}",
                    f"it honours {known}; use --gen_kwargs or another task",
                )
        chosen = {name: self._setting(settings, name, PENALTIES[name]) for name in PENALTIES}
        processors = Penalties(**chosen).processors
        if not settings["do_sample"]:
            return Sampler(stream=stream, processors=processors)
        temperature = float(settings.get("temperature", 0.0))
        if not temperature:
            raise BenchError("do_sample=True at temperature 0", "give temperature above 0")
        return Sampler(
            temperature,
            top_k=int(self._setting(settings, "top_k", TOP_K)),
            top_p=self._setting(settings, "top_p", 1.0),
            seed=seed,
            stream=stream,
            min_p=self._setting(settings, "min_p", 0.0),
            processors=processors,
        )

    def _setting(self, settings: dict[str, Any], name: str, usual: float) -> Any:
        """Return a request's setting, or else that of the target's files, or else the usual one."""
        own = getattr(self.target.model.generation_config, name, None)
        value = settings.get(name, own)
        if value is None:
            return usual
        try:
            return float(value)
        except (TypeError, ValueError) as error:
            raise BenchError(
                f"the generation setting {name}={value!r:.40} is no number", "give a number"
            ) from error

    def _answer(self, instance: Instance, request: Request) -> str:
        made = self.decoder.generate(self.target, request.sampler, request.prompt, request.limit)
        self._note(instance, request, made)
        context, given = instance.args
        text = self._text(made.tokens, request.until)
        self.cache_hook.add_partial("generate_until", (context, given), text)
        return text

    def _text(self, tokens: list[int], until: list[str]) -> str:
        """Return the text of an answer, behind the end of thinking and before a stop string."""
        end = self.think_end_token
        if not isinstance(end, int):
            return str(postprocess_generated_text(self.tok_decode(tokens), until, end))
        begun = len(tokens) - tokens[::-1].index(end) if end in tokens else 0
        text = self.tok_decode(tokens[begun:]).lstrip()
        return str(postprocess_generated_text(text, until, None))

    def _note(self, instance: Instance, request: Request, made: Generation) -> None:
        one = Logged(
            task=instance.task_name,
            doc_id=instance.doc_id,
            repeat=request.repeat,
            prompt_hash=hash_string(instance.args[0]),
            decoder=self.decoder.label,
            prompt_tokens=len(request.prompt),
            tokens=len(made.tokens),
            forwards=made.forwards,
            prefill_seconds=made.prefill_seconds,
            decode_seconds=made.decode_seconds,
            tokens_per_step=_ratio(len(made.tokens) - 1, made.forwards),
        )
        self.generations.append(one)
        if self.log:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(one)) + "\n")


def _decoder_options(given: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Take the decoder's options out of the arguments: those with a dot, as `-D` has them."""
    names = [name for name in given if "." in name]
    return read_options([f"{name}={given.pop(name)}" for name in names])


def _check_arguments(given: dict[str, Any]) -> None:
    """Raise BenchError for an argument that neither this model knows nor it takes from `hf`."""
    own = ("pretrained", "decoder", "device", "dtype", "batch_size", "seed", "log")
    for name in given:
        if name not in INHERITED:
            raise BenchError(
                f"the model fspad-bench has no argument '{name}'", near(name, [*own, *INHERITED])
            )


def _target(
    pretrained: str | TransformersTarget, device: str | None, dtype: str
) -> TransformersTarget:
    if isinstance(pretrained, TransformersTarget):
        return pretrained
    if dtype not in DTYPES:
        raise BenchError(f"unknown dtype '{dtype}'", near(dtype, DTYPES))
    if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("no CUDA device here: %s is not used", device)  # lm-eval's default is cuda:0
        device = "cpu"
    return load_target(
        pretrained, device=device or "auto", dtype=None if dtype == "auto" else dtype
    )


def _tell_other_settings(target: TransformersTarget) -> None:
    """Warn of settings by which the target's files change the text of `hf`, but not ours."""
    given = target.model.generation_config.to_diff_dict()
    others = {
        name: value
        for name, value in given.items()
        if name not in IGNORED and not name.startswith("_") and NEUTRAL.get(name, ...) != value
    }
    if others:
        logger.warning(
            "%s has generation settings that `hf` applies and fspad-bench does not: %s",
            target.name,
            others,
        )


def _new_file(path: str | None) -> Path | None:
    """Create the file of a log. Raises BenchError where it cannot be written."""
    if path is None:
        return None
    try:
        Path(path).write_text("", encoding="utf-8")
    except OSError as error:
        raise BenchError(
            f"cannot write {path}: {error.strerror}", "give another log=FILE"
        ) from error
    return Path(path)


def _ratio(value: float, of: float) -> float | None:
    return value / of if of else None
