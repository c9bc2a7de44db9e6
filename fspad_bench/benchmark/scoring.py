"""Quality of answers: one corpus-level figure a task, in percent.

- A lossless decoder cannot change these figures. A table shows them as evidence that the target can
  do the task, and as the price of a decoder that is not lossless.
- Each metric follows its field's tool: GSM8K's exact number, sacrebleu, rouge_score, SQuAD's
  normalisation.
- A package adds a metric by the entry-point group `fspad_bench.metrics`; those of the suite are not
  replaced.
- The libraries are imported where they are used, so that listing the metrics imports none.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from typing import Any

from fspad_bench.util import registry
from fspad_bench.util.errors import BenchError, near
from fspad_bench.util.strangers import contained, described

Outputs = Sequence[str]
References = Sequence[Sequence[str]]


def score(metric: str, outputs: Outputs, references: References) -> dict[str, float]:
    """Return the figures of one task, 0 to 100, the metric's headline figure first.

    `references[i]` lists the accepted answers to sample i; the best one counts. Raises BenchError
    for an unknown metric or a package's that fails, ValueError for no samples, lists of unequal
    length, a sample without an answer, or a bare string where a list of answers belongs.
    """
    _check(outputs, references)
    if metric in METRICS:
        return METRICS[metric](outputs, references)
    if metric not in registry.claims(registry.METRICS):
        known = [*METRICS, *registry.names(registry.METRICS)]
        raise BenchError(f"unknown metric '{metric}'", hint=near(metric, known))
    return _of_a_package(metric, outputs, references)


def _of_a_package(metric: str, outputs: Outputs, references: References) -> dict[str, float]:
    """Return the figures of a metric that a package registered. Raises BenchError if it fails, or
    returns no percentages; ValueError is its word for references that it cannot read.
    """
    function = registry.resolve(registry.METRICS, metric)
    try:
        with contained():
            figures = {
                str(name): float(value) for name, value in _items(function, outputs, references)
            }
    except ValueError:
        raise
    except Exception as error:
        raise BenchError(
            f"the metric '{metric}' failed: {described(error)}", "it is its package's to mend"
        ) from error
    if not figures or not all(0 <= value <= 100 for value in figures.values()):
        raise BenchError(
            f"the metric '{metric}' returned {figures}, not percentages",
            "it returns a dictionary of figures from 0 to 100, its headline first",
        )
    return figures


def _items(function: Any, outputs: Outputs, references: References) -> Iterable[tuple[Any, Any]]:
    return function(list(outputs), [list(answers) for answers in references]).items()


def last_number(outputs: Outputs, references: References) -> dict[str, float]:
    """Return GSM8K's accuracy (Cobbe et al. 2021): the last number has the reference's value.

    Values are compared, so that 4.0 is 4. Raises ValueError for a reference without a number; an
    output without one is wrong.
    """
    return {"accuracy": _percent(map(_same_number, outputs, references))}


def boxed(outputs: Outputs, references: References) -> dict[str, float]:
    """Return MATH's accuracy (Hendrycks et al. 2021): the last `\\boxed{}` holds the reference.

    Spaces, sizes of brackets and fractions do not count; equivalent forms are not found, so it is a
    lower bound.
    """
    answers = [[_math(answer) for answer in accepted] for accepted in references]
    return {
        "accuracy": _percent(_boxed(out) in of for out, of in zip(outputs, answers, strict=True))
    }


def bleu(outputs: Outputs, references: References) -> dict[str, float]:
    """Return corpus BLEU (13a tokens) and chrF2, as sacrebleu reports them (Post 2018)."""
    import sacrebleu

    streams = _streams(references)
    return {
        "bleu": sacrebleu.corpus_bleu(outputs, streams).score,
        "chrf": sacrebleu.corpus_chrf(outputs, streams).score,
    }


def rouge_l(outputs: Outputs, references: References) -> dict[str, float]:
    """Return the summary-level ROUGE-L F-measure (Lin 2004) on stems, mean over samples.

    A newline ends a sentence, in outputs and references alike.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeLsum"], use_stemmer=True)
    best = [
        scorer.score_multi(answers, output)["rougeLsum"].fmeasure
        for output, answers in zip(outputs, references, strict=True)
    ]
    return {"rouge_l": _percent(best)}


def exact_match(outputs: Outputs, references: References) -> dict[str, float]:
    """Return SQuAD's exact match and token F1 (Rajpurkar et al. 2016), means over samples."""
    em = []
    f1 = []
    for output, answers in zip(outputs, references, strict=True):
        words = _words(output)
        accepted = [_words(answer) for answer in answers]
        em.append(words in accepted)
        f1.append(max(_f1(words, reference) for reference in accepted))
    return {"em": _percent(em), "f1": _percent(f1)}


METRICS: dict[str, Callable[[Outputs, References], dict[str, float]]] = {
    "last_number": last_number,
    "boxed": boxed,
    "bleu": bleu,
    "rouge_l": rouge_l,
    "exact_match": exact_match,
}


def _check(outputs: Outputs, references: References) -> None:
    if not outputs:
        raise ValueError("nothing to score: no outputs")
    if len(outputs) != len(references):
        raise ValueError(f"{len(outputs)} outputs but {len(references)} lists of references")
    for i, answers in enumerate(references):
        if isinstance(answers, str) or not answers:
            raise ValueError(f"references[{i}] must be a non-empty list, not {answers!r}")


def _percent(values: Iterable[float]) -> float:
    every = list(values)
    return 100.0 * math.fsum(every) / len(every)


# A minus is a sign only where nothing before it makes it a hyphen or a subtraction; it may stand on
# either side of a currency sign. A comma belongs to the number only between groups of three digits.
_NUMBER = re.compile(
    r"(?P<minus>(?<![\w)\]%.-])[-\u2212])?[$£€]?"
    r"(?P<size>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![0-9.])\.[0-9]+)"
)


def _last_number(text: str) -> Decimal | None:
    numbers = list(_NUMBER.finditer(text))
    if not numbers:
        return None
    sign = "-" if numbers[-1]["minus"] else ""
    return Decimal(sign + numbers[-1]["size"].replace(",", ""))


def _same_number(output: str, answers: Sequence[str]) -> bool:
    accepted = [_last_number(answer) for answer in answers]
    if None in accepted:
        raise ValueError(f"no number in the reference {answers[accepted.index(None)]!r}")
    return _last_number(output) in accepted


def _boxed(text: str) -> str | None:
    """Return what the last `\\boxed{...}` of a text holds; None where there is none, or it does not
    end.
    """
    _, found, after = text.rpartition("\\boxed{")
    depth = 1
    for end, letter in enumerate(after if found else ""):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if not depth:
            return _math(after[:end])
    return None


def _math(answer: str) -> str:
    """Return an answer in TeX without what does not change it."""
    text = re.sub(r"\\(?:left|right)(?![a-zA-Z])|\\[,;!: ]|[\s$]", "", answer)
    return re.sub(r"\\[dt]frac", r"\\frac", text).rstrip(".")


def _streams(references: References) -> list[list[str]]:
    """Return lists of the k-th reference of every sample, which is sacrebleu's layout.

    A sample with fewer repeats its last one: both scores take the best or the clipped maximum over
    references, which a repetition does not change.
    """
    width = max(map(len, references))
    return [[answers[min(k, len(answers) - 1)] for answers in references] for k in range(width)]


_ARTICLES = frozenset({"a", "an", "the"})
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation and articles.

    That is SQuAD's order: "the," is an article.
    """
    return [w for w in text.lower().translate(_NO_PUNCTUATION).split() if w not in _ARTICLES]


def _f1(words: list[str], reference: list[str]) -> float:
    if not (words and reference):  # SQuAD 2.0: only an empty output matches an empty answer
        return float(words == reference)
    shared = (Counter(words) & Counter(reference)).total()
    return 2 * shared / (len(words) + len(reference))
