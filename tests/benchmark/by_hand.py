"""Records made by hand, and their parts."""

from dataclasses import replace

from fspad_bench.benchmark.record import Audit, Key, Records, Sample
from fspad_bench.benchmark.record_file import RecordFile
from fspad_bench.benchmark.rows import rows

KEY = Key(
    target="tiny",
    target_identity="tiny-1",
    task="gsm8k",
    data_source="bundled",
    data_sha256="ab" * 32,
    decoder="vanilla",
    options={},
    temperature=0.0,
    top_p=1.0,
    top_k=0,
    seed=0,
    max_new_tokens=16,
    dtype="float64",
    forward="stock",
    device="cpu",
    threads=1,
    machine="a machine",
    version="0.1.0",
    source_sha256="01" * 32,
    target_sha256="05" * 32,
    template_sha256="02" * 32,
    tokenizer_sha256="03" * 32,
    card_sha256="04" * 32,
    torch="2.13.0",
)
SAMPLE = Sample(
    key=KEY.hash,
    sample="one",
    turn=1,
    round="r",
    prompt_tokens=3,
    prompt_sha256="cd",
    tokens=[1, 2, 3],
    committed=[2],
    drafted=[4],
    forwards=1,
    partial_forwards=2,
    prefill_seconds=0.1,
    decode_seconds=0.1 + 0.2,
    draft_seconds=1e-9,
    score_seconds=0.02,
    verify_seconds=0.003,
    depths=[2],
    ranks=[[3]],
    refused=[0],
    other_load=0.5,
    peak_memory=12345,
    prompt="Grüße 🦆 \u2028 \n end",
    text="ok",
)
AUDIT = Audit(KEY.hash, "one", 1, "r", 2, [0.0, 1e-7], [0.0, 3e-8], 5e-8)


VANILLA = KEY
FAST = replace(KEY, decoder="fast", options={"depth": 3})


def sample(key, name, tokens, decode, *, prefill=0.1, turn=0, round_="r", **more):
    """Return a generation of `tokens` (a list, or their number) in `decode` seconds."""
    tokens = list(range(tokens)) if isinstance(tokens, int) else tokens
    times = {"prefill_seconds": prefill, "decode_seconds": decode}
    times |= {"draft_seconds": 0.0, "score_seconds": 0.0}
    return Sample(key.hash, name, turn, round_, tokens=tokens, **(times | more))


def records(*samples, keys=(VANILLA, FAST), audits=(), scores=None):
    """Return records of these lines; `scores` go by decoder."""
    by_hash = {key.hash: key for key in keys}
    scored = {
        name: scores[key.decoder] for name, key in by_hash.items() if key.decoder in (scores or {})
    }
    return Records(
        keys=by_hash, samples=list(samples), audits=list(audits), scores=scored, complete=True
    )


def row_of(table, decoder="fast"):
    (row,) = [row for row in table if row["decoder"] == decoder]
    return row


def two_prompts(**more):
    """Return two prompts by two decoders, prefill 0.1 s each.

    vanilla takes 1 s for 10 tokens and 2.5 s for 20, fast 0.5 s and 1.25 s for the same tokens.
    """
    return [
        sample(VANILLA, "a", 10, 1.0, committed=[1] * 9, forwards=9),
        sample(
            FAST,
            "a",
            10,
            0.5,
            committed=[3, 3, 3],
            drafted=[4, 4, 4],
            forwards=3,
            draft_seconds=0.1,
            **more,
        ),
        sample(
            FAST, "b", 20, 1.25, committed=[4, 4, 4, 4, 2, 1], forwards=6, score_seconds=0.7, **more
        ),
        sample(VANILLA, "b", 20, 2.5, committed=[1] * 19, forwards=19),
    ]


def differing(regret, error, round_="r", **more):
    samples = [sample(VANILLA, "a", 10, 1.0), sample(FAST, "a", [*range(9), 99], 1.0)]
    audit = Audit(FAST.hash, "a", 0, round_, 9, [0.0] * 9 + [regret], [0.0] * 10, error)
    return rows(records(*samples, audits=[audit], **more))


def written_record(path, *samples):
    """Return a record that holds `KEY` and these samples, which is still open."""
    written = RecordFile(path, {"plan": {"limit": None}, "note": "ä"})
    written.key(KEY)
    for sample in samples:
        written.add(sample)
    return written
