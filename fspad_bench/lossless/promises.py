"""What a baseline promises: that its output is the target's, and how many tokens a step it makes. CI holds it to that.

    promises:
      - {target: tiny, task: gsm8k, limit: 4, max_new_tokens: 48, temperature: 0, tokens_per_step: 1.9}

A promise is a small run on bundled samples. Wall time is never promised: machines differ.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from fspad_bench.errors import BenchError, near
from fspad_bench.lossless.report import Check
from fspad_bench.util.paths import data_folder

IDENTICAL = ("exact", "tie")


@dataclass(frozen=True)
class Promise:
    """`tokens_per_step` is the least that is promised; `options` are the decoder's."""

    decoder: str
    target: str
    task: str
    tokens_per_step: float
    limit: int = 4
    max_new_tokens: int = 48
    temperature: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def about(self) -> str:
        return f"{self.decoder} on {self.target}, {self.task}, T={self.temperature:g}"

    def judge(self, row: dict[str, Any]) -> list[Check]:
        """The row of a run that did what the promise says."""
        kept = row["verdict"] in IDENTICAL and not row["errors"]
        same = Check.of("identity", self.about, kept, row["verdict"], "exact")
        made = row["tokens_per_step"] or 0.0
        bound = f"at least {self.tokens_per_step:g}"
        return [
            same,
            Check.of(
                "tokens a step", self.about, made >= self.tokens_per_step, f"{made:.3f}", bound
            ),
        ]


def shipped() -> list[Path]:
    """The baseline of every decoder that has one."""
    return sorted(data_folder("baselines").glob("*.yaml"))


def read(path: Path) -> list[Promise]:
    """The promises of a baseline file. Raises BenchError naming the file and the field that is wrong."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BenchError(
            f"cannot read {path}: {error}", "a baseline is a YAML file with decoder and promises"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("decoder"), str):
        raise BenchError(f"{path} is no baseline", "it needs `decoder: NAME` and `promises: [...]`")
    promises = content.get("promises") or []
    if not isinstance(promises, list):
        raise BenchError(
            f"{path}: promises are a list, not {promises!r}",
            "one `- {target: ..., task: ...}` a line",
        )
    return [_promise(path, content["decoder"], entry) for entry in promises]


def _promise(path: Path, decoder: str, entry: Any) -> Promise:
    known = {f.name: f for f in fields(Promise) if f.name != "decoder"}
    if not isinstance(entry, dict):
        raise BenchError(
            f"{path}: a promise is a mapping, not {entry!r}", f"with {', '.join(known)}"
        )
    for name in entry:
        if name not in known:
            raise BenchError(f"{path}: a promise has no field '{name}'", near(str(name), known))
    missing = [name for name in ("target", "task", "tokens_per_step") if name not in entry]
    if missing:
        raise BenchError(f"{path}: a promise lacks '{missing[0]}'", f"fields: {', '.join(known)}")
    if not isinstance(entry.get("options", {}), dict):
        raise BenchError(
            f"{path}: options are a mapping, not {entry['options']!r}", "such as {depth: 3}"
        )
    try:
        numbers = {
            "tokens_per_step": float,
            "temperature": float,
            "limit": int,
            "max_new_tokens": int,
        }
        return Promise(
            decoder,
            **entry | {name: kind(entry[name]) for name, kind in numbers.items() if name in entry},
        )
    except (TypeError, ValueError) as error:
        raise BenchError(f"{path}: {error}", "numbers are wanted there") from error
