"""A trained draft network on disk: one self-describing folder.

- `head.safetensors` holds the weights in bfloat16 and the draft vocabulary, `head.json` the
  architecture's name, its shape, the target it was trained for, the training command, its data's
  hash, its calibration and its final figures.
- Loading checks all that matters: a head of another target, shape or architecture is refused with
  the reason.
- A head is known by its content: a hash over both files.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fspad_bench.drafts.network import HeadNetwork, architecture
from fspad_bench.drafts.published import (
    CONFIG,
    PICKLE,
    SAFETENSORS,
    has_vocabulary,
    is_published,
    read_published,
    weights_file,
    write_published,
)
from fspad_bench.drafts.shape import Shape
from fspad_bench.drafts.sizing.calibration import Calibration
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.util.errors import BenchError
from fspad_bench.util.paths import data_folder, disk_errors, replacing, write_atomically
from fspad_bench.util.text import json_value

FORMAT = 2
ABOUT = "head.json"
WEIGHTS = "head.safetensors"
VOCABULARY = "draft_vocabulary"
PUBLISHED = "published"
SWITCHES = ("feature_sampling", "split_output", "wide")  # of format 1, in place of a name
BY_SWITCHES = {
    (False, False, False): "eagle",
    (True, True, False): "fspad",
    (True, False, False): "feature-sampling",
    (False, True, False): "partial-alignment",
    (False, False, True): "wide",
}


@dataclass(frozen=True)
class Head:
    """A draft network, the ids of its draft vocabulary `[S]` ascending, and the facts that
    `head.json` states.

    `sha256` is the hash of the files it was loaded from.
    """

    network: HeadNetwork
    vocabulary: Tensor
    target: str
    identity: str
    facts: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""

    def save(self, folder: Path) -> None:
        """Write the folder; the weights in bfloat16.

        The description comes last: half a folder is no head.
        """
        state = self.network.state_dict()
        weights = {k: v.to(torch.bfloat16).contiguous() for k, v in state.items()}
        weights[VOCABULARY] = self.vocabulary.to(torch.int32)
        about = {
            **self.facts,
            "format": FORMAT,
            "target": self.target,
            "identity": self.identity,
            "architecture": self.network.architecture,
            "shape": self.network.shape.facts(),
        }
        with disk_errors(folder, SafetensorError, RuntimeError):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ABOUT).unlink(missing_ok=True)
            with replacing(folder / WEIGHTS) as part:
                save_file(weights, part)
            write_atomically(folder / ABOUT, json.dumps(about, indent=2) + "\n")


def export_head(head: Head, target: TransformersTarget, folder: Path) -> list[str]:
    """Write a head in the layout that EAGLE, EAGLE-3 and FSPAD publish. Return what that layout
    loses.

    EAGLE-3's alone has a draft vocabulary: other exported heads draft every token. Raises
    BenchError where the folder holds a head that would hide this one, or a file that this one
    would replace.
    """
    if folder.exists() and not folder.is_dir():
        raise BenchError(f"cannot write to {folder}: it is a file", "name another --output")
    for other in (folder / ABOUT, folder / SAFETENSORS):
        if other.exists():
            raise BenchError(
                f"{other} exists: it would be read in place of the exported head",
                "name another --output",
            )
    for other in (folder / CONFIG, folder / PICKLE):
        if other.exists():
            raise BenchError(f"{other} exists: no file is replaced", "name another --output")
    size = target.config.vocab_size
    name = write_published(head.network, head.vocabulary, target, folder)
    own = head.network.architecture
    lost = []
    if has_vocabulary(type(head.network)):
        if head.network.lm_head is None:
            lost.append("a text's own tokens: its LM head has those of the draft vocabulary alone")
    elif len(head.vocabulary) < size:
        lost.append(
            f"the draft vocabulary of {len(head.vocabulary)} tokens: all {size} are drafted"
        )
    if "calibration" in head.facts:
        lost.append("the calibration: trees are of a fixed size")
    if name != own:
        lost.append(f"the name '{own}': it is read as a head of '{name}'")
    if head.facts.get("layout") != PUBLISHED:
        lost.append("the hash of its target, and how it was trained")
    return lost


def shipped(decoder: str, target: str) -> Path:
    """Return the folder of the package's own head for this decoder and target; it may not exist."""
    return data_folder("baselines") / "heads" / f"{decoder}-{target}"


def load_head(
    folder: Path, target: TransformersTarget, network: type[HeadNetwork] | None = None
) -> Head:
    """Load a head of ours, or one in a published layout, on the target's device and in its dtype.

    Raises BenchError unless it fits the target and, where one is given, has the architecture of
    `network`.
    """
    if _is_published(folder):
        return _load_published(folder, target, network)
    try:
        about = json_value((folder / ABOUT).read_bytes())
        name, shape = _architecture(about)
        about["target"] = str(about["target"])
        about["identity"] = str(about["identity"])
        _check_identity(folder, about, target)
        Calibration.of(about.get("calibration"))
        weights = load_file(folder / WEIGHTS)
        vocabulary = _ascending(weights.pop(VOCABULARY).to(torch.int64))
        with torch.device("meta"):
            loaded = architecture(name).build(shape, target)
        loaded.load_state_dict(weights, assign=True)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BenchError(
            f"no draft head at {folder}",
            "train one with `fspad-bench train`, or name a folder with head=",
        ) from error
    except (KeyError, TypeError, RuntimeError, SafetensorError, ValueError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BenchError(
            f"{folder} is not a usable draft head: {reason}",
            "the file may be damaged; fetch or train it again",
        ) from error
    _check(folder, about, loaded, vocabulary, target, network)
    return Head(
        _on_target(folder, loaded, target),
        vocabulary.to(target.device),
        about["target"],
        about["identity"],
        about,
        _hash(folder / WEIGHTS, folder / ABOUT),
    )


def _is_published(folder: Path) -> bool:
    """Whether the folder holds a head in a published layout and none of ours."""
    try:
        return is_published(folder) and not (folder / ABOUT).is_file()
    except OSError as error:  # a name of no file, a folder that this user may not enter
        raise BenchError(
            f"no draft head at {folder}: {error.strerror}", "name a folder with head="
        ) from error


def _architecture(about: dict[str, Any]) -> tuple[str, Shape]:
    """Return the architecture's name and the shape.

    Format 1 has switches in the place of a name.
    """
    sizes = dict(about["shape"])
    sampling, split, wide = (bool(sizes.pop(name, False)) for name in SWITCHES)
    name = about.get("architecture") or BY_SWITCHES[sampling, split, wide]
    return name, Shape.read(sizes)


def _ascending(vocabulary: Tensor) -> Tensor:
    """Return the ids of a draft vocabulary. Raises ValueError unless they are `[S]`, ascending."""
    ascends = vocabulary.dim() == 1 and bool((vocabulary.diff() > 0).all())
    if not ascends or not len(vocabulary) or int(vocabulary[0]) < 0:
        raise ValueError("its draft vocabulary is not a list of ascending ids")
    return vocabulary


def _load_published(
    folder: Path, target: TransformersTarget, network: type[HeadNetwork] | None
) -> Head:
    loaded, vocabulary = read_published(folder, target)
    about = {"target": target.name, "identity": target.identity, "layout": PUBLISHED}
    _check(folder, about, loaded, vocabulary, target, network)
    on_target = _on_target(folder, loaded, target)
    digest = _hash(weights_file(folder), folder / "config.json")
    ids = vocabulary.to(target.device)
    return Head(on_target, ids, target.name, target.identity, about, digest)


def _on_target(folder: Path, loaded: HeadNetwork, target: TransformersTarget) -> HeadNetwork:
    """Return the network on the target's device and in its dtype.

    Raises BenchError for a weight that holds a number which is not finite there.
    """
    network = loaded.to(target.device, target.dtype).eval().requires_grad_(False)
    for name, weight in network.state_dict().items():
        if not torch.isfinite(weight).all():
            raise BenchError(
                f"{folder} is not a usable draft head: {name} holds numbers that are not finite "
                f"in {str(target.dtype).removeprefix('torch.')}",
                "fetch or train it again, or run in another --dtype",
            )
    return network


def _check(
    folder: Path,
    about: dict[str, Any],
    loaded: HeadNetwork,
    vocabulary: Tensor,
    target: TransformersTarget,
    network: type[HeadNetwork] | None,
) -> None:
    if network is not None and loaded.architecture != network.architecture:
        raise BenchError(
            f"{folder} holds the head of '{loaded.architecture}', not of '{network.architecture}'",
            "name the matching decoder",
        )
    layers = target.config.num_hidden_layers
    beyond = [state for state in loaded.shape.capture if not 0 <= state <= layers]
    if beyond:
        raise BenchError(
            f"{folder} does not fit {target.name}: it reads hidden state {beyond[0]} of 0 to "
            f"{layers}",
            f"it was trained for {about['target']}",
        )
    if loaded.shape.vocabulary not in (0, len(vocabulary)):
        raise BenchError(
            f"{folder} is not a usable draft head: an LM head of {loaded.shape.vocabulary} rows "
            f"for a draft vocabulary of {len(vocabulary)}",
            "the file may be damaged; fetch or train it again",
        )
    d = loaded.shape.d
    if d != target.config.hidden_size:
        raise BenchError(
            f"{folder} does not fit {target.name}: hidden size {d} against "
            f"{target.config.hidden_size}",
            f"it was trained for {about['target']}",
        )
    if int(vocabulary.max()) >= target.config.vocab_size:
        raise BenchError(
            f"{folder} does not fit {target.name}: it drafts token {int(vocabulary.max())} of "
            f"{target.config.vocab_size}",
            f"it was trained for {about['target']}",
        )


def _check_identity(folder: Path, about: dict[str, Any], target: TransformersTarget) -> None:
    """Raise BenchError for a head of another target's."""
    if about["identity"] != target.identity:
        raise BenchError(
            f"{folder} was trained for {about['target']}, {about['identity'][:12]}; "
            f"not for {target.name}, {target.identity[:12]}",
            "a head only helps the very weights it was trained on: "
            "train one with `fspad-bench train`",
        )


def _hash(*paths: Path) -> str:
    """Return the sha256 over the contents of files, in order."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
