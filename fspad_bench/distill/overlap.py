"""The overlap report: rows of a data set that share ten words with an evaluation prompt.

The caller passes the prompts in, as `task@source` -> texts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from fspad_bench.distill.shards import read_rows, shard_files
from fspad_bench.util.paths import write_atomically

WORDS = 10
EXAMPLES = 10
REPORT = "overlap.json"
WORD = re.compile(r"\w+")

Prompts = Mapping[str, Sequence[str]]
NGram = tuple[str, ...]


def ngrams(text: str) -> set[NGram]:
    """Return every run of `WORDS` words of a text, in lower case, whatever separates the words."""
    words = WORD.findall(text.lower())
    return {tuple(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1)}


def report(folder: Path, tokenizer: PreTrainedTokenizerBase, prompts: Prompts) -> dict[str, Any]:
    """Compare every row of the data set with every prompt; write the report next to the shards."""
    known: dict[str, set[NGram]] = {
        name: set().union(*map(ngrams, texts)) for name, texts in prompts.items()
    }
    counts = dict.fromkeys(prompts, 0)
    examples = []
    total = 0
    for path in shard_files(folder):
        for number, row in enumerate(read_rows(path), start=1):
            total += 1
            text = tokenizer.decode(row["tokens"], skip_special_tokens=True)
            own = ngrams(str(text))
            for name in prompts:
                if shared := own & known[name]:
                    counts[name] += 1
                    words = " ".join(min(shared))
                    examples.append({"row": f"{path.name}:{number}", "task": name, "words": words})
    result = {
        "words": WORDS,
        "rows": total,
        "prompts": {name: len(texts) for name, texts in prompts.items()},
        "rows_sharing": counts,
        "examples": examples[:EXAMPLES],
    }
    text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / REPORT, text)
    return result


def summary(result: dict[str, Any]) -> Iterator[str]:
    """Yield one line per task that shares words with a row, or one line if none does."""
    sharing = {name: count for name, count in result["rows_sharing"].items() if count}
    for name, count in sharing.items():
        yield f"{count} of {result['rows']} rows share {WORDS} words with {name}"
    if not sharing:
        sources = ", ".join(sorted({name.partition("@")[2] for name in result["prompts"]}))
        count = sum(result["prompts"].values())
        yield f"no row shares {WORDS} words with any of {count} evaluation prompts ({sources})"
