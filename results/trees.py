"""Compare the speedup of adaptive trees with the best fixed size of each task (a run of trees.sh).

python results/trees.py results/bfloat16-trees
"""

import sys
from collections import defaultdict
from pathlib import Path

from tabulate import tabulate

from fspad_bench.benchmark.record import Records
from fspad_bench.benchmark.rows import rows
from fspad_bench.decoders.label import Label

NAMES = [
    "T",
    "task",
    "auto: speedup",
    "tokens/step",
    "best fixed",
    "speedup",
    "tokens/step",
    "auto / best",
]


def table(folder: Path) -> str:
    """Return the table of a record's folder."""
    speeds = defaultdict(dict)  # (temperature, task) -> name -> (speedup, tokens per step)
    for row in rows(Records.read(*sorted(folder.glob("*.jsonl")))):
        name = Label.of(row["decoder"]).shown
        if name != "vanilla":
            figures = row["speedup"], row["tokens_per_step"]
            speeds[row["temperature"], row["task"]][name] = figures
    lines = []
    for (temperature, task), by_name in sorted(speeds.items()):
        auto, auto_steps = by_name.pop("auto")
        best = max(by_name, key=lambda name: by_name[name][0])
        speed, steps = by_name[best]
        adaptive = [f"{auto:.3f}", f"{auto_steps:.2f}"]
        fixed = [best, f"{speed:.3f}", f"{steps:.2f}"]
        lines.append([f"{temperature:g}", task, *adaptive, *fixed, f"{auto / speed:.3f}"])
    return tabulate(lines, NAMES, "pipe", disable_numparse=True)


if __name__ == "__main__":
    print(table(Path(sys.argv[1])))
