"""Records in the schema of Every Eval Ever, version 0.3.0 (the package every-eval-ever 0.3.0).

- A record is one document: a model, and a result for each figure of each row.
- Figures that a row does not have are left out; vanilla has no speedup over itself.
- Scores that are not finite are left out, and those on a scale of lm-eval's own: the schema wants
  bounds and a direction, which a record does not hold.
- The verdict is a metric of levels; `unverified` is the schema's unknown level, -1.
- Values of `additional_details` and `details` are texts, as the schema wants them.
"""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from fspad_bench.benchmark.lm_eval_tasks import IN_PERCENT, PREFIX
from fspad_bench.benchmark.record import PENALTIES, VANILLA
from fspad_bench.benchmark.rows import IDENTITY, Row
from fspad_bench.models.presets import PRESETS
from fspad_bench.publishing.facts import Facts, caveats, dataset_name, hub_card, model_id
from fspad_bench.publishing.private import base_name, base_names, decoder_name

SCHEMA_VERSION = "0.3.0"
COLLECTION = "fspad-bench"
RELATIONSHIPS = ("first_party", "third_party", "collaborative", "other")
LEVELS = {
    "lossy": "outputs differ, and rounding does not explain it",
    "law": "outputs differ by design; their distribution is the target's",
    "tie": "outputs differ at near ties that rounding explains",
    "exact": "no output differs from vanilla decoding's",
}
DRAWS = 2000  # of the bootstrap behind an interval
CONFIDENCE = 0.95
SHORT_HASH = 16
Json = dict[str, Any]


class Metric(NamedTuple):
    """A figure of a row that has an interval: its name in JSON, its unit, its definition."""

    name: str
    title: str
    unit: str
    description: str


SPEED = (
    Metric(
        "speedup",
        "Speedup of decoding",
        "ratio",
        "Vanilla decoding's seconds per token over the decoder's, without the prefill, paired by "
        "prompt in one interleaved run at batch 1",
    ),
    Metric(
        "speedup_end_to_end",
        "Speedup end to end",
        "ratio",
        "Vanilla decoding's seconds per token over the decoder's, prefill included, paired by "
        "prompt in one interleaved run at batch 1",
    ),
)
STEPS = Metric(
    "tokens_per_step",
    "Tokens per step",
    "tokens",
    "Committed tokens over full forwards of the target, bonus token included, pooled over prompts",
)


class Evaluator(NamedTuple):
    """Who ran the evaluation, and the model's hub id where the record does not say it."""

    organization: str
    relationship: str = "other"
    model: str | None = None
    source: str | None = None


class Document(NamedTuple):
    """A document, its path in the datastore, and which scores it leaves out, and why."""

    path: PurePosixPath
    content: Json
    left_out: list[str]


def document(facts: Facts, evaluator: Evaluator, created: int) -> Document:
    """Return a record as a document of Every Eval Ever, created at a second of Unix time.

    Raises BenchError where the model's hub id is not known.
    """
    model = model_id(facts.target, evaluator.model)
    content = {
        "schema_version": SCHEMA_VERSION,
        "evaluation_id": f"{COLLECTION}-{facts.sha256[:8]}/{model}/{created}",
        **_started(facts),
        "retrieved_timestamp": str(created),
        "source_metadata": _source_metadata(facts, evaluator),
        "eval_library": _library(facts),
        "model_info": _model(facts, model),
        "evaluation_results": [result for row in facts.table for result in _results(row, facts)],
    }
    name = uuid.UUID(hex=facts.sha256[:32], version=4)
    path = PurePosixPath("data", COLLECTION, model, f"{name}.json")
    return Document(path, content, _left_out(facts.table))


def _started(facts: Facts) -> Json:
    try:
        started = datetime.fromisoformat(str(facts.header.get("started")))
    except ValueError:
        return {}
    return {"evaluation_timestamp": started.isoformat()}


def _source_metadata(facts: Facts, evaluator: Evaluator) -> Json:
    details = {
        "record_sha256": facts.sha256,
        "record_schema": facts.header["schema"],
        "complete": facts.records.complete,
        "damaged_lines": len(facts.records.damaged),
        "source_url": evaluator.source,
    }
    return {
        "source_name": COLLECTION,
        "source_type": "evaluation_run",
        "source_organization_name": evaluator.organization,
        "evaluator_relationship": evaluator.relationship,
        "additional_details": _texts(details),
    }


def _library(facts: Facts) -> Json:
    header = facts.header
    details = {name: header.get(name) for name in ("source_sha256", "commit", "dirty", "python")}
    packages = header.get("packages")
    versions = {f"{name}_version": v for name, v in packages.items()} if packages else {}
    return {
        "name": COLLECTION,
        "version": str(header.get("version") or "unknown"),
        "additional_details": _texts({**details, **versions}),
    }


def _model(facts: Facts, model: str) -> Json:
    first = facts.table[0]
    details = {
        "deployment_type": "self_deployed",
        "model_availability": "open_weights" if facts.target in PRESETS else "unknown",
        "weights": "Q4_1, dequantised" if facts.target == "smollm2-135m" else None,
        "target_sha256": first["target_sha256"],
        "target_identity": base_name(str(first["target_identity"])),
    }
    return {
        "name": base_name(facts.target),
        "id": model,
        "developer": model.partition("/")[0],
        "inference_engine": {"name": COLLECTION, "version": first["version"]},
        "additional_details": _texts(details),
    }


# the results of a row


def _results(row: Row, facts: Facts) -> Iterator[Json]:
    """Yield a result for each figure that a row has."""
    for metric, score in (row["scores"] or {}).items():
        if not _objection(row, metric, score):
            yield _result(row, facts, _quality(metric), score)
    for speed in (*SPEED, STEPS):
        is_own = speed is not STEPS and row["decoder"] == VANILLA
        if row[speed.name] is not None and not is_own:
            uncertainty = _uncertainty(row, speed.name)
            yield _result(row, facts, _measure(speed), row[speed.name], uncertainty)
    levels = list(LEVELS)
    level = levels.index(row["verdict"]) if row["verdict"] in LEVELS else -1
    yield _result(row, facts, _verdict(), level)


def _objection(row: Row, metric: str, score: float) -> str:
    """Return why a score cannot be a result; empty where it can."""
    if not math.isfinite(score):
        return "it is not finite"
    is_known = not row["task"].startswith(PREFIX) or metric.partition(",")[0] in IN_PERCENT
    return "" if is_known else "its scale is lm-eval's own"


def _left_out(table: Sequence[Row]) -> list[str]:
    """Return the scores that cannot be results, each with the reason."""
    return [
        f"{metric} of {decoder_name(row['decoder'])} on {row['task']}: {reason}"
        for row in table
        for metric, score in (row["scores"] or {}).items()
        if (reason := _objection(row, metric, score))
    ]


def _result(
    row: Row, facts: Facts, metric: Json, score: float, uncertainty: Json | None = None
) -> Json:
    identity = json.dumps([row[name] for name in IDENTITY], sort_keys=True, default=str)
    digest = hashlib.sha256(identity.encode()).hexdigest()[:SHORT_HASH]
    details: Json = {"score": score, "details": _texts(_row_details(row, facts))}
    if uncertainty:
        details["uncertainty"] = uncertainty
    return {
        "evaluation_result_id": f"{digest}:{metric['metric_id']}",
        "evaluation_name": dataset_name(row),
        "source_data": _source_data(row, facts),
        "metric_config": metric,
        "score_details": details,
        "generation_config": _generation(row),
        **_started(facts),
    }


def _row_details(row: Row, facts: Facts) -> Json:
    names = ("verdict", "noisy", "samples", "outputs", "looping", "errors", "divergences")
    known = {name: row[name] for name in names}
    return {
        **known,
        "decoder": decoder_name(row["decoder"]),
        "caveats": "; ".join(caveats(row, facts.records)) or None,
    }


def _source_data(row: Row, facts: Facts) -> Json:
    details = {name: row[name] for name in ("data_sha256", "card_sha256")}
    details |= {"data_source": base_name(row["data_source"]), "prompts": row["samples"]}
    card = hub_card(row)
    if card is None:
        return {
            "dataset_name": dataset_name(row),
            "source_type": "other",
            "additional_details": _texts(details),
        }
    details |= {"hf_revision": card.revision, "hf_config": card.dataset_name}
    return {
        "dataset_name": row["task"],
        "source_type": "hf_dataset",
        "hf_repo": card.dataset_path,
        "hf_split": card.test_split,
        "sample_ids": facts.questions(row),
        "additional_details": _texts(details),
    }


def _generation(row: Row) -> Json:
    names = ("seed", "verification", "scope", "dtype", "forward", "device", "threads", "machine")
    hashes = ("torch", "template_sha256", "tokenizer_sha256")
    details = {name: row[name] for name in (*names, *hashes)}
    details |= {
        "decoder": decoder_name(row["decoder"]),
        "options": json.dumps(base_names(row["options"]), sort_keys=True),
        "batch_size": 1,
    }
    neutral = {"min_p": 0} | PENALTIES
    details |= {name: row[name] for name in neutral if row[name] != neutral[name]}
    return {
        "generation_args": {
            "temperature": row["temperature"],
            "top_p": row["top_p"],
            "top_k": row["top_k"] or None,
            "max_tokens": row["max_new_tokens"],
        },
        "additional_details": _texts(details),
    }


# the metrics


def _quality(metric: str) -> Json:
    return {
        "evaluation_description": f"The task's {metric}, in percent",
        "metric_id": metric,
        "metric_name": metric,
        "metric_kind": metric,
        "metric_unit": "percent",
        "lower_is_better": False,
        "score_type": "continuous",
        "min_score": 0,
        "max_score": 100,
    }


def _measure(metric: Metric) -> Json:
    return {
        "evaluation_description": metric.description,
        "metric_id": f"fspad_bench.{metric.name}",
        "metric_name": metric.title,
        "metric_kind": metric.name,
        "metric_unit": metric.unit,
        "lower_is_better": False,
        "score_type": "continuous",
        "min_score": 0,
        "max_score": "Infinity",
    }


def _verdict() -> Json:
    return {
        "evaluation_description": "Whether the outputs are the target's own, as vanilla decodes it",
        "metric_id": "fspad_bench.verdict",
        "metric_name": "Losslessness verdict",
        "metric_kind": "verdict",
        "lower_is_better": False,
        "score_type": "levels",
        "level_names": list(LEVELS),
        "level_metadata": list(LEVELS.values()),
        "has_unknown_level": True,
    }


def _uncertainty(row: Row, name: str) -> Json | None:
    """Return a figure's interval; None where there were too few prompts for one."""
    if row[f"{name}_low"] is None or row[f"{name}_high"] is None:
        return None
    return {
        "confidence_interval": {
            "lower": row[f"{name}_low"],
            "upper": row[f"{name}_high"],
            "confidence_level": CONFIDENCE,
            "method": "percentile bootstrap over prompts, widened by Student's t",
        },
        "num_samples": row["samples"],
        "num_bootstrap_samples": DRAWS,
    }


def _texts(details: Json) -> dict[str, str]:
    """Return the details that are known, as texts."""
    return {name: _text(value) for name, value in details.items() if value not in (None, "")}


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)
