"""The audit against its definition: regrets and margins by brute force, verdicts on good and bad
rules.
"""

import random
from functools import cache

import pytest
import torch

from fspad_bench.benchmark.audit import BANNED, Auditor, Recorder, gap, margins, regret, regrets
from fspad_bench.benchmark.record import Audit
from fspad_bench.benchmark.verdict import verdict
from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.models.tiny import tiny_model, tiny_tokenizer

CUTS = [
    (0, 1.0),
    (1, 1.0),
    (2, 1.0),
    (3, 1.0),
    (99, 1.0),
    (0, 0.9),
    (0, 0.5),
    (0, 0.1),
    (4, 0.8),
    (2, 0.6),
    (99, 0.7),
]
MIN_P = [(1.0, 0, 1.0, 0.2), (0.3, 0, 0.9, 0.05), (1.7, 4, 0.8, 0.3)]
LAWS = [(0.0, 0, 1.0), *((t, *cut) for t in (0.3, 1.0, 1.7) for cut in CUTS), *MIN_P]


def sampler_of(law, **more):
    """Return the sampler of (temperature, top-k, top-p) and, where there is a fourth, min-p."""
    return Sampler(*law[:3], min_p=sum(law[3:]), **more)


def cases(count, seed=0):
    """Yield random logits over small vocabularies, from flat to peaked, each with a position."""
    rng = random.Random(seed)
    for _ in range(count):
        size = rng.randint(2, 9)
        spread = rng.choice([0.1, 1.0, 4.0])
        yield (
            torch.tensor([rng.gauss(0, spread) for _ in range(size)], dtype=torch.float64),
            rng.randrange(5000),
        )


def kept(logits, token, sampler):
    return token in sampler.process(logits)[1].tolist()


def margin_by_shifting(logits, token, sampler):
    """Return how far a token's logit can fall before the real sampler cuts it, by shifting it."""

    def kept_at(value):
        moved = logits.clone()
        moved[token] = value
        return kept(moved, token, sampler)

    low = float(logits.min()) - 60
    high = float(logits.max()) + 60
    assert kept_at(high)
    if kept_at(low):
        return float("inf")
    for _ in range(42):  # to less than 1e-10
        middle = (low + high) / 2
        if kept_at(middle):
            high = middle
        else:
            low = middle
    return float(logits[token]) - high


@cache
def shifted(law):
    """Return logits, a position and each token's margin by shifting it, of some cases.

    A greedy sampler cuts nothing.
    """
    sampler = sampler_of(law)
    measured = []
    for logits, position in cases(2, seed=str(law)):
        margin = [float("inf")] * len(logits)
        if sampler.temperature:
            margin = [margin_by_shifting(logits, w, sampler) for w in range(len(logits))]
        measured.append((logits, position, margin))
    return measured


def regret_by_definition(z, margin, token):
    """Return the least e that explains a token (see `audit`), by bisection over e."""

    def explained(e):
        leads = all(z[token] + e >= z[w] - e for w in range(len(z)) if margin[w] > e)
        return leads and margin[token] >= -e

    if explained(0.0):
        return 0.0
    low = 0.0
    high = 200.0
    for _ in range(60):
        middle = (low + high) / 2
        if explained(middle):
            high = middle
        else:
            low = middle
    return high


@pytest.mark.sampled(4)
@pytest.mark.parametrize("law", LAWS)
def test_regret_is_its_definition(law):
    sampler = sampler_of(law, seed=1, stream="regret")
    for logits, position, margin in shifted(law):
        z = logits
        if sampler.temperature:
            z = (
                logits
                + sampler.temperature * sampler.noise(position, torch.arange(len(logits))).double()
            )
        for token in range(len(logits)):
            expected = regret_by_definition(z.tolist(), margin, token)
            assert regret(logits, token, position, sampler) == pytest.approx(expected, abs=1e-9)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("law", [law for law in LAWS if law[0] and law[1:] != (0, 1.0)])
def test_margins_agree_with_shifting_one_logit(law):
    sampler = sampler_of(law)
    for logits, _, by_shifting in shifted(law):
        found = margins(logits, range(len(logits)), sampler)
        for token, (margin, expected) in enumerate(zip(found, by_shifting, strict=True)):
            if expected == float("inf"):
                assert margin > 10 * sampler.temperature
            else:
                assert margin == pytest.approx(expected, abs=1e-9)
            assert (margin > 0) == kept(logits, token, sampler)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("law", LAWS)
def test_banned_tokens_leave_the_others_regrets_as_they_are(law):
    """A processor's -inf: a forbidden token has the largest regret, the others have their own."""
    sampler = sampler_of(law, seed=1, stream="regret")
    logits, position, _ = shifted(law)[0]
    allowed = torch.cat([logits, torch.full((2,), -torch.inf, dtype=torch.float64)])
    for token in range(len(logits)):
        expected = regret(logits, token, position, sampler)
        assert regret(allowed, token, position, sampler) == pytest.approx(expected, abs=1e-9)
    for token in range(len(logits), len(allowed)):
        assert regret(allowed, token, position, sampler) == BANNED


@pytest.mark.sampled(4)
@pytest.mark.parametrize("law", LAWS)
def test_the_samplers_own_choice_has_no_regret(law):
    sampler = sampler_of(law, seed=2, stream="own")
    for logits, position in cases(20, seed=3):
        assert regret(logits, sampler.next(logits, position), position, sampler) == 0.0


@pytest.mark.sampled(4)
@pytest.mark.parametrize("law", LAWS)
def test_every_other_token_has_some(law):
    sampler = sampler_of(law, seed=2, stream="other")
    for logits, position in cases(8, seed=4):
        chosen = sampler.next(logits, position)
        others = [token for token in range(len(logits)) if token != chosen]
        assert all(regret(logits, token, position, sampler) > 0 for token in others)


@pytest.mark.parametrize("law", [law for law in LAWS if law[2] == 1])
def test_an_error_of_the_logits_explains_no_more_than_itself(law):
    """A choice on logits with errors up to e regrets at most e on the true ones, 2e at a cut."""
    sampler = sampler_of(law, seed=5, stream="shaken")
    generator = torch.Generator().manual_seed(6)
    for logits, position in cases(40, seed=7):
        e = 10 ** -(2 + position % 3)
        shaken = logits + e * (
            2 * torch.rand(len(logits), generator=generator, dtype=torch.float64) - 1
        )
        token = sampler.next(shaken, position)
        assert regret(logits, token, position, sampler) <= (2 if sampler.top_k else 1) * e + 1e-9


def test_regrets_go_by_absolute_position():
    sampler = Sampler(1.0, seed=1)
    rows = torch.randn(5, 11, generator=torch.Generator().manual_seed(0))
    tokens = [sampler.next(row, 40 + i) for i, row in enumerate(rows)]
    assert regrets(rows, tokens, 40, sampler) == pytest.approx([0.0] * 5, abs=1e-6)
    assert max(regrets(rows, tokens, 41, sampler)) > 0.01


def test_a_junk_token_in_a_large_vocabulary_is_judged_at_once():
    logits = 3 * torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    sampler = Sampler(1.0, 50, 0.9, seed=1)
    assert regret(logits, int(logits.argmin()), 7, sampler) > 5


@pytest.mark.sampled(4)
@pytest.mark.parametrize("law", LAWS)
def test_the_recorder_changes_nothing_and_notes_each_lead(law):
    sampler = sampler_of(law, seed=8, stream="lead")
    for logits, position in cases(15, seed=9):
        recorder = Recorder(sampler)
        token = recorder.next(logits, position)
        assert token == sampler.next(logits, position)
        (lead,) = recorder.leads
        left = sampler.process(logits)[1].tolist() if sampler.temperature else range(len(logits))
        gaps = {w: gap(logits, position, sampler, token, w) for w in left if w != token}
        if gaps:
            assert (lead.token, lead.runner_up) == (token, min(gaps, key=gaps.get))
            assert lead.gap == gaps[lead.runner_up] >= 0
        else:
            assert lead == (token, token, 0.0)


class Shaken:
    """A sampler that gets the logits with an error of `scale`."""

    processors = ()

    def __init__(self, sampler, scale, seed):
        self.sampler = sampler
        self.scale = scale
        self.generator = torch.Generator().manual_seed(seed)

    def next(self, logits, position):
        noise = torch.randn(len(logits), generator=self.generator, dtype=torch.float64)
        return self.sampler.next(logits.double() + self.scale * noise, position)


class AnyOfTwo:
    """A lossy rule: one of the two leading tokens, by a coin."""

    processors = ()

    def __init__(self, sampler, seed):
        self.recorder = Recorder(sampler)
        self.coin = random.Random(seed)

    def next(self, logits, position):
        token = self.recorder.next(logits, position)
        return self.coin.choice([token, self.recorder.leads[-1].runner_up])


PROMPTS = [[40 + i, 41, 42 + 2 * i, 7] for i in range(5)]


def audited(target, rule, sampler, length=24):
    """Return the audits of prompts whose outputs differ under `rule(sampler, seed)`, and all
    tokens.
    """
    auditor = Auditor(target)
    limit = Limit(length)
    audits = []
    tokens = 0
    for i, prompt in enumerate(PROMPTS):
        law = sampler.streamed(str(i))
        vanilla = generate(target, Vanilla(target), law, prompt, limit).tokens
        decoder = generate(target, Vanilla(target), rule(law, i), prompt, limit).tokens
        tokens += len(decoder)
        if vanilla != decoder:
            finding = auditor.audit(law, prompt, vanilla, decoder, limit)
            audits.append(Audit("k", str(i), 0, "r", *finding))
    return audits, tokens


@pytest.fixture(scope="module")
def twins():
    """Return the tiny target in float32, whose tokens come in pairs with almost the same logit."""
    model = tiny_model()
    weight = model.lm_head.weight.data
    error = torch.randn(
        weight[1::2].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    weight[1::2] = weight[0:-1:2] + 1e-7 * error
    return TransformersTarget(model.to(torch.float32), tiny_tokenizer(), "twins", "twins")


@pytest.mark.sampled(2)
@pytest.mark.parametrize("law", [(0.0,), (1.0,), (0.7, 8, 1.0), (1.2, 0, 0.8)])
def test_a_lossy_rule_is_lossy(tiny, law):
    audits, tokens = audited(tiny, AnyOfTwo, sampler_of(law), length=12)
    assert len(audits) == len(PROMPTS)
    for dtype in ("float32", "bfloat16", "float64"):
        assert verdict(len(audits), tokens, audits, audits, dtype) == "lossy"
    assert max(max(a.vanilla_regrets) for a in audits) < 1e-9


def test_rounding_at_near_ties_is_a_tie(twins):
    audits, tokens = audited(twins, lambda sampler, seed: Shaken(sampler, 3e-7, seed), Sampler())
    assert len(audits) >= 3
    assert 0 < max(a.margin_error for a in audits) < 2e-5
    assert verdict(len(audits), tokens, audits, audits, "bfloat16") == "tie"
    assert verdict(1, 5000, audits[:1], audits, "float32") == "tie"


def test_a_larger_error_is_not(twins):
    audits, tokens = audited(twins, lambda sampler, seed: Shaken(sampler, 1e-2, seed), Sampler())
    assert verdict(len(audits), tokens, audits, audits, "bfloat16") == "lossy"


def test_the_audit_names_the_divergence(tiny):
    limit = Limit(12)
    sampler = Sampler(1.0, seed=4)
    prompt = PROMPTS[0]
    vanilla = generate(tiny, Vanilla(tiny), sampler, prompt, limit).tokens
    decoder = [*vanilla[:5], (vanilla[5] + 1) % 97, *vanilla[6:]]
    finding = Auditor(tiny).audit(sampler, prompt, vanilla, decoder, limit)
    assert finding.divergence == 5
    assert len(finding.decoder_regrets) == len(finding.vanilla_regrets) == 12
    assert max(finding.decoder_regrets[:5]) < 1e-9 < finding.decoder_regrets[5]
    assert finding.margin_error < 1e-10


def test_the_first_token_is_audited_too(tiny):
    limit = Limit(3)
    prompt = PROMPTS[1]
    vanilla = generate(tiny, Vanilla(tiny), Sampler(), prompt, limit).tokens
    finding = Auditor(tiny).audit(
        Sampler(), prompt, vanilla, [(vanilla[0] + 1) % 97, *vanilla[1:]], limit
    )
    assert finding.divergence == 0
    assert finding.decoder_regrets[0] > 1e-3


def test_the_target_is_not_changed(tiny):
    before = {name: weight.clone() for name, weight in tiny.model.state_dict().items()}
    limit = Limit(3)
    prompt = PROMPTS[1]
    auditor = Auditor(tiny)
    auditor.audit(Sampler(), prompt, [1, 2, 3], [1, 2, 4], limit)
    assert auditor.precise.model is not tiny.model
    assert tiny.model.dtype == torch.float64
    assert all(
        torch.equal(weight, before[name]) for name, weight in tiny.model.state_dict().items()
    )
