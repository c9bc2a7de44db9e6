"""Records of runs that never were, with the spread of real ones.

- Prompts differ in length, in how well a decoder drafts and in the state of the machine, which
  vanilla and the decoder of one prompt share.
- Each time has its own noise, and some have a burst of other work in them.
"""

from dataclasses import replace

import numpy as np
from by_hand import KEY

from fspad_bench.benchmark.record import Records, Sample

SECONDS_A_STEP = 0.04
DECODERS = ("fast", "faster")
TASKS = ("gsm8k", "nq", "wmt")


def synthetic(
    seed,
    *,
    prompts=24,
    slower=1.0,
    loss=0.0,
    noise=0.05,
    bursts=0.01,
    tasks=TASKS,
    decoders=DECODERS,
    copies=(),
    **about,
):
    """Return the records of a run.

    `slower` is the factor of each decoder's seconds and `loss` its loss of tokens per step.
    Prompts and steps are the same for every seed, times are not. `copies` are decoders as fast as
    vanilla; `about` are fields of the keys.
    """
    records = Records(complete=True)
    rng = np.random.default_rng(seed)
    for number, task in enumerate(tasks):
        every = {
            name: replace(
                KEY,
                task=task,
                decoder=name,
                options={"depth": 3} if name in decoders else {},
                **about,
            )
            for name in ("vanilla", *decoders, *copies)
        }
        hashes = {name: key.hash for name, key in every.items()}
        records.keys.update(zip(hashes.values(), every.values(), strict=True))
        drafts = np.random.default_rng(number)
        lengths = drafts.integers(20, 100, prompts)
        rates = drafts.lognormal(0.7, 0.3, (prompts, len(decoders)))
        for prompt, length in enumerate(map(int, lengths)):
            state = rng.lognormal(0, 0.15)
            steps = dict.fromkeys(("vanilla", *copies), length - 1)
            for name, rate in zip(decoders, rates[prompt], strict=True):
                steps[name] = round((length - 1) / max(1.0, rate - loss))
            for name, count in steps.items():
                burst = rng.uniform(1.2, 2) if rng.random() < bursts else 1.0
                factor = slower if name in decoders else 1.0
                seconds = SECONDS_A_STEP * count * state * rng.lognormal(0, noise) * burst * factor
                place = (f"{task}-{prompt}", f"{task}{prompt}")
                records.samples.append(_sample(hashes[name], *place, length, count, seconds))
    return records


def _sample(key_hash, name, prompt, length, steps, seconds):
    whole, more = divmod(length - 1, steps)
    return Sample(
        key_hash,
        name,
        0,
        f"r-{name}",
        prompt_tokens=5,
        prompt_sha256=prompt,
        tokens=list(range(length)),
        committed=[whole + 1] * more + [whole] * (steps - more),
        drafted=[4] * steps,
        forwards=steps,
        prefill_seconds=0.1,
        decode_seconds=seconds,
        draft_seconds=0.0,
        score_seconds=0.0,
    )
