"""Which conversations of a data set share ten words in a row with an evaluation prompt."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from fspad_bench.benchmark import tasks as task
from fspad_bench.distill.writer import rows_of, shard_files

WORDS = 10
SHOWN = 10
REPORT = "overlap.json"
WORD = re.compile(r"\w+")


def ngrams(text: str) -> set[tuple[str, ...]]:
    """Every run of ten words of a text, in lower case, whatever stands between them."""
    words = WORD.findall(text.lower())
    return {tuple(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1)}


def task_prompts(sources: Sequence[str]) -> dict[str, list[str]]:
    """`task@source` -> what is asked there: every task's questions, of each source that has any for it."""
    prompts = {}
    for name in task.card_names():
        card = task.load_card(name)
        for source in sources:
            if source.startswith(task.SPEC_BENCH) and not card.spec_bench:
                continue
            questions = task.load(card, source, None).questions
            prompts[f"{name}@{source}"] = [
                turn for question in questions for turn in question.turns
            ]
    return prompts


def report(
    folder: Path, tokenizer: PreTrainedTokenizerBase, prompts: dict[str, list[str]]
) -> dict[str, Any]:
    """Compare every row with every prompt, and write what was found beside the shards."""
    known = {name: set().union(*map(ngrams, texts)) for name, texts in prompts.items()}
    counts = dict.fromkeys(prompts, 0)
    shared = []
    total = 0
    for path in shard_files(folder):
        for number, row in enumerate(rows_of(path), start=1):
            total += 1
            found = ngrams(tokenizer.decode(row["tokens"], skip_special_tokens=True))
            for name, those in known.items():
                if common := found & those:
                    counts[name] += 1
                    shared.append(
                        {
                            "row": f"{path.name}:{number}",
                            "task": name,
                            "words": " ".join(min(common)),
                        }
                    )
    result = {
        "words": WORDS,
        "rows": total,
        "prompts": {name: len(texts) for name, texts in prompts.items()},
        "rows_sharing": counts,
        "examples": shared[:SHOWN],
    }
    (folder / REPORT).write_text(
        json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    return result


def summary(result: dict[str, Any]) -> Iterable[str]:
    """A line a task that shares anything, or one that says that none does."""
    sharing = {name: count for name, count in result["rows_sharing"].items() if count}
    yield from (
        f"{count} of {result['rows']} rows share {WORDS} words with {name}"
        for name, count in sharing.items()
    )
    if not sharing:
        sources = ", ".join(sorted({name.partition("@")[2] for name in result["prompts"]}))
        count = sum(result["prompts"].values())
        yield f"no row shares {WORDS} words with any of {count} evaluation prompts ({sources})"
