"""Tabulate tokens per step of draft heads by task, and their gain over EAGLE's.

    python results/variants.py results/bfloat16-all

- Seeds, NAME-0 and NAME-1, are pooled; tasks weigh equally.
- The interval is a paired bootstrap over each task's prompts.
- The last column is the time of drafting over the time of the target's forwards.
"""

import re
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from tabulate import tabulate

from fspad_bench.benchmark.record import Records
from fspad_bench.decoders.label import Label

DRAWS = 4000
BASELINE = "eagle"


def count(folder: Path) -> dict[tuple[float, str, str], dict[str, np.ndarray]]:
    """Sum a record by (temperature, variant, task) and prompt.

    The sums are tokens, forwards, seconds of drafting and seconds of forwards: `[4]`.
    """
    records = Records.read(*sorted(folder.glob("*.jsonl")))
    counts = defaultdict(lambda: defaultdict(lambda: np.zeros(4)))
    for sample in records.samples:
        key = records.keys[sample.key]
        variant = re.sub(r"-\d+$", "", Label.of(key.decoder).shown)
        if variant != "vanilla":
            counts[key.temperature, variant, key.task][sample.sample] += (
                sum(sample.committed),
                sample.forwards,
                sample.draft_seconds or 0.0,
                sample.score_seconds or 0.0,
            )
    return counts


def table(counts: dict[tuple[float, str, str], dict[str, np.ndarray]], temperature: float) -> str:
    """Return the table of one temperature."""
    tasks = sorted({task for t, _, task in counts if t == temperature})
    variants = sorted({variant for t, variant, _ in counts if t == temperature})
    prompts = {task: sorted(counts[temperature, BASELINE, task]) for task in tasks}
    generator = np.random.default_rng(0)
    picks = {task: generator.integers(len(x), size=(DRAWS, len(x))) for task, x in prompts.items()}
    totals = {}
    draws = {}  # the mean over tasks of every bootstrap draw: [DRAWS]
    for variant in variants:
        samples = {
            task: np.array([counts[temperature, variant, task][p] for p in prompts[task]])
            for task in tasks
        }
        totals[variant] = np.array([x.sum(0) for x in samples.values()])
        drawn = np.array([samples[task][picks[task]].sum(1) for task in tasks])
        draws[variant] = (drawn[..., 0] / drawn[..., 1]).mean(0)
    means = {variant: x[:, 0] / x[:, 1] for variant, x in totals.items()}
    lines = []
    for variant in variants:
        gain = ""
        if variant != BASELINE:
            low, high = np.quantile(draws[variant] - draws[BASELINE], [0.025, 0.975])
            difference = np.mean(means[variant]) - np.mean(means[BASELINE])
            gain = f"{difference:+.3f} [{low:+.3f}, {high:+.3f}]"
        drafting = totals[variant][:, 2].sum() / totals[variant][:, 3].sum()
        cells = [f"{mean:.2f}" for mean in means[variant]]
        lines.append([variant, *cells, f"{np.mean(means[variant]):.3f}", gain, f"{drafting:.0%}"])
    names = ["variant", *tasks, "mean", "over eagle (95%)", "draft / forward"]
    return tabulate(lines, names, "pipe", disable_numparse=True)


if __name__ == "__main__":
    sums = count(Path(sys.argv[1]))
    for temperature in sorted({temperature for temperature, _, _ in sums}):
        print(f"T = {temperature:g}\n\n{table(sums, temperature)}\n")
