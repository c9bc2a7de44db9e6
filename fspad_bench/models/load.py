"""Load a target: a preset, a folder or a hub id, on a device, in a precision.

- A repository's own code never runs: `trust_remote_code` is off, and weights are safetensors,
  GGUF, or `.bin` read with `weights_only`.
- A target lives on one device, or its layers are spread over several, or each layer is shared among
  several. `auto` is a GPU if there is one, else the CPU.
"""

from __future__ import annotations

import atexit
import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from fspad_bench.engine.cpu.torch_ops import multiplies_bfloat16
from fspad_bench.engine.placement import is_rehearsal, spread, spread_model
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.engine.team import ALONE, Team
from fspad_bench.models import shares
from fspad_bench.models.digests import files_digest
from fspad_bench.models.presets import Checkpoint, resolve
from fspad_bench.models.shares import RETURNED
from fspad_bench.util.errors import BenchError
from fspad_bench.util.strangers import contained, message_of
from fspad_bench.util.terminal import note
from fspad_bench.util.text import json_value

DAMAGED = "a file of its folder may be damaged or missing: download or copy the target again"
LONGEST_REASON = 240  # characters of a library's message
SHARED = "+"
DEVICES = "cpu, cuda, cuda:1 or auto"
SENTENCEPIECE = ("sentencepiece", "google.protobuf")  # what reads a `tokenizer.model`
BUFFERS = (".inv_freq",)  # what old checkpoints hold of tables that are computed


class Place(NamedTuple):
    """Devices, and whether each layer is shared among them; else layers are spread over them."""

    devices: list[str]
    is_shared: bool


def load_target(name: str, *, device: str = "cpu", dtype: str | None = None) -> TransformersTarget:
    """Load a preset, folder or hub id.

    `device`: one; several over which its layers are spread, `cuda:0,cuda:1`; or several among which
    each layer is shared, `cuda:0+cuda:1`, which starts a process for each but the first. `dtype`
    defaults to float32 on the CPU, bfloat16 elsewhere, and float64 for the preset `tiny`. Raises
    BenchError if the name, a device or the files are not usable.
    """
    checkpoint = resolve(name)
    devices = devices_named(device)
    place = Place(devices, SHARED in device)
    if checkpoint.path is None:
        return _tiny(checkpoint, place, getattr(torch, dtype or "float64"))
    precision = getattr(torch, dtype or default_dtype(devices[0]))
    return _from_files(checkpoint, checkpoint.path, place, precision)


def default_dtype(device: str) -> str:
    """Return the precision that targets run in on this device unless another is given."""
    return "float32" if torch.device(device).type == "cpu" else "bfloat16"


def training_dtype(name: str, device: str) -> str | None:
    """Return the precision in which a target answers and gives features for training.

    bfloat16, in which features are stored in any case; float32 on a processor that cannot multiply
    in bfloat16, where such products take many times as long. None leaves the preset `tiny` in its
    own.
    """
    if name == "tiny":
        return None
    on_processor = device_named(device) == "cpu"
    return "float32" if on_processor and not multiplies_bfloat16() else "bfloat16"


def devices_named(name: str) -> list[str]:
    """Return the devices of a list with commas or pluses, checked as `device_named` checks one.

    Raises BenchError for a device that is named twice, for devices of two kinds, and for a list
    with both signs, too.
    """
    if SHARED in name and "," in name:
        raise BenchError(
            f"--device {name} both spreads layers (,) and shares them ({SHARED})",
            "write one of cuda:0,cuda:1 and cuda:0+cuda:1",
        )
    names = [part.strip() for part in name.split(SHARED if SHARED in name else ",")]
    if len(names) == 1:
        return [device_named(name)]
    for number, part in enumerate(names):
        _check_one_of_several(part)
        if part in names[:number]:
            raise BenchError(f"--device {name} names {part} twice", "name each device once")
    if len({torch.device(part).type for part in names}) > 1:
        raise BenchError(
            f"--device {name} mixes kinds of devices", "name GPUs alone, such as cuda:0,cuda:1"
        )
    return names


def _check_one_of_several(name: str) -> None:
    """Raise BenchError unless a name is of one device with its number, and can be used."""
    device_named(name)
    if not name.rpartition(":")[2].isdigit():
        raise BenchError(
            f"--device names '{name}' among several devices, without a number",
            "number each, such as cuda:0,cuda:1",
        )


def device_named(name: str) -> str:
    """Resolve `auto`, and check that torch can use the device. Raises BenchError."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if "," in name or SHARED in name:
        raise BenchError(
            f"--device {name} names several devices, where one is needed",
            f"give one of {DEVICES}",
        )
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BenchError(f"unknown device '{name}'", f"give one of {DEVICES}") from error
    if device.type == "cpu":  # cpu:1 is no other
        return "cpu"
    if device.type == "cuda":
        _check_cuda(name, device)
    else:
        _check_other(name, device)
    return name


def _check_other(name: str, device: torch.device) -> None:
    """Raise BenchError unless numbers can be put on a device and read there."""
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, NotImplementedError, AssertionError, ImportError) as error:
        reason = message_of(error)[:LONGEST_REASON]
        raise BenchError(f"no device '{name}' here: {reason}", f"give one of {DEVICES}") from error


def _check_cuda(name: str, device: torch.device) -> None:
    if not torch.cuda.is_available():
        raise BenchError(
            f"no CUDA device for --device {name}", "use --device cpu, or a torch built for CUDA"
        )
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise BenchError(
            f"no CUDA device {device.index}: there are {count}", "count CUDA devices from 0"
        )


def _tiny(checkpoint: Checkpoint, place: Place, dtype: torch.dtype) -> TransformersTarget:
    from fspad_bench.models.tiny import tiny_model, tiny_tokenizer

    model = tiny_model().to(dtype=dtype)
    team = ALONE
    if place.is_shared:
        folder = tempfile.mkdtemp(prefix="fspad-bench-tiny-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)  # an audit loads it again
        model.save_pretrained(folder)
        model, _, team = shares.start(folder, place.devices, dtype)
    elif len(place.devices) > 1:
        model = spread_model(model, place.devices)
    else:
        model = model.to(place.devices[0])
    with _closed_on_error(team):
        return TransformersTarget(
            model, tiny_tokenizer(), checkpoint.name, checkpoint.identity, team=team
        )


def _from_files(
    checkpoint: Checkpoint, path: str, place: Place, dtype: torch.dtype
) -> TransformersTarget:
    _check_generation_settings(checkpoint, path)
    try:
        with contained():
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
            model, report, team = _loaded(path, place, dtype)
    except BenchError:
        raise
    except Exception as error:  # strangers' files: libraries raise whatever they stumble over
        reason = message_of(error)[:LONGEST_REASON] or type(error).__name__
        raise BenchError(
            f"cannot load target '{checkpoint.name}': {reason}", _loading_hint(path, error)
        ) from error
    with _closed_on_error(team):
        return _checked(checkpoint, path, model, report, tokenizer, team)


@contextmanager
def _closed_on_error(team: Team) -> Iterator[None]:
    """End a team's processes where the target that they hold comes to nothing."""
    try:
        yield
    except BaseException:
        team.close()
        raise


def _checked(
    checkpoint: Checkpoint,
    path: str,
    model: PreTrainedModel,
    report: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    team: Team,
) -> TransformersTarget:
    """Return the target of a loaded model. Raises BenchError where its files do not fit."""
    if report["missing_keys"]:  # transformers would fill them with random numbers
        missing = sorted(report["missing_keys"])
        raise BenchError(
            f"'{checkpoint.name}' lacks {len(missing)} weights, {missing[0]} first",
            "download or copy the target again",
        )
    if unread := [name for name in report["unexpected_keys"] if not name.endswith(BUFFERS)]:
        note(
            f"note: '{checkpoint.name}' holds {len(unread)} weights that its architecture does not "
            f"read, {min(unread)} first"
        )
    if checkpoint.template and not tokenizer.chat_template:
        tokenizer.chat_template = checkpoint.template
    check_tokenizer(tokenizer, model, checkpoint.name)
    identity = getattr(model.config, "_commit_hash", None) or checkpoint.identity
    files = files_digest(_folder(path))
    target = TransformersTarget(model, tokenizer, checkpoint.name, identity, files, team)
    _ = target.stop_ids  # raises now where the settings name something else
    return target


def _loaded(
    path: str, place: Place, dtype: torch.dtype
) -> tuple[PreTrainedModel, dict[str, Any], Team]:
    """Return a checkpoint's model, what transformers says of its files, and who holds it."""
    if place.is_shared:
        return shares.start(path, place.devices, dtype)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=dtype,
        device_map=_device_map(path, place.devices),
        trust_remote_code=False,
        output_loading_info=True,
        **RETURNED,
    )
    model, report = loaded
    if is_rehearsal(place.devices):
        model = spread_model(model, place.devices)
    return model, report, ALONE


def _device_map(path: str, devices: list[str]) -> str | dict[str, str]:
    """Return where a checkpoint's modules go, before its weights are read."""
    if len(devices) == 1 or is_rehearsal(devices):
        return devices[0]
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    with torch.device("meta"):
        return spread(AutoModelForCausalLM.from_config(config), devices)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, name: str) -> None:
    """Raise BenchError for a tokenizer with an id that the model has no embedding for."""
    size = min(model.config.vocab_size, model.get_input_embeddings().weight.shape[0])
    token, largest = max(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    if largest >= size:
        raise BenchError(
            f"the tokenizer of '{name}' has the id {largest} for {token!r}, "
            f"the model a vocabulary of {size}",
            "take the tokenizer that belongs to the model, or resize its embedding",
        )


def _folder(path: str) -> Path:
    """Return the folder of a checkpoint's files; that of a hub id is its snapshot in the cache."""
    if Path(path).is_dir():
        return Path(path)
    return Path(str(cached_file(path, "config.json", local_files_only=True))).parent


def _check_generation_settings(checkpoint: Checkpoint, path: str) -> None:
    """Raise BenchError for generation settings that cannot be read.

    transformers would go on without them, and so with other stop ids.
    """
    file = Path(path) / "generation_config.json"
    if not file.is_file():
        return
    try:
        settings = json_value(file.read_bytes(), is_strict=False)
    except (OSError, ValueError) as error:
        reason: object = error
    else:
        reason = "not a JSON object" if not isinstance(settings, dict) else None
    if reason is not None:
        raise BenchError(f"cannot load target '{checkpoint.name}': {file}: {reason}", DAMAGED)


def _loading_hint(path: str, error: Exception) -> str:
    """Return what to do about a checkpoint that cannot be loaded."""
    folder = Path(path)
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "it does not fit: choose a smaller --dtype or another --device"
    if not folder.is_dir():
        return "check the name, your access to it, and the network (HF_HUB_OFFLINE=1 works without)"
    needs_sentencepiece = (folder / "tokenizer.model").is_file()
    needs_sentencepiece &= not (folder / "tokenizer.json").is_file()
    if needs_sentencepiece and not all(map(_installed, SENTENCEPIECE)):
        return "its tokenizer.model needs `pip install sentencepiece protobuf`"
    return DAMAGED


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # its parent is missing
        return False
