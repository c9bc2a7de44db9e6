"""The README tells the truth: its commands parse, its file tree is the package's."""

import re
import shlex
from pathlib import Path

import pytest

from fspad_bench.cli.arguments import EPILOG
from fspad_bench.cli.main import parser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.S))
VERBS = "run|ls|table|train|distill|export|fetch|certify|check|profile"
COMMANDS = re.findall(rf"fspad-bench ((?:{VERBS})\b[^#`\n]*)", SHELL + EPILOG)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command):
    parser().parse_args(shlex.split(command))


def test_there_are_exactly_two_commands_to_set_up_everything():
    first = re.search(r"```sh\n(.*?)```", README, re.S)[1].strip().splitlines()
    assert [line.split("#")[0].strip() for line in first] == [
        "pip install . && fspad-bench run --decoder fspad --task gsm8k",
        "pip install tox && tox",
    ]


def test_the_file_tree_names_every_module_and_no_other():
    tree = re.search(r"```\nfspad_bench/\n(.*?)```", README, re.S)[1]
    named = set(re.findall(r"\b([a-z_]+\.py)\b", tree))
    present = {path.name for path in (ROOT / "fspad_bench").glob("*.py")} - {
        "__init__.py",
        "__main__.py",
    }
    assert named == present
    for folder in re.findall(r"\b([a-z_]+)/  ", tree):
        assert (ROOT / folder).is_dir() or (ROOT / "fspad_bench" / folder).is_dir(), folder
