"""Documents of Every Eval Ever: valid by its schema, with the figures of the rows.

The schema below holds the fields of version 0.3.0, written down from its published list. Where the
package every-eval-ever is installed (Python 3.12 or later), its own schema is asked too.
"""

import inspect
import json
import math
from importlib.util import find_spec
from pathlib import PurePosixPath

import jsonschema
import pytest

from fspad_bench.benchmark import stats
from fspad_bench.benchmark.stats import Interval
from fspad_bench.publishing import every_eval_ever
from fspad_bench.publishing.every_eval_ever import Evaluator, document
from fspad_bench.util.errors import BenchError

LAB = Evaluator("a lab", "third_party", source="https://example.org/record.jsonl")
CREATED = 1_800_000_000
TEXT = {"type": "string"}
NUMBER = {"type": "number"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
BOUND = {"anyOf": [NUMBER, {"enum": ["Infinity", "-Infinity"]}]}


def thing(required, **properties):
    """A JSON object of these fields and no other; the first `required` words must be there."""
    return {
        "type": "object",
        "required": required.split(),
        "properties": properties,
        "additionalProperties": False,
    }


def texts(*names):
    return dict.fromkeys(names, TEXT)


METRIC = thing(
    "lower_is_better",
    **texts("evaluation_description", "metric_id", "metric_name", "metric_kind", "metric_unit"),
    lower_is_better={"type": "boolean"},
    score_type={"enum": ["binary", "continuous", "levels"]},
    min_score=BOUND,
    max_score=BOUND,
    level_names={"type": "array", "items": TEXT},
    level_metadata={"type": "array", "items": TEXT},
    has_unknown_level={"type": "boolean"},
)
METRIC["allOf"] = [
    {
        "if": {"properties": {"score_type": {"const": kind}}},
        "then": {"required": needed},
    }
    for kind, needed in {
        "levels": ["level_names", "has_unknown_level"],
        "continuous": ["min_score", "max_score"],
    }.items()
]
SCORE = thing(
    "score",
    score=NUMBER,
    details=TEXTS,
    uncertainty=thing(
        "",
        confidence_interval=thing(
            "lower upper", lower=NUMBER, upper=NUMBER, confidence_level=NUMBER, method=TEXT
        ),
        num_samples={"type": "integer"},
        num_bootstrap_samples={"type": "integer"},
    ),
)
OF_THE_HUB = thing(
    "dataset_name source_type",
    **texts("dataset_name", "hf_repo", "hf_split"),
    source_type={"const": "hf_dataset"},
    sample_ids={"type": "array", "items": TEXT},
    additional_details=TEXTS,
)
OTHER = thing(
    "dataset_name source_type",
    dataset_name=TEXT,
    source_type={"const": "other"},
    additional_details=TEXTS,
)
GENERATION = thing(
    "",
    generation_args=thing(
        "",
        temperature={"type": ["null", "number"]},
        top_p={"type": ["null", "number"]},
        top_k={"type": ["null", "number"]},
        max_tokens={"type": "integer", "minimum": 1},
    ),
    additional_details=TEXTS,
)
RESULT = thing(
    "evaluation_name source_data metric_config score_details",
    **texts("evaluation_result_id", "evaluation_name", "evaluation_timestamp"),
    source_data={"oneOf": [OF_THE_HUB, OTHER]},
    metric_config=METRIC,
    score_details=SCORE,
    generation_config=GENERATION,
)
MODEL_DETAILS = {
    **TEXTS,
    "required": ["deployment_type", "model_availability"],
    "properties": {
        "deployment_type": {"enum": ["self_deployed", "externally_managed", "unknown"]},
        "model_availability": {"enum": ["open_weights", "closed_weights", "unknown"]},
    },
}
SCHEMA = thing(
    "schema_version evaluation_id retrieved_timestamp source_metadata model_info eval_library "
    "evaluation_results",
    **texts("schema_version", "evaluation_id", "evaluation_timestamp", "retrieved_timestamp"),
    source_metadata=thing(
        "source_type source_organization_name evaluator_relationship",
        **texts("source_name", "source_organization_name"),
        source_type={"enum": ["documentation", "evaluation_run"]},
        evaluator_relationship={"enum": ["first_party", "third_party", "collaborative", "other"]},
        additional_details=TEXTS,
    ),
    eval_library=thing("name version", **texts("name", "version"), additional_details=TEXTS),
    model_info=thing(
        "name id additional_details",
        **texts("name", "id", "developer"),
        inference_engine=thing("", **texts("name", "version")),
        additional_details=MODEL_DETAILS,
    ),
    evaluation_results={"type": "array", "items": RESULT},
)


def published_schema():
    from every_eval_ever.schema import schema_json

    return schema_json()


SCHEMAS = [
    pytest.param(lambda: SCHEMA, id="written down"),
    pytest.param(
        published_schema,
        id="published",
        marks=pytest.mark.skipif(not find_spec("every_eval_ever"), reason="not installed"),
    ),
]


def results(content, metric, decoder="fast"):
    """The results of a metric of a decoder."""
    return [
        result
        for result in content["evaluation_results"]
        if result["metric_config"]["metric_id"] == metric
        and result["score_details"]["details"]["decoder"] == decoder
    ]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_documents_are_valid(facts, of_the_hub, schema):
    checker = jsonschema.Draft7Validator(schema())
    for run in (facts(score=50.0), facts(2, score=50.0, complete=False, **of_the_hub)):
        content = json.loads(json.dumps(document(run, LAB, CREATED).content, allow_nan=False))
        assert content["schema_version"] == "0.3.0"
        assert list(checker.iter_errors(content)) == []


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("source_metadata.evaluator_relationship", "my own"),
        ("model_info.additional_details.deployment_type", "mine"),
        ("evaluation_results.0.score_details.details.noisy", False),
        ("evaluation_results.0.metric_config.score_type", "continuous"),
        ("evaluation_results.0.source_data.source_type", "url"),
        ("evaluation_id", None),
    ],
)
def test_the_schema_refuses_what_is_none(facts, place, value):
    content = document(facts(), LAB, CREATED).content
    # the verdict alone, which has no bounds
    content["evaluation_results"] = results(content, "fspad_bench.verdict")
    *parents, name = [int(part) if part.isdecimal() else part for part in place.split(".")]
    owner = content
    for parent in parents:
        owner = owner[parent]
    owner[name] = value
    assert list(jsonschema.Draft7Validator(SCHEMA).iter_errors(content))


def test_figures_are_the_rows_own(facts):
    content = document(facts(score=37.5), LAB, CREATED).content
    (speedup,) = results(content, "fspad_bench.speedup")
    assert speedup["score_details"]["score"] == pytest.approx(2.0)
    interval = speedup["score_details"]["uncertainty"]
    assert interval["confidence_interval"]["lower"] == pytest.approx(2.0)
    assert interval["confidence_interval"]["confidence_level"] == 0.95
    assert interval["num_samples"] == 6
    (steps,) = results(content, "fspad_bench.tokens_per_step")
    assert steps["score_details"]["score"] == 3.0
    (accuracy,) = results(content, "accuracy")
    assert accuracy["score_details"]["score"] == 37.5
    assert (accuracy["metric_config"]["metric_unit"], accuracy["evaluation_name"]) == (
        "percent",
        "gsm8k@bundled",
    )
    (verdict,) = results(content, "fspad_bench.verdict")
    levels = verdict["metric_config"]["level_names"]
    assert levels[verdict["score_details"]["score"]] == "exact"
    assert results(content, "fspad_bench.speedup", "vanilla") == []
    assert len(results(content, "fspad_bench.tokens_per_step", "vanilla")) == 1
    names = [result["evaluation_result_id"] for result in content["evaluation_results"]]
    assert len(set(names)) == len(names)


OF_LM_EVAL = {"task": "lm_eval:mine", "data_source": "lm_eval-0.4.13-v1.0"}


@pytest.mark.parametrize(
    ("key", "metric", "score", "is_shared"),
    [
        ({}, "accuracy", 37.5, True),
        ({}, "accuracy", math.nan, False),
        ({}, "accuracy", math.inf, False),
        (OF_LM_EVAL, "exact_match,strict-match", 37.5, True),
        (OF_LM_EVAL, "acc,none", 37.5, True),
        (OF_LM_EVAL, "bleu,none", 37.5, False),
        (OF_LM_EVAL, "ter,none", 120.0, False),
    ],
)
def test_only_percentages_are_called_so(facts, key, metric, score, is_shared):
    """lm-eval's other metrics have other bounds, and for some of them less is better."""
    run = facts(score=1.0, **key)
    run.table[1]["scores"] = {metric: score}
    written = document(run, LAB, CREATED)
    content = json.loads(json.dumps(written.content, allow_nan=False))
    own = [result["score_details"]["score"] for result in results(content, metric)]
    assert own == ([score] if is_shared else [])
    said = [line for line in written.left_out if line.startswith(f"{metric} of fast on ")]
    assert len(said) == (not is_shared)


def test_intervals_are_said_to_be_what_they_are():
    draws = inspect.signature(stats.ratio_interval).parameters["draws"].default
    level = inspect.signature(stats.ratio_interval).parameters["level"].default
    assert (draws, level) == (every_eval_ever.DRAWS, every_eval_ever.CONFIDENCE)
    assert Interval._fields[:3] == ("value", "low", "high")


def test_settings_and_origin_are_told(facts, of_the_hub):
    run = facts(temperature=1.0, top_p=0.95, top_k=20, seed=7, **of_the_hub)
    content = document(run, LAB, CREATED).content
    result = results(content, "fspad_bench.speedup")[0]
    assert result["generation_config"]["generation_args"] == {
        "temperature": 1.0,
        "top_p": 0.95,
        "top_k": 20,
        "max_tokens": 16,
    }
    details = result["generation_config"]["additional_details"]
    assert (details["seed"], details["machine"], details["options"]) == (
        "7",
        "a machine",
        '{"depth": 3}',
    )
    source = result["source_data"]
    assert (source["hf_repo"], source["hf_split"]) == ("openai/gsm8k", "test")
    assert source["sample_ids"] == [f"q{i}" for i in range(6)]
    assert source["additional_details"]["data_sha256"] == "ab" * 32
    assert source["additional_details"]["hf_revision"].startswith("e53f048")
    assert content["evaluation_timestamp"] == "2026-11-22T12:16:24+00:00"
    assert content["retrieved_timestamp"] == "1800000000"
    assert content["eval_library"]["version"] == "0.1.0"
    assert content["eval_library"]["additional_details"]["dirty"] == "true"
    assert content["source_metadata"]["source_organization_name"] == "a lab"
    assert content["source_metadata"]["additional_details"]["record_sha256"] == run.sha256


def test_prompts_of_another_card_are_not_called_the_hubs(facts, of_the_hub):
    content = document(facts(**of_the_hub | {"card_sha256": "00" * 32}), LAB, CREATED).content
    assert {r["source_data"]["source_type"] for r in content["evaluation_results"]} == {"other"}


def test_a_cut_that_is_off_is_no_cut(facts):
    content = document(facts(), LAB, CREATED).content
    arguments = content["evaluation_results"][0]["generation_config"]["generation_args"]
    assert arguments["top_k"] is None


def test_the_path_is_that_of_the_datastore_and_of_the_record_alone(facts):
    run = facts()
    path = document(run, LAB, CREATED).path
    assert path == document(run, LAB, CREATED + 1).path
    assert path.parent == PurePosixPath("data/fspad-bench/fspad-bench/tiny")
    assert path.stem[14] == "4"
    assert path.stem[19] in "89ab"


def test_caveats_stand_beside_every_figure(facts):
    lossy = facts(2, finding="in words", complete=False, verification="own", temperature=1.0)
    row = lossy.table[1]
    row |= {"noisy": True, "verdict": "lossy", "errors": 1, "looping": 2}
    content = document(lossy, LAB, CREATED).content
    for result in content["evaluation_results"]:
        details = result["score_details"]["details"]
        if details["decoder"] != "fast":
            continue
        assert details["noisy"] == "true"
        assert details["verdict"] == "lossy"
        for word in ("lossy: its", "noisy: other", "guards: prefill", "1 generations", "2 of 2"):
            assert word in details["caveats"], details["caveats"]
        assert "too few prompts" in details["caveats"]
        assert "unfinished" in details["caveats"]
        assert "uncertainty" not in result["score_details"]
    (verdict,) = results(content, "fspad_bench.verdict")
    assert verdict["metric_config"]["level_names"][verdict["score_details"]["score"]] == "lossy"


def test_what_nothing_could_tell_is_the_unknown_level(facts):
    run = facts()
    run.table[1]["verdict"] = "unverified"
    (verdict,) = results(document(run, LAB, CREATED).content, "fspad_bench.verdict")
    assert verdict["score_details"]["score"] == -1
    assert "unverified: nothing" in verdict["score_details"]["details"]["caveats"]


def test_a_target_without_a_hub_id_needs_one(facts):
    run = facts(target="my-folder")
    with pytest.raises(BenchError, match="'my-folder' is no hub id") as caught:
        document(run, LAB, CREATED)
    assert "--model OWNER/NAME" in caught.value.hint
    given = document(run, LAB._replace(model="me/mine"), CREATED)
    assert (given.content["model_info"]["id"], given.content["model_info"]["name"]) == (
        "me/mine",
        "my-folder",
    )


@pytest.mark.parametrize(
    ("target", "model"),
    [
        ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("vicuna-7b", "lmsys/vicuna-7b-v1.5"),
        ("owner/name", "owner/name"),
    ],
)
def test_targets_have_their_hub_ids(facts, target, model):
    info = document(facts(target=target), LAB, CREATED).content["model_info"]
    assert (info["id"], info["developer"]) == (model, model.partition("/")[0])
