"""The verb `answers`: write the answers of records in another benchmark's format."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fspad_bench.util.errors import BenchError
from fspad_bench.util.paths import user_path
from fspad_bench.util.terminal import show

if TYPE_CHECKING:
    from fspad_bench.benchmark.answers import AnswerFile
    from fspad_bench.benchmark.record import Key, Sample

FORMATS = ["spec-bench"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("records", nargs="+", type=Path, help="record files, or folders of them")
    parser.add_argument(
        "--format", choices=FORMATS, default=FORMATS[0], help="default: %(default)s"
    )
    parser.add_argument("-o", "--output", required=True, type=Path, help="folder of the files")
    parser.add_argument(
        "--target",
        help="preset, folder or hub id whose tokenizer reads the tokens (default: the record's)",
    )


def run(arguments: argparse.Namespace) -> int:
    from fspad_bench.benchmark.answers import answer_files
    from fspad_bench.cli.table import read_records, record_files

    records = read_records(record_files(arguments.records))
    files = answer_files(records, Texts(arguments.target))
    if not files:
        raise BenchError(
            f"{arguments.records[0]} holds no generation yet",
            "repeat the same `fspad-bench run` command to resume it",
        )
    output = user_path(arguments.output)
    for file in files:
        path = output / f"{file.name}.jsonl"
        if file.lines:
            _write(path, file.lines)
        show(f"{path}: {_summary(file)}")
    return 0


class Texts:
    """The texts of outputs: as recorded by `run --log-samples`, else by the target's tokenizer."""

    def __init__(self, target: str | None) -> None:
        self.target = target
        self.tokenizers: dict[str, Any] = {}

    def __call__(self, key: Key, sample: Sample) -> str:
        if sample.text or not sample.tokens:
            return sample.text.strip()
        name = self.target or key.target
        if name not in self.tokenizers:
            self.tokenizers[name] = self._load(name, key)
        return str(self.tokenizers[name].decode(sample.tokens, skip_special_tokens=True)).strip()

    def _load(self, name: str, key: Key) -> Any:
        from fspad_bench.cli.environment import quiet_libraries
        from fspad_bench.models.tokenizers import load_tokenizer

        quiet_libraries()
        try:
            tokenizer = load_tokenizer(name)
        except BenchError as error:
            raise BenchError(
                f"the record holds tokens, no texts, and {error.message}",
                "name the target's folder with --target, or record with --log-samples",
            ) from error
        if key.tokenizer_sha256 and key.tokenizer_sha256 not in _hashes(tokenizer):
            raise BenchError(
                f"the tokenizer of '{name}' is not the one that the record was made with",
                "name the target of that run with --target",
            )
        return tokenizer


def _hashes(tokenizer: Any) -> tuple[str, str]:
    """Return the hashes by which a record may know a tokenizer.

    Those of schema 2 are of the vocabulary alone.
    """
    from fspad_bench.models.chat import tokenizer_hash, vocabulary_hash

    return tokenizer_hash(tokenizer), vocabulary_hash(tokenizer)


def _write(path: Path, lines: list[dict[str, Any]]) -> None:
    from fspad_bench.util.paths import disk_errors, write_atomically

    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in lines))


def _summary(file: AnswerFile) -> str:
    mean = file.mean_accepted
    known = "steps unknown" if mean is None else f"{mean:.2f} mean accepted tokens"
    left_out = f"; {len(file.left_out)} left out: a turn failed" if file.left_out else ""
    return f"{len(file.lines)} questions, {known}{left_out}"
