"""How near trees sized by the machine come to the best fixed size of each task, from a run of `trees.sh`:
python results/trees.py FOLDER. Speedups over vanilla are those of the tables."""

import sys
from collections import defaultdict
from pathlib import Path

from tabulate import tabulate

from fspad_bench.benchmark.record import Records
from fspad_bench.benchmark.rows import rows
from fspad_bench.decoders.registry import Label

speeds = defaultdict(dict)  # (temperature, task) -> name -> (speedup, tokens a step)
for row in rows(Records.read(*sorted(Path(sys.argv[1]).glob("*.jsonl")))):
    name = Label.of(row["decoder"]).shown
    if name != "vanilla":
        speeds[row["temperature"], row["task"]][name] = row["speedup"], row["tokens_per_step"]
grid = []
for (heat, task), found in sorted(speeds.items()):
    auto, steps = found.pop("auto")
    best = max(found, key=lambda name: found[name][0])
    speed, best_steps = found[best]
    line = [
        f"{heat:g}",
        task,
        f"{auto:.3f}",
        f"{steps:.2f}",
        best,
        f"{speed:.3f}",
        f"{best_steps:.2f}",
    ]
    grid.append([*line, f"{auto / speed:.3f}"])
heads = [
    "T",
    "task",
    "auto: speedup",
    "tokens/step",
    "best fixed",
    "speedup",
    "tokens/step",
    "auto / best",
]
print(tabulate(grid, heads, "pipe", disable_numparse=True))
