"""The verb `push`: publish a trained head, or results, on the Hugging Face hub."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fspad_bench.util.errors import BenchError
from fspad_bench.util.paths import disk_errors, replacing, user_path
from fspad_bench.util.terminal import note, show

if TYPE_CHECKING:
    from fspad_bench.publishing.repositories import Files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", nargs="+", type=Path, help="folder of a trained head, or records and their folders"
    )
    parser.add_argument("--repo", required=True, metavar="OWNER/NAME", help="where it goes")
    parser.add_argument(
        "--dry-run",
        type=Path,
        metavar="FOLDER",
        help="write what would be pushed to a folder, and ask nothing of the hub",
    )
    parser.add_argument("--private", action="store_true", help="create a private repository")
    parser.add_argument(
        "--license", default="apache-2.0", help="in the card (default: %(default)s)"
    )
    parser.add_argument("--model", metavar="OWNER/NAME", help="hub id of a head's target")
    parser.add_argument(
        "--with-records",
        action="store_true",
        help="push the records, too: they hold command lines, paths and, if logged, texts",
    )


def run(arguments: argparse.Namespace) -> int:
    _check_repository(arguments.repo)
    kind, files = _files(arguments)
    if arguments.dry_run:
        _write(files, user_path(arguments.dry_run))
    else:
        _push(files, kind, arguments)
    return 0


def _check_repository(name: str) -> None:
    """Raise BenchError unless the hub's library takes the name, and it has an owner."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
        owner, repository = name.split("/")
        validate_repo_id(owner)
        validate_repo_id(repository)
    except (HFValidationError, ValueError) as error:
        raise BenchError(
            f"'{name}' is no repository of the hub",
            "give OWNER/NAME, of letters, digits, '-', '_' and '.', the last three not at an end "
            "and no '--' or '..'",
        ) from error


def _files(arguments: argparse.Namespace) -> tuple[str, Files]:
    """Return the kind of repository, as the hub calls it, and its files."""
    from fspad_bench.cli.table import read_rows, record_files
    from fspad_bench.drafts.head import ABOUT
    from fspad_bench.publishing.repositories import head_repository, results_repository

    paths = [user_path(path) for path in arguments.what]
    if (paths[0] / ABOUT).is_file():
        if len(paths) > 1:
            raise BenchError(f"{paths[0]} is a head, and goes alone", "push one head at a time")
        files = head_repository(paths[0], arguments.repo, arguments.license, arguments.model)
        return "model", files
    records = record_files(paths)
    _, table = read_rows(records)
    return "dataset", results_repository(
        table,
        records,
        arguments.repo,
        arguments.license,
        with_records=arguments.with_records,
    )


def _write(files: Files, folder: Path) -> None:
    with disk_errors(folder):
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                temporary.write_bytes(content)
            show(f"{path}: {len(content)} bytes")
    note("nothing was pushed")


def _push(files: Files, kind: str, arguments: argparse.Namespace) -> None:
    import huggingface_hub

    api = huggingface_hub.HfApi()
    parts = [huggingface_hub.CommitOperationAdd(name, data) for name, data in files.items()]
    try:
        api.create_repo(arguments.repo, repo_type=kind, private=arguments.private, exist_ok=True)
        done = api.create_commit(
            arguments.repo, parts, commit_message="Published by fspad-bench", repo_type=kind
        )
    except Exception as error:  # the hub's library raises whatever its transport raised
        from fspad_bench.util.strangers import first_line_of

        raise BenchError(
            f"cannot push to {arguments.repo}: {first_line_of(error) or type(error).__name__}",
            "log in with `hf auth login`; --dry-run FOLDER writes the files alone",
        ) from error
    show(str(done.commit_url))
