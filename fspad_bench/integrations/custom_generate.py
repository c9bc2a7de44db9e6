"""Any decoder inside `model.generate`, by transformers' own door for decoding loops.

    model.generate(**inputs, custom_generate=fspad_bench.custom_generate, decoder="prompt_lookup")

- transformers prepares inputs, logits processors and stopping criteria as for its own loop; ours
  runs under all of them. Greedy output is `model.generate`'s; sampled output draws on noise of our
  own, and is vanilla's (`decoder="vanilla"`) of the same seed, token for token.
- What would need another loop is refused by name: beams, batches, scores.
- transformers hands no callable its `tokenizer`, `streamer` or `assistant_model`. Bind the first
  two with `functools.partial`.
- The model stays as it is. Its target, a copy of the modules over the same weights, is made at the
  first call and kept as long as the weights stay where and what they are; so are its decoders.

`transformers_generate` is the other way round: transformers' own loop as a decoder to compare with.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock, RLock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteriaList
from transformers.generation import (
    EosTokenCriteria,
    GenerateDecoderOnlyOutput,
    LogitNormalization,
    LogitsProcessorList,
    MaxLengthCriteria,
    MinPLogitsWarper,
    StopStringCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from fspad_bench.core.protocols import Context, Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.build import Decoder, build_decoder
from fspad_bench.decoders.label import Label
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.models.presets import resolve
from fspad_bench.util.errors import BenchError

# what `model.generate` always passes, and what changes no output here
PASSED = ("use_cache", "logits_to_keep", "attention_mask", "position_ids", "cache_position")
CACHES = ("cache", "past_key_values")  # the name since 5.18, and before
WARPERS = (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    MinPLogitsWarper,
    LogitNormalization,
)  # what a sampler does by itself, in this order
UNANSWERED = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
MODES = ("greedy_search", "sample")


def custom_generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    *,
    decoder: str = "",
    decoder_options: Mapping[str, Any] | None = None,
    seed: int | None = None,
    target: TransformersTarget | None = None,
    stop_strings: str | Sequence[str] | None = None,
    tokenizer: Any = None,
    streamer: Any = None,
    **model_kwargs: Any,
) -> GenerateDecoderOnlyOutput | Tensor:
    """Decode as `model.generate` calls it.

    - `decoder`: a name of the registry or `module:Class`; `decoder_options` as `-D` sets them.
    - `seed` of the noise; drawn from torch's generator where it is not given, so that
      `transformers.set_seed` decides.
    - `target`: one of `load_target` whose model this is, with its tokenizer and its heads.
    - `stop_strings` need a `tokenizer`, here or of the target.

    Where a dict is returned, its attribute `generation` holds tokens, steps and seconds. Raises
    BenchError for what cannot be honoured.
    """
    check_supported(model, input_ids, generation_config, model_kwargs)
    if not decoder:
        raise BenchError(
            "custom_generate needs decoder=NAME", "`fspad-bench ls decoders` lists the names"
        )
    host = host_of(model, target)
    prompt = input_ids[0].tolist()
    sampler = sampler_of(logits_processor, generation_config, seed)
    criteria = StoppingCriteriaList(stopping_criteria)
    if stop_strings is not None:
        tokenizer = tokenizer or host.target.tokenizer
        criteria.append(StopStringCriteria(_tokenizer(tokenizer), stop_strings))
    limit = limit_of(criteria, prompt, input_ids.device, streamer)
    if streamer is not None:
        streamer.put(input_ids.cpu())
    with host.lock:
        chosen = host.decoder(decoder, decoder_options or {})
        generation = chosen.generate(host.target, sampler, prompt, limit)
    if streamer is not None:
        limit.reached(Context([*prompt, *generation.tokens], len(prompt)))
        streamer.end()
    sequences = torch.cat([input_ids, input_ids.new_tensor([generation.tokens])], dim=-1)
    if not generation_config.return_dict_in_generate:
        return sequences
    output = GenerateDecoderOnlyOutput(sequences=sequences)
    output.generation = generation
    return output


def check_supported(
    model: PreTrainedModel,
    input_ids: Tensor,
    config: GenerationConfig,
    model_kwargs: Mapping[str, Any],
) -> None:
    """Raise BenchError naming what our loop does not do."""
    refused = [name for name in UNANSWERED if getattr(config, name, None)]
    if has_hooks(model):
        refused.append("a model with forward hooks")
    if any("lora_" in name for name, _ in model.named_modules()):
        refused.append("a model with adapters that are not merged")
    if model.config.is_encoder_decoder:
        refused.append("an encoder-decoder model")
    if (config.num_return_sequences or 1) > 1:
        refused.append("num_return_sequences > 1")
    elif len(input_ids) > 1 and (config.num_beams or 1) == 1:
        refused.append("a batch of prompts")
    mode = config.get_generation_mode().value
    if mode not in MODES:
        refused.append(mode.replace("_", " "))
    if (config.guidance_scale or 1) != 1:
        refused.append("guidance_scale")
    mask = model_kwargs.get("attention_mask")
    if mask is not None and not bool((mask == 1).all()):
        refused.append("a padded prompt")
    positions = model_kwargs.get("position_ids")
    if positions is not None and positions[0].tolist() != list(range(input_ids.shape[1])):
        refused.append("position_ids of your own")
    for name, value in model_kwargs.items():
        if name in CACHES and value is not None and int(value.get_seq_length()):
            refused.append(f"a {name} that holds entries")
        elif name not in (*PASSED, *CACHES, *UNANSWERED) and value is not None:
            refused.append(name)
    if refused:
        raise BenchError(
            f"custom_generate does not take {', '.join(refused)}",
            "leave it out, or leave custom_generate out",
        )


def has_hooks(model: PreTrainedModel) -> bool:
    """Whether a module has forward hooks of the user's, which fused layers would not run.

    transformers' own collect attentions and hidden states, which are refused anyway; ours guard a
    target that several processes hold.
    """
    return any(
        not str(getattr(hook, "__module__", "")).startswith(("transformers.", "fspad_bench."))
        for module in model.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks)
        for hook in hooks.values()
    )


def sampler_of(
    processors: LogitsProcessorList, config: GenerationConfig, seed: int | None
) -> Sampler:
    """Return the sampler of what transformers prepared.

    Temperature and cuts that end the list are the sampler's own; all that precedes them is
    processed as transformers would.
    """
    if not config.do_sample:
        return Sampler(processors=tuple(processors))
    if seed is None:
        seed = int(torch.randint(2**31, ()))
    count = _own_warpers(processors)
    own = {type(warper): warper for warper in processors[len(processors) - count :]}
    first = own.get(TemperatureLogitsWarper)
    second = own.get(TopKLogitsWarper)
    third = own.get(TopPLogitsWarper)
    fourth = own.get(MinPLogitsWarper)
    return Sampler(
        temperature=first.temperature if first else 1.0,
        top_k=second.top_k if second else 0,
        top_p=third.top_p if third else 1.0,
        min_p=fourth.min_p if fourth else 0.0,
        seed=seed,
        processors=tuple(processors[: len(processors) - count]),
    )


def _own_warpers(processors: LogitsProcessorList) -> int:
    """Count the processors at the end of the list that a sampler is, in its own order."""
    last = len(WARPERS)
    for count, processor in enumerate(reversed(processors)):
        kind = type(processor)
        if kind not in WARPERS[:last] or not _is_usual(processor):
            return count
        last = WARPERS.index(kind)
    return len(processors)


def _is_usual(warper: Any) -> bool:
    """Whether a cut is as `generate` makes it: no least number of tokens, and -inf beyond it."""
    least = getattr(warper, "min_tokens_to_keep", 1)
    return bool(least == 1 and getattr(warper, "filter_value", -torch.inf) == -torch.inf)


@dataclass(frozen=True)
class StreamedLimit(Limit):
    """A limit that hands a streamer the tokens of each step, as transformers does."""

    streamer: Any = None
    shown: list[int] = field(default_factory=list)

    def reached(self, context: Context) -> bool:
        if self.streamer is not None:
            for token in context.new_tokens[len(self.shown) :]:
                self.shown.append(token)
                self.streamer.put(torch.tensor([token]))
        return super().reached(context)


def limit_of(
    criteria: StoppingCriteriaList, prompt: list[int], device: torch.device, streamer: Any
) -> StreamedLimit:
    """Return the limit of stopping criteria.

    Length and end tokens are the limit's own. The others are asked of each token in turn, as
    transformers asks them.
    """
    lengths = [one.max_length for one in criteria if isinstance(one, MaxLengthCriteria)]
    ends = [one.eos_token_id for one in criteria if isinstance(one, EosTokenCriteria)]
    others = [one for one in criteria if not isinstance(one, MaxLengthCriteria | EosTokenCriteria)]

    def stop(new: Sequence[int]) -> bool:
        ids = torch.tensor([[*prompt, *new]], device=device)
        return any(bool(torch.as_tensor(one(ids, None)).all()) for one in others)

    return StreamedLimit(
        min(lengths) - len(prompt),
        frozenset(int(token) for end in ends for token in torch.as_tensor(end).flatten()),
        stop if others else None,
        streamer,
    )


def _tokenizer(tokenizer: Any) -> Any:
    if tokenizer is None:
        raise BenchError(
            "stop_strings need a tokenizer, which transformers hands to no custom_generate",
            "bind it: custom_generate=functools.partial(fspad_bench.custom_generate, "
            "tokenizer=tokenizer)",
        )
    return tokenizer


class Host:
    """A target over a model's weights, and the decoders built on it.

    `lock` is held while one of them decodes: decoders and forwards have buffers of their own, so
    threads take turns.
    """

    def __init__(self, target: TransformersTarget) -> None:
        self.target = target
        self.lock = RLock()
        self.weights = weights_of(target.model)
        self.decoders: dict[tuple[str, str], Decoder] = {}

    def decoder(self, label: str, options: Mapping[str, Any]) -> Decoder:
        """Return the decoder of this label and these options, built once."""
        texts = {name: str(value) for name, value in options.items()}
        place = (label, repr(sorted(texts.items())))
        if place not in self.decoders:
            prefix = Label.of(label).option_prefixes[-1]
            given = {prefix: texts} if texts else {}
            self.decoders[place] = build_decoder(label, self.target, given)
        return self.decoders[place]


HOSTS: WeakKeyDictionary[PreTrainedModel, Host] = WeakKeyDictionary()
HOSTS_LOCK = Lock()
SAMPLED = 64  # elements of each parameter that are looked at anew in every call
OWN_HOST = "_custom_generate_host"  # of a target: a dictionary's value would keep its key alive


def host_of(model: PreTrainedModel, target: TransformersTarget | None) -> Host:
    """Return the host of a model, or of a target over that very model; a new one if its weights
    have changed.
    """
    if target is not None and weights_of(target.model) != weights_of(model):
        raise BenchError(
            f"the target {target.name} is over other weights than this model's",
            "call generate of target.model",
        )
    with HOSTS_LOCK:
        host = HOSTS.get(model) if target is None else vars(target).get(OWN_HOST)
        if host is None or host.weights != weights_of(model):
            host = Host(target or target_over(model))
            if target is None:
                HOSTS[model] = host
            else:
                setattr(target, OWN_HOST, host)
        return host


def weights_of(model: PreTrainedModel) -> tuple[list[tuple[int, int]], bytes]:
    """Return where each parameter lies and how often it was written to, and a sample of them all.

    What is written through `.data`, as adapters are merged, counts as no write.
    """
    parameters = list(model.parameters())
    written = [
        (parameter.data_ptr(), 0 if parameter.is_inference() else parameter._version)
        for parameter in parameters
    ]
    flat = [parameter.detach().reshape(-1) for parameter in parameters if parameter.numel()]
    sums = [own[:: -(-len(own) // SAMPLED)].double().sum() for own in flat]
    together = torch.stack([own.to(sums[0].device) for own in sums])  # one wait for a device
    return written, together.cpu().numpy().tobytes()


def target_over(model: PreTrainedModel) -> TransformersTarget:
    """Return a target over a copy of a model's modules that shares its weights."""
    shared = [*model.parameters(), *model.buffers()]
    modules = copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
    name = getattr(model, "name_or_path", "") or "model"
    try:
        checkpoint = resolve(name)
    except BenchError:  # built in memory, or its folder is gone
        return TransformersTarget(modules, None, name)
    identity = getattr(model.config, "_commit_hash", None) or checkpoint.identity
    return TransformersTarget(modules, None, checkpoint.name, identity)
