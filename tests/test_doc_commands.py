"""The commands of the documents are true: they parse, they run, and name no flag that is not there.

They run in one sandbox folder that holds the files they name, on the tiny target and at small
sizes. A block that no test can run has a comment before it that says why.
"""

import contextlib
import json
import re
import shlex
import shutil

import pytest
import torch
import yaml
from documents import (
    DOCUMENTS,
    OURS,
    ROOT,
    blocks,
    commands,
    shell_lines,
    table_rows,
    text_of,
    write_examples,
)

from fspad_bench.benchmark import processes
from fspad_bench.benchmark.record import Records
from fspad_bench.benchmark.rows import rows
from fspad_bench.benchmark.runner import Runner
from fspad_bench.benchmark.sweep import Outcome
from fspad_bench.cli.main import VERBS, main, module_of, parser
from fspad_bench.decoders.build import check_options
from fspad_bench.decoders.options import read_options
from fspad_bench.drafts.head import Head
from fspad_bench.drafts.network import architecture
from fspad_bench.drafts.shape import Shape
from fspad_bench.integrations.pytest_plugin import pytest_addoption
from fspad_bench.serving.double.__main__ import parser as double_parser

COMMANDS = commands()
RUNNABLE = [command for command in COMMANDS if not command.excuse]
OTHERS = {
    "bash", "python", "pip", "pytest", "tox", "torchrun", "accelerate",
    "results/variants.sh", "results/trees.sh", "results/gpu.sh", "results/served.sh",
    "results/anchor.sh",
}  # fmt: skip
FOREIGN_FLAGS = {
    "--nproc-per-node", "--index-url",
    "--model_args", "--tasks", "--apply_chat_template", "--log_samples",  # of lm-eval
    "--per-request-spec-decode-metrics", "--enable-deterministic-inference",  # of vLLM, SGLang
}  # fmt: skip
SMALL = {
    "run": "--target tiny --device cpu --dtype float64 --limit 1 --max-new-tokens 6 --threads 1",
    "sweep": "--target tiny --device cpu --dtype float64 --limit 1 --max-new-tokens 6 --no-aa",
    "profile": "--device cpu --dtype float64 --limit 1 --max-new-tokens 6 --threads 1",
    "throughput": "--target tiny --device cpu --limit 1 --max-new-tokens 4 --threads 1",
    "distill": "--target tiny --device cpu --rows 8 --shard 4 --threads 1",
    "train": "--target tiny --device cpu --threads 1",
    "export": "--target tiny",
    "invariance": "--target tiny --device cpu --dtype float64 --rows 1 --prefix 9 --threads 1",
}
STEPS = "--epochs 1 --batch-tokens 256"  # of a training; a table has none
TOKENS = "300"
QUESTION = {"question_id": 1, "turns": ["who wrote it"], "reference": [["42"]]}
CATEGORIES = ("qa", "rag", "translation", "summarization", "math_reasoning", "writing")
SPOKEN = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z_-]+")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.line)
def test_commands_parse(command):
    arguments = parser().parse_args(command.arguments)
    names_decoders = not {"--like", "--served"} & set(command.arguments)
    if command.arguments[0] in ("run", "certify", "profile") and names_decoders:
        labels = [x for x in arguments.decoder.split(",") if x.split(":")[0] not in OURS]
        options = {
            name: chosen
            for name, chosen in read_options(arguments.options).items()
            if name.split(":")[0] not in OURS
        }
        check_options([] if labels == ["all"] else labels, options)
    assert_prompts_are_named(command.arguments)


def assert_prompts_are_named(words):
    """Assert that a certification of a served engine says where its prompts come from."""
    if words[0] == "certify" and "--served" in words:
        assert {"--tokenizer", "--prompts"} & set(words), words


def test_examples_of_the_help_parse():
    helps = {"": parser(), **verbs()}
    for verb, help_ in helps.items():
        title, *lines = help_.epilog.splitlines()
        assert title == "examples:"
        assert lines
        for line in lines:
            program, *words = shlex.split(line.partition(" > ")[0])
            assert program == "fspad-bench"
            assert parser().parse_args(words)
            assert verb in ("", words[0])
            assert_prompts_are_named(words)


def test_every_verb_stands_in_the_table_of_verbs():
    text = text_of(ROOT / "docs" / "command-line.md")
    listed = {row[0].split("]")[0].strip("[`") for row in table_rows(text) if "](#" in row[0]}
    assert listed == set(verbs())


def test_a_sweep_has_the_flags_of_a_run_that_the_document_says():
    flags = {
        verb: {flag for action in verbs()[verb]._actions for flag in action.option_strings}
        for verb in ("run", "sweep")
    }
    text = " ".join(text_of(ROOT / "docs" / "command-line.md").split())
    assert flags["run"] - flags["sweep"] == {"--like", "--plan"}
    assert "The flags are those of `run`, but for `--like` and `--plan`" in text


def test_verbs_that_may_fail_are_named_with_their_exit_code():
    rows_of_codes = table_rows(text_of(ROOT / "docs" / "command-line.md"))
    (meaning,) = (row[1] for row in rows_of_codes if row[0] == "1")
    failing = {name for name in VERBS if hasattr(module_of(name), "FAILED")}
    assert failing >= {"sweep", "throughput"}
    assert [name for name in failing if f"`{name}`" not in meaning] == []


def test_no_other_program_is_called_than_those_we_know():
    for block in blocks("sh"):
        for words in shell_lines(block):
            if words[0] != "fspad-bench":
                assert words[0] in OTHERS, words
                assert not words[0].startswith("results/") or (ROOT / words[0]).is_file()


def test_flags_that_documents_mention_exist():
    known = {flag for verb in verbs().values() for a in verb._actions for flag in a.option_strings}
    known |= {flag for action in double_parser()._actions for flag in action.option_strings}
    known |= plugin_flags() | FOREIGN_FLAGS
    for path in DOCUMENTS:
        text = re.sub(r"<!--.*?-->|^\|[:\s|-]+$", "", text_of(path), flags=re.M)
        assert set(FLAG.findall(text)) <= known, path


def verbs():
    """name -> parser of each verb."""
    (actions,) = (a for a in parser()._actions if getattr(a, "choices", None))
    return actions.choices


def plugin_flags():
    """The flags that the pytest plugin adds."""
    flags = set()

    class Group:
        def addoption(self, name, **_):
            flags.add(name)

    class Parser:
        def getgroup(self, *_):
            return Group()

    pytest_addoption(Parser())
    return flags


@pytest.fixture(scope="module")
def sandbox(tiny, shorten, tmp_path_factory):
    """A folder with all the files that commands of the documents name."""
    folder = tmp_path_factory.mktemp("sandbox")
    write_examples(folder)
    questions = [QUESTION | {"question_id": i, "category": c} for i, c in enumerate(CATEGORIES)]
    for name in ("question.jsonl", "question_odd.jsonl"):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in questions))
    spoken = [json.dumps({"messages": SPOKEN}) + "\n"] * 6
    (folder / "conversations.jsonl").write_text("".join(spoken))
    for name in ("my-head", "wide-head"):
        decoder = "wide" if name == "wide-head" else "fspad"
        network = architecture(decoder)(Shape.of_target(tiny.config))
        about = {"decoder": decoder}
        vocabulary = torch.arange(tiny.config.vocab_size)
        Head(network, vocabulary, tiny.name, tiny.identity, about).save(folder / name)
    kind = architecture("draft_model")
    model = kind.build(kind.shape_for(tiny.config), tiny)
    Head(model, vocabulary, tiny.name, tiny.identity).save(folder / "my-model")
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        distill = "distill --target tiny --device cpu --rows 8 --shard 4 --threads 1"
        assert main([*distill.split(), "--output", "my-data", "--tokens", TOKENS]) == 0
        given = ["--output", "given-data", "--of", "conversations.jsonl"]
        assert main([*distill.split(), *given]) == 0
        table = "train --decoder aded --data my-data --output my-table"
        assert main([*table.split(), *SMALL["train"].split()]) == 0
        published = "export my-head --target tiny --output published-head"
        assert main(published.split()) == 0
        run = "run --target tiny --decoder prompt_lookup --task gsm8k --data bundled --limit 1"
        assert main([*run.split(), "--max-new-tokens", "4"]) == 0
    for name in ("before", "after"):
        shutil.copytree(folder / "fspad-results", folder / name)
    return folder


def reduced(command):
    """The same command on the tiny target, at small sizes, its output in a new folder."""
    words = list(command.arguments)
    verb = words[0]
    if verb == "train" and "--init" not in words:
        words += ["--tokens", TOKENS]
    if verb == "train" and "aded" not in words:
        words += STEPS.split()
        words += [] if "--init" in words else ["--draft-vocabulary", "40"]
    if verb == "distill" and "--of" not in words:
        words += ["--tokens", TOKENS]
    if verb in ("distill", "train", "export", "run"):
        words += ["--output", "out"]
    if verb in ("run", "sweep") and "--data" not in words:
        short = "spec-bench=question.jsonl"
        words += ["--data", short if "--task all" in command.line else "bundled"]
    if verb == "profile" and "--target" not in words:
        words += ["--target", "tiny"]
    return words + SMALL.get(verb, "").split()


def in_this_process(cell, folder, environment=None, started=None):
    """A cell of a sweep, run by this process."""
    Runner(cell.plan, folder).run()
    return Outcome(cell, 0)


@pytest.mark.sampled(8)
@pytest.mark.parametrize(
    "command",
    [c for c in RUNNABLE if c.arguments[0] != "certify"],  # see the test of the examples
    ids=lambda command: command.line,
)
def test_commands_run(
    command, sandbox, quick_runs, shorten, tmp_path, imported, monkeypatch, capsys
):
    shorten(monkeypatch)
    monkeypatch.setattr(processes, "perform", in_this_process)
    shutil.copytree(sandbox, tmp_path / "here")
    imported(tmp_path / "here")
    monkeypatch.setenv("FSPAD_BENCH_CACHE", str(tmp_path / "cache"))
    assert main(reduced(command)) == 0, capsys.readouterr().err
    assert capsys.readouterr().out or command.arguments[0] == "export"


def test_the_workflow_calls_commands_that_parse():
    (workflow,) = (b for b in blocks("yaml") if "runs-on" in b.text and not b.excuse)
    steps = yaml.safe_load(workflow.text)["jobs"]["lossless"]["steps"]
    lines = [shlex.split(step["run"]) for step in steps if "run" in step]
    assert [words[0] for words in lines] == ["pip", "fspad-bench", "fspad-bench"]
    for words in lines[1:]:
        *command, arrow, report = words
        assert (arrow, report[-4:]) == (">", ".xml")
        arguments = parser().parse_args(command[1:])
        assert arguments.format == "junit"
    names = {match[1] for b in blocks("yaml") if (match := re.match(r"# (\S+)\n", b.text))}
    assert {word for words in lines for word in words if word.endswith(".yaml")} <= names


def test_the_workflow_of_served_engines_calls_a_command_that_parses():
    (workflow,) = (b for b in blocks("yaml") if "runs-on" in b.text and b.excuse)
    steps = yaml.safe_load(workflow.text)["jobs"]["served"]["steps"]
    (line,) = (step["run"] for step in steps if step.get("run", "").startswith("fspad-bench"))
    *command, arrow, report = shlex.split(line)
    assert (arrow, report) == (">", "served.xml")
    assert parser().parse_args(command[1:]).served == "http://localhost:8000"


def test_every_field_of_a_row_is_explained(sandbox):
    (path,) = (sandbox / "fspad-results").glob("*.jsonl")
    text = text_of(ROOT / "docs" / "reading-a-row.md")
    assert [name for name in rows(Records.read(path))[0] if f"`{name}`" not in text] == []
