"""Rank the decoders of a record by their mean speedup over its tasks: results/LEADERBOARD.md.

python results/leaderboard.py results/bfloat16-all > results/LEADERBOARD.md
"""

import sys
from pathlib import Path

from fspad_bench.benchmark.record import VANILLA, Records
from fspad_bench.benchmark.rows import rows
from fspad_bench.benchmark.titles import names_of
from fspad_bench.publishing.cells import figure, mean_cell
from fspad_bench.publishing.sources import sources
from fspad_bench.publishing.standings import Standing, Standings, standings
from fspad_bench.util.grid import grid

HEADER = ["decoder", "speedup (95%)", "no loops (95%)", "tokens/step (95%)"]
HEAD = """# Leaderboard

Mean speedup over vanilla decoding, each task weighing the same, the fastest first; then the speedup
on each task. An interval covers the choice of prompts. `~` marks times that are not to be quoted,
since other work was running. *no loops* leaves out outputs that end in a loop ([reading a
row](../docs/reading-a-row.md)).

Only rows of one record stand here, measured in one run on one machine. What others have published
is in `baselines/`, and on the page that `fspad-bench page` writes, in a section of its own.

This file is written from `{folder}` (sha256 {hashes}) and never edited:

```sh
python results/leaderboard.py {folder} > results/LEADERBOARD.md
```
"""


def leaderboard(folder: Path) -> str:
    """Return the leaderboard of a record's folder as Markdown."""
    paths = sorted(folder.glob("*.jsonl"))
    table = rows(Records.read(*paths))
    hashes = ", ".join(source.sha256[:12] for source in sources(paths))
    head = HEAD.format(folder=f"results/{folder.name}", hashes=hashes)
    return "\n".join([head, *map(_setting, standings(table, names_of(table)))])


def _setting(own: Standings) -> str:
    first = own.first
    counts = sorted({row["samples"] for standing in own.decoders for row in standing.rows})
    prompts = " to ".join(str(count) for count in {counts[0]: 0, counts[-1]: 0})
    where = f"{own.place} · {first['data_source']} · {prompts} prompts a task"
    title = f"## {own.sampling}\n\n{where} · {first['max_new_tokens']} tokens"
    header = [*HEADER, *own.tasks, "verdicts"]
    body = [_line(standing) for standing in own.decoders]
    sides = ["left", *["right"] * (len(header) - 2), "left"]
    return f"{title}\n\n{grid(body, header, is_markdown=True, sides=sides)}\n"


def _line(standing: Standing) -> list[str]:
    plain = standing.rows[0]["decoder"] == VANILLA
    figures = ("speedup", "speedup_without_loops", "tokens_per_step")
    means = [
        mean_cell(
            standing.mean(name),
            noisy=standing.noisy and name != "tokens_per_step",
            plain=plain,
        )
        for name in figures
    ]
    texts = [f"{cell.text} {cell.interval}".strip() for cell in means]
    tasks = [figure(row, "speedup", timed=True).text for row in standing.rows]
    return [standing.name, *texts, *tasks, standing.verdicts]


if __name__ == "__main__":
    print(leaderboard(Path(sys.argv[1])), end="")
