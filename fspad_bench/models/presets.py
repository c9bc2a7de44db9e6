"""Resolve a target's name: a preset, a folder, or a hub id.

- A `Checkpoint` says where the weights are and what identifies them in a record.
- Presets add what their repositories lack: Vicuna's tokenizer has no chat template, so the one of
  its training is given here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fspad_bench.models import smollm2
from fspad_bench.models.digests import folder_digest
from fspad_bench.util.errors import BenchError, near
from fspad_bench.util.paths import user_path

RANDOM = "random:"
VICUNA = (
    "{{ bos_token }}"
    "{{ 'A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user\\'s questions. ' }}"
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ 'USER: ' + m['content'] + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + m['content'] + '</s>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


@dataclass(frozen=True)
class Preset:
    """A named target: a hub id, or (`hub` empty) a model built on this machine."""

    hub: str
    title: str
    template: str = ""


PRESETS = {
    "smollm2-135m": Preset(
        "", "SmolLM2-135M-Instruct Q4_1, dequantised; from the package index, the default"
    ),
    "tiny": Preset("", "two random layers over characters in float64; for tests only"),
    "vicuna-7b": Preset("lmsys/vicuna-7b-v1.5", "Vicuna-7B-v1.5", VICUNA),
    "vicuna-33b": Preset("lmsys/vicuna-33b-v1.3", "Vicuna-33B-v1.3", VICUNA),
    "llama3-8b": Preset("meta-llama/Meta-Llama-3-8B-Instruct", "LLaMA-3-8B-Instruct"),
    "llama3-70b": Preset("meta-llama/Meta-Llama-3-70B-Instruct", "LLaMA-3-70B-Instruct"),
}

BUILT = {"smollm2-135m": smollm2.SHA256, "tiny": "tiny-1"}  # presets without a hub id -> identity
FOLDER_IDENTITY = 64  # characters of a sha256


@dataclass(frozen=True)
class Checkpoint:
    """Location of a target's weights.

    `path` is a folder or a hub id; None stands for the built-in `tiny`.
    """

    name: str
    path: str | None
    identity: str
    template: str = ""


def resolve(name: str) -> Checkpoint:
    """Return the checkpoint of a preset, an existing folder, or a hub id.

    Raises BenchError for any other name.
    """
    if name.startswith(RANDOM):
        raise BenchError(
            f"'{name}' has random weights",
            "time its steps with `fspad-bench profile`; besides it only `invariance` accepts it",
        )
    if name == "tiny":
        return Checkpoint(name, None, BUILT[name])
    if name == "smollm2-135m":
        return Checkpoint(name, str(smollm2.model_folder()), BUILT[name])
    if name in PRESETS:
        preset = PRESETS[name]
        return Checkpoint(name, preset.hub, preset.hub, preset.template)
    folder = user_path(name)
    if folder.is_dir():
        return _from_folder(folder)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return Checkpoint(name, name, name)
    raise BenchError(
        f"unknown target '{name}'",
        f"{near(name, PRESETS)}; or a local folder, or a hub id owner/name",
    )


def is_preset(name: str, identity: str) -> bool:
    """Whether a recorded target is the preset of its name, and no folder that is called so.

    A folder is identified by a sha256, a repository of the hub by its id or a commit.
    """
    if name in BUILT:
        return identity == BUILT[name]
    return name in PRESETS and len(identity) != FOLDER_IDENTITY


def _from_folder(folder: Path) -> Checkpoint:
    if not (folder / "config.json").exists():
        raise BenchError(
            f"{folder} holds no config.json", "name a folder written by save_pretrained"
        )
    try:
        return Checkpoint(folder.absolute().name, str(folder), folder_digest(folder))
    except OSError as error:
        raise BenchError(
            f"cannot read {error.filename}: {error.strerror}", "are its files your own?"
        ) from error
