"""Tokens a step of the arms of `arms.sh`, by task, seeds pooled, and how much more than EAGLE's: python results/arms.py
results/float32-arms. Tasks weigh equally; the interval is a paired bootstrap over each task's prompts."""

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from tabulate import tabulate

from fspad_bench.record import Records
from fspad_bench.registry import Label

DRAWS, BASELINE = 4000, "eagle"

records = Records.read(*sorted(Path(sys.argv[1]).glob("*.jsonl")))
counts = defaultdict(lambda: defaultdict(lambda: np.zeros(2)))  # (temperature, arm, task) -> prompt -> tokens, forwards
for sample in records.samples:
    key = records.keys[sample.key]
    arm = Label.of(key.decoder).shown.rpartition("-")[0]
    if arm:
        counts[key.temperature, arm, key.task][sample.sample] += (sum(sample.committed), sample.forwards)
for heat in sorted({heat for heat, _, _ in counts}):
    tasks = sorted({task for at, _, task in counts if at == heat})
    table, dice = {}, np.random.default_rng(0)
    picks = {
        task: dice.integers(len(x), size=(DRAWS, len(x))) for task in tasks for x in [counts[heat, BASELINE, task]]
    }
    for arm in sorted({arm for at, arm, _ in counts if at == heat}):
        each = {
            task: np.array([counts[heat, arm, task][p] for p in sorted(counts[heat, BASELINE, task])]) for task in tasks
        }
        drawn = [each[task][picks[task]].sum(1) for task in tasks]
        means = [x.sum(0)[0] / x.sum(0)[1] for x in each.values()]
        table[arm] = means, np.mean([x[:, 0] / x[:, 1] for x in drawn], axis=0)
    grid = []
    for arm, (means, drawn) in table.items():
        low, high = np.quantile(drawn - table[BASELINE][1], [0.025, 0.975])
        more = np.mean(means) - np.mean(table[BASELINE][0])
        gain = "" if arm == BASELINE else f"{more:+.3f} [{low:+.3f}, {high:+.3f}]"
        grid.append([arm, *(f"{mean:.2f}" for mean in means), f"{np.mean(means):.3f}", gain])
    print(
        f"T = {heat:g}\n\n" + tabulate(grid, ["arm", *tasks, "mean", "over eagle (95%)"], "pipe", disable_numparse=True)
    )
