"""A decoder by its label, ready to generate.

A label is `name`, `name@preset` or `package.module:Class`, and `other=` in front of it gives it a name of its own, so
that one run can compare a decoder with itself: `fspad,deep=fspad -D deep.depth=5`.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from fspad_bench.core.loop import Context, Drafter, Generation, Limit, Target, generate, rule_of
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.verification import RULES
from fspad_bench.decoders import registry
from fspad_bench.decoders.registry import Label
from fspad_bench.engine.device_loop import DeviceLoop, device_loop
from fspad_bench.errors import BenchError, near
from fspad_bench.util.paths import data_folder


@dataclass(frozen=True)
class Method:
    """A decoder ready to run: one with `propose` in our loop, one with `generate` (a foreign engine) as it is.

    `loop` is our loop on the device, where target and decoder can do without the host.
    """

    label: str
    decoder: Any
    options: dict[str, Any]
    loop: DeviceLoop | None = None

    def generate(
        self, target: Target, sampler: Sampler, prompt: list[int], limit: Limit
    ) -> Generation:
        if self.loop:
            return self.loop.generate(sampler, prompt, limit)
        if hasattr(self.decoder, "propose"):
            return generate(target, self.decoder, sampler, prompt, limit)
        return self._foreign(prompt, sampler, limit)

    @property
    def verification(self) -> str:
        """The rule that its trees are verified by: `own` for one of its making, `foreign` for an engine's business."""
        if not hasattr(self.decoder, "propose"):
            return "foreign"
        return next(
            (name for name, known in RULES.items() if rule_of(self.decoder) is known), "own"
        )

    def _foreign(self, prompt: list[int], sampler: Sampler, limit: Limit) -> Generation:
        """Tokens and time as seen from outside; what part of it was decoding is the engine's word (0: not said)."""
        began = perf_counter()
        made = self.decoder.generate(prompt, sampler, limit)
        seconds = perf_counter() - began
        tokens = limit.cut(
            Context(list(prompt), len(prompt)), [int(token) for token in made.tokens]
        )
        if len(tokens) < limit.max_new_tokens and not (tokens and tokens[-1] in limit.stop_ids):
            raise ValueError(
                f"{self.label} ended after {len(tokens)} tokens, neither at a stop nor at the limit"
            )
        decode = min(seconds, made.decode_seconds)
        # the prefill's token belongs to none
        rounds = []
        left = len(tokens) - 1
        for committed in made.committed:
            rounds.append(min(committed, left))
            left -= rounds[-1]
        times = {"prefill_seconds": seconds - decode, "decode_seconds": decode}
        return replace(made, tokens=tokens, committed=[n for n in rounds if n], **times)


def find(label: Label) -> tuple[type, dict[str, Any]]:
    """The decoder's class and the preset's options."""
    import yaml

    name = label.decoder
    preset = label.preset
    decoder = registry.resolve(registry.DECODERS, name)
    if not preset:
        return decoder, {}
    path = data_folder("baselines") / f"{name}.yaml"
    presets = yaml.safe_load(path.read_text())["presets"] if path.exists() else {}
    if preset not in presets:
        raise BenchError(f"{name} has no preset '{preset}'", near(preset, presets))
    return decoder, {k: str(v) for k, v in presets[preset].items()}


def configure(label: str, options: dict[str, dict[str, str]]) -> tuple[type, dict[str, Any]]:
    """The decoder's class and all its options, the user's on top of the preset's."""
    parts = Label.of(label)
    decoder, given = find(parts)
    for name in parts.listens_to:
        given = given | options.get(name, {})
    return decoder, registry.options_of(decoder, given, parts.own or parts.decoder)


def check_options(labels: Sequence[str], options: dict[str, dict[str, str]]) -> None:
    """Raise BenchError for an unknown decoder, a name given twice, or an option that none of these would read."""
    for label in labels:
        configure(label, options)
    shown = [Label.of(label).shown for label in labels]
    for name in shown:
        if shown.count(name) > 1:
            raise BenchError(
                f"two decoders are called '{name}'", "give one a name of its own: other=DECODER"
            )
    known = {name for label in labels for name in Label.of(label).listens_to}
    for name in options:
        if name not in known:
            raise BenchError(f"-D {name}...: this run has no decoder '{name}'", near(name, known))


def _code(decoder: Any) -> dict[str, str]:
    """The file that a decoder from outside this package is written in: edited, it is another decoder."""
    if getattr(decoder, "__module__", "").partition(".")[0] == "fspad_bench":
        return {}
    try:
        return {
            "code": hashlib.sha256(Path(inspect.getsourcefile(decoder)).read_bytes()).hexdigest()
        }
    except (TypeError, OSError):  # made up at run time, or compiled
        return {}


def build(label: str, target: Target, options: dict[str, dict[str, str]]) -> Method:
    """A decoder by its label on a target."""
    decoder, chosen = configure(label, options)
    made: Drafter = decoder(target, **chosen)
    if not callable(rule_of(made)):
        raise BenchError(
            f"{label}: its `verify` is no function", "such as one of fspad_bench.verification.RULES"
        )
    if not (hasattr(made, "propose") or hasattr(made, "generate")):
        raise BenchError(
            f"{label} is no decoder", "a decoder has propose(context, budget) or generate(...)"
        )
    files = {
        f"{name}_sha256": digest
        for name, digest in (_code(decoder) | getattr(made, "files", {})).items()
    }
    return Method(label, made, chosen | files, device_loop(target, made))
