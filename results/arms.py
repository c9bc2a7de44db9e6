"""Tokens a step of draft heads, by task, and how much more than EAGLE's: python results/arms.py results/bfloat16-all.
Seeds, NAME-0 and NAME-1, are pooled. Tasks weigh equally; the interval is a paired bootstrap over each task's prompts.
The last column is what drafting costs beside the target's forwards."""

import re
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from tabulate import tabulate

from fspad_bench.benchmark.record import Records
from fspad_bench.decoders.registry import Label

DRAWS = 4000
BASELINE = "eagle"

records = Records.read(*sorted(Path(sys.argv[1]).glob("*.jsonl")))
# (temperature, arm, task) -> prompt -> tokens, forwards, seconds of drafting and of forwards
counts = defaultdict(lambda: defaultdict(lambda: np.zeros(4)))
for sample in records.samples:
    key = records.keys[sample.key]
    arm = re.sub(r"-\d+$", "", Label.of(key.decoder).shown)
    if arm != "vanilla":
        found = sum(sample.committed), sample.forwards, sample.draft_seconds, sample.score_seconds
        counts[key.temperature, arm, key.task][sample.sample] += found
for heat in sorted({heat for heat, _, _ in counts}):
    tasks = sorted({task for at, _, task in counts if at == heat})
    prompts = {task: sorted(counts[heat, BASELINE, task]) for task in tasks}
    dice = np.random.default_rng(0)
    picks = {task: dice.integers(len(x), size=(DRAWS, len(x))) for task, x in prompts.items()}
    table = {}
    for arm in sorted({arm for at, arm, _ in counts if at == heat}):
        each = {
            task: np.array([counts[heat, arm, task][p] for p in prompts[task]]) for task in tasks
        }
        totals = np.array([x.sum(0) for x in each.values()])
        drawn = np.array([each[task][picks[task]].sum(1) for task in tasks])
        table[arm] = totals, (drawn[..., 0] / drawn[..., 1]).mean(0)
    grid = []
    eagle = table[BASELINE]
    for arm, (totals, drawn) in table.items():
        means = totals[:, 0] / totals[:, 1]
        low, high = np.quantile(drawn - eagle[1], [0.025, 0.975])
        more = np.mean(means) - np.mean(eagle[0][:, 0] / eagle[0][:, 1])
        gain = "" if arm == BASELINE else f"{more:+.3f} [{low:+.3f}, {high:+.3f}]"
        draft = totals[:, 2].sum() / totals[:, 3].sum()
        grid.append(
            [arm, *(f"{mean:.2f}" for mean in means), f"{np.mean(means):.3f}", gain, f"{draft:.0%}"]
        )
    names = ["arm", *tasks, "mean", "over eagle (95%)", "draft / forward"]
    print(f"T = {heat:g}\n\n{tabulate(grid, names, 'pipe', disable_numparse=True)}\n")
