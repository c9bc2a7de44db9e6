"""A trained draft network on disk: one self-describing folder.

`head.safetensors` holds the weights in bfloat16 and the draft vocabulary, `head.json` the architecture, the target it
was trained for, the training command, its data's hash and its final figures. Loading checks every one that matters:
a head of another target or shape is refused with the reason.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fspad_bench.drafts.network import DraftNetwork, Shape
from fspad_bench.drafts.published import is_published, read_published, weights_file
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.errors import BenchError
from fspad_bench.util.paths import data_folder, write_whole

FORMAT = 1
ABOUT = "head.json"
WEIGHTS = "head.safetensors"
VOCABULARY = "draft_vocabulary"


@dataclass(frozen=True)
class Head:
    """A draft network and the ids of its draft vocabulary, `[S]` ascending, with what `head.json` says of them.

    `sha256` is that of the weights' file it was loaded from.
    """

    network: DraftNetwork
    vocabulary: Tensor
    target: str
    identity: str
    facts: dict[str, object] = field(default_factory=dict)
    sha256: str = ""

    def save(self, folder: Path) -> None:
        """Write the folder; the weights in bfloat16. What is half written is no head: its description comes last."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ABOUT).unlink(missing_ok=True)
        weights = {
            k: v.to(torch.bfloat16).contiguous() for k, v in self.network.state_dict().items()
        }
        save_file(weights | {VOCABULARY: self.vocabulary.to(torch.int32)}, folder / WEIGHTS)
        about = {"format": FORMAT, "target": self.target, "identity": self.identity, **self.facts}
        about["shape"] = asdict(self.network.shape)
        write_whole(folder / ABOUT, json.dumps(about, indent=2) + "\n")


def shipped(decoder: str, target: str) -> Path:
    """Where the head that comes with the package for this decoder and target would be."""
    return data_folder("baselines") / "heads" / f"{decoder}-{target}"


def load_head(folder: Path, target: TransformersTarget, arm: str | None = None) -> Head:
    """The head of `folder`, on the target's device and in its dtype.

    Ours, or one in the layout that EAGLE and FSPAD publish. Raises BenchError unless it fits the target, and is of the
    named arm where one is named.
    """
    if is_published(folder) and not (folder / ABOUT).is_file():
        return _published(folder, target, arm)
    try:
        about = json.loads((folder / ABOUT).read_text())
        shape = Shape(**about["shape"])
        weights = load_file(folder / WEIGHTS)
        vocabulary = weights.pop(VOCABULARY).to(torch.int64)
        with torch.device("meta"):
            network = DraftNetwork(shape)
        network.load_state_dict(weights, assign=True)
        about["target"] = str(about["target"])
        about["identity"] = str(about["identity"])
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BenchError(
            f"no draft head at {folder}",
            "train one with `fspad-bench train`, or name a folder with head=",
        ) from error
    except (
        json.JSONDecodeError,
        KeyError,
        TypeError,
        RuntimeError,
        SafetensorError,
        ValueError,
    ) as error:
        reason = str(error).splitlines()[0]
        raise BenchError(
            f"{folder} is not a usable draft head: {reason}",
            "the file may be damaged; fetch or train it again",
        ) from error
    _check(folder, about, shape, vocabulary, target, arm)
    network = network.to(target.device, target.dtype).eval().requires_grad_(False)
    vocabulary = vocabulary.to(target.device)
    return Head(
        network, vocabulary, about["target"], about["identity"], about, content_hash(folder)
    )


def _published(folder: Path, target: TransformersTarget, arm: str | None) -> Head:
    network = read_published(folder)
    vocabulary = torch.arange(target.config.vocab_size, device=target.device)
    about = {"target": target.name, "identity": target.identity, "layout": "published"}
    _check(folder, about, network.shape, vocabulary, target, arm)
    network = network.to(target.device, target.dtype).eval().requires_grad_(False)
    return Head(
        network, vocabulary, target.name, target.identity, about, _hash_of(weights_file(folder))
    )


def _check(
    folder: Path,
    about: dict,
    shape: Shape,
    vocabulary: Tensor,
    target: TransformersTarget,
    arm: str | None,
) -> None:
    if arm is not None and shape.arm != arm:
        raise BenchError(
            f"{folder} holds the head of '{shape.arm}', not of '{arm}'", "name the matching decoder"
        )
    if shape.d != target.config.hidden_size or int(vocabulary.max()) >= target.config.vocab_size:
        raise BenchError(
            f"{folder} does not fit {target.name}: hidden size {shape.d} against {target.config.hidden_size}",
            f"it was trained for {about['target']}",
        )
    if about["identity"] != target.identity:
        raise BenchError(
            f"{folder} was trained for {about['target']}, {about['identity'][:12]}; "
            f"not for {target.name}, {target.identity[:12]}",
            "a head only helps the very weights it was trained on: train one with `fspad-bench train`",
        )


def content_hash(folder: Path) -> str:
    """sha256 of the weights; part of the run key, so that a retrained head is another run."""
    return _hash_of(folder / WEIGHTS)


def _hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
