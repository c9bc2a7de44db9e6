"""Read the documents: fenced blocks, the commands in them, tables."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "results" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
BLOCK = re.compile(r"(?:<!-- not run by tests: (.*?) -->\n)?```(\w*)\n(.*?)```", re.S)

OURS = {
    "my_decoder": "README.md",
    "n_gram": "docs/adding-a-decoder.md",
    "my_engine": "docs/adding-a-decoder.md",
}
"""Modules of the examples, and the documents that they stand in."""


class Block(NamedTuple):
    """A fenced block; `excuse` is the reason why no test runs it."""

    document: Path
    language: str
    text: str
    excuse: str


class Command(NamedTuple):
    """A command line of `fspad-bench`, without its name; `line` is as the document has it."""

    line: str
    arguments: list[str]
    excuse: str


def text_of(path):
    return path.read_text(encoding="utf-8")


def blocks(language, documents=DOCUMENTS):
    """The blocks of one language, in the order of the documents."""
    return [
        Block(path, match[2], match[3], match[1] or "")
        for path in documents
        for match in BLOCK.finditer(text_of(path))
        if match[2] == language
    ]


def shell_lines(block):
    """The words of each command of a block: split at &&, without comments and variables set."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            command = words[:end]
            while command and re.fullmatch(r"[A-Z_]+=.*", command[0]):
                command = command[1:]
            if command:
                yield command
            words = words[end + 1 :]


def ours(words):
    """Return the arguments of `fspad-bench`, however it is started; None for another program."""
    if words[0] == "fspad-bench":
        return words[1:]
    if "-m" in words and words[words.index("-m") + 1] == "fspad_bench":
        return words[words.index("-m") + 2 :]
    return None


def commands():
    """Every command of `fspad-bench` in the documents, each once."""
    every = {}
    for block in blocks("sh"):
        for words in shell_lines(block):
            arguments = ours(words)
            if arguments is not None:
                line = shlex.join(words)
                every.setdefault(line, Command(line, arguments, block.excuse))
    return list(every.values())


def table_rows(text):
    """The cells of every table row of a Markdown text, without bold marks and code marks."""
    return [
        [cell.strip().strip("`*") for cell in line.strip().strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]


def examples(language="python"):
    """file name -> text of the blocks that begin with a comment naming a file."""
    return {
        match[1]: block.text
        for block in blocks(language)
        if (match := re.match(r"# (\w+\.\w+)\n", block.text))
    }


def write_examples(folder):
    for name, text in (examples() | examples("yaml")).items():
        (folder / name).write_text(text)
    (question,) = blocks("json", [ROOT / "docs" / "adding-a-task.md"])
    (folder / "my_questions.jsonl").write_text(question.text)
