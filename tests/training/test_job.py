"""The use case of `train`: what it writes, and what it refuses before it does any work."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fspad_bench.distill.lock import exclusive
from fspad_bench.drafts.head import Head, load_head
from fspad_bench.drafts.network import architecture, architectures
from fspad_bench.drafts.sizing.calibration import Calibration
from fspad_bench.models import load
from fspad_bench.training import job as training
from fspad_bench.training.job import Trained, TrainingJob, default_recipe, run, trainer_of
from fspad_bench.training.networks import NetworkTrainer
from fspad_bench.training.objective import Recipe
from fspad_bench.training.precision import product_type
from fspad_bench.util.errors import BenchError
from fspad_bench.util.provenance import environment

BRIEF = Recipe(epochs=1)
NO_STEPS = Recipe(epochs=1e-6)


@pytest.fixture(autouse=True)
def tiny_target(tiny, tmp_path, monkeypatch):
    """One tiny target for all jobs, and a cache of its own for each test."""
    monkeypatch.setattr(load, "load_target", lambda name, **options: tiny)
    monkeypatch.setenv("FSPAD_BENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def job(conversations, tmp_path):
    """`job(...)`: a brief training of eagle's network, but for the settings given here."""

    def job(**changes):
        settings = {
            "decoder": "eagle",
            "data": [str(conversations)],
            "output": tmp_path / "head",
            "target": "tiny",
            "device": "cpu",
            "recipe": BRIEF,
        }
        return TrainingJob(**settings | changes)

    return job


@pytest.fixture
def train(tiny, job):
    """`train(...)`: run the job and load the head that it wrote."""

    def train(**changes):
        return load_head(run(job(**changes)).folder, tiny)

    return train


@pytest.fixture
def no_work(monkeypatch):
    """Fail when data are generated or a trainer starts."""

    def fail(*arguments, **settings):
        pytest.fail("work began before the settings were checked")

    monkeypatch.setattr(training, "distill_own", fail)
    monkeypatch.setattr(NetworkTrainer, "train", fail)


def test_a_head_describes_its_training(train):
    head = train(decoder="fspad", draft_vocabulary=10)
    assert head.facts["answer_tokens"] > 0
    assert 0 < head.facts["held_out"]["vocabulary_mass"] < 1
    assert len(head.vocabulary) == 10


def test_figures_are_those_of_the_head(job, tiny):
    trained = run(job())
    assert load_head(trained.folder, tiny).facts["held_out"] == trained.figures


def test_answers_of_two_tokens_give_a_head_without_calibration(train, tmp_path):
    data = tmp_path / "short.jsonl"
    data.write_text('{"prompt": [1], "response": [4, 5]}\n' * 40)
    head = train(data=[str(data)])
    assert Calibration.of(head.facts["calibration"]).greedy


def test_training_starts_with_the_given_head(train, job, tiny, tmp_path):
    folder = tmp_path / "first"
    first = train(decoder="fspad", output=folder, draft_vocabulary=15)
    again = train(decoder="fspad", recipe=replace(NO_STEPS, seed=1), initial=folder)
    assert again.facts["tokens_seen"] == 0
    for name, weight in again.network.state_dict().items():
        assert torch.equal(weight, first.network.state_dict()[name]), name
    assert torch.equal(again.vocabulary, first.vocabulary)
    assert again.facts["initial"]["sha256"] == first.sha256
    assert again.facts["initial"]["tokens_seen"] == first.facts["tokens_seen"] > 0


def test_every_token_may_be_learned_and_held_out_answers_measure_it(train, tmp_path):
    heads = {
        name: train(
            output=tmp_path / name, recipe=replace(NO_STEPS, supervise=name), draft_vocabulary=15
        )
        for name in ("answers", "all")
    }
    stores = list((tmp_path / "cache" / "features").glob("*/features.bin"))
    assert len(stores) == 1  # the store does not depend on what is supervised
    answers = heads["answers"].facts
    every = heads["all"].facts
    assert every["held_out"] == answers["held_out"]
    assert every["answer_tokens"] == answers["answer_tokens"]
    # the draft vocabulary is that of the answers in both
    assert torch.equal(heads["all"].vocabulary, heads["answers"].vocabulary)
    trained = [
        train(output=tmp_path / f"{name} 1", recipe=replace(BRIEF, supervise=name))
        for name in ("answers", "all")
    ]
    assert trained[0].facts["held_out"] != trained[1].facts["held_out"]


def test_all_variants_have_a_trainer():
    for variant in architectures():
        trainer = trainer_of(variant)
        assert isinstance(trainer, NetworkTrainer)
        assert trainer.variant == variant
        assert default_recipe(variant) is trainer.recipe


def test_defaults_are_those_of_the_decoder():
    assert default_recipe("fspad") == default_recipe("wide") == Recipe()
    assert trainer_of("fspad-unrolled").variant == "fspad"
    assert default_recipe("fspad-unrolled") == Recipe(unroll=3, top_weight=1.0)
    for name in ("eagle3", "fspad3"):
        recipe = default_recipe(name)
        assert (recipe.feature_weight, recipe.logit_weight, recipe.noise) == (0.0, 1.0, 0.0)
        assert (recipe.unroll, recipe.decay) == (4, 0.8)
    assert default_recipe("medusa") == default_recipe("eagle3")
    soft = default_recipe("chimera")
    assert (soft.logit_weight, soft.token_weight, soft.unroll, soft.decay) == (1.0, 0.0, 4, 1.0)
    hard = default_recipe("chimera-hard")
    assert trainer_of("chimera-hard").variant == "chimera"
    assert hard == replace(soft, logit_weight=0.0, token_weight=1.0)


@pytest.mark.parametrize(
    ("decoder", "hint"), [("vanilla", "known: aded, chimera, "), ("egle", "did you mean 'eagle'?")]
)
def test_a_decoder_without_a_trainer_is_refused(job, no_work, decoder, hint):
    with pytest.raises(BenchError, match=f"no draft network to train for '{decoder}'") as raised:
        run(job(decoder=decoder))
    assert hint in raised.value.hint


def test_a_trainer_from_elsewhere_is_used(job, monkeypatch, tmp_path):
    class Table:
        def check(self, job, target):
            self.target = target

        def train(self, job, target, data, accelerator):
            (job.output / "table").write_text(str(len(data)))
            return Trained(job.output, {"entries": 3.0})

    monkeypatch.setattr(training, "trainer_of", lambda decoder: Table())
    trained = run(job(decoder="acme"))
    assert trained == (tmp_path / "head", {"entries": 3.0})
    assert (tmp_path / "head" / "table").read_text() == "1"
    assert trainer_of("fspad_bench.training.networks:WIDE") == NetworkTrainer("wide")


@pytest.fixture
def own_head(tiny, tmp_path):
    """The folder of a head of EAGLE-3 with an LM head of its own, for 50 tokens."""
    network_class = architecture("eagle3")
    torch.manual_seed(1)
    network = network_class(replace(network_class.shape_for(tiny.config), vocabulary=50))
    Head(network, torch.arange(50), tiny.name, tiny.identity).save(tmp_path / "own")
    return tmp_path / "own"


@pytest.mark.parametrize(
    "settings", [{}, {"draft_vocabulary": 40, "recipe": replace(BRIEF, vocabulary="head")}]
)
def test_an_lm_head_of_its_own_is_for_its_vocabulary_alone(job, no_work, own_head, settings):
    with pytest.raises(BenchError, match="an LM head of its own, for the 50 tokens") as raised:
        run(job(decoder="eagle3", initial=own_head, **settings))
    assert "--vocabulary head" in raised.value.hint


def test_an_lm_head_of_its_own_is_trained(train, tiny, own_head):
    recipe = replace(default_recipe("eagle3"), epochs=0.3, vocabulary="head", unroll=2)
    head = train(decoder="eagle3", initial=own_head, recipe=recipe)
    before = load_head(own_head, tiny)
    assert torch.equal(head.vocabulary, before.vocabulary)
    assert not torch.equal(head.network.lm_head.weight, before.network.lm_head.weight)


def test_a_data_set_of_another_tokenizer_is_refused(job, no_work, conversations, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "shard-00000.jsonl").write_text(conversations.read_text())
    (folder / "manifest.json").write_text('{"target": "other", "tokenizer": "abc"}')
    with pytest.raises(BenchError, match="is of other, whose tokenizer is not tiny's"):
        run(job(data=[str(folder)]))
    (folder / "manifest.json").write_text('{"target":')
    with pytest.raises(BenchError, match=r"manifest\.json: not JSON"):
        run(job(data=[str(folder)]))
    (folder / "manifest.json").write_text('{"files": {"shard-00000.jsonl": "another hash"}}')
    with pytest.raises(BenchError, match=r"shard-00000\.jsonl is damaged"):
        run(job(data=[str(folder)]))


def test_the_head_of_another_decoder_is_refused_before_data_are_generated(job, no_work, heads):
    with pytest.raises(BenchError, match="holds the head of 'fspad', not of 'eagle'"):
        run(job(data=["self"], initial=heads["fspad"]))


def test_a_checkpoint_of_another_recipe_is_refused_before_data_are_generated(
    job, tmp_path, request
):
    run(job())
    request.getfixturevalue("no_work")
    with pytest.raises(BenchError, match="belongs to another recipe"):
        run(job(data=["self"], recipe=replace(BRIEF, lr=0.1)))


def test_missing_data_are_refused_before_data_are_generated(job, no_work, tmp_path):
    with pytest.raises(BenchError, match="no such training data"):
        run(job(data=["self", str(tmp_path / "gone.jsonl")]))
    assert not (tmp_path / "head").exists()


def test_a_single_conversation_is_refused(job, tmp_path):
    (tmp_path / "one.jsonl").write_text('{"prompt": [1], "response": [4, 5]}\n')
    with pytest.raises(BenchError, match="one usable conversation is too few"):
        run(job(data=[str(tmp_path / "one.jsonl")]))


def test_an_output_in_use_is_refused_before_the_target_is_loaded(job, tmp_path, monkeypatch):
    monkeypatch.setattr(load, "load_target", lambda name, **options: pytest.fail("loaded"))
    output = tmp_path / "head"
    with exclusive(output), pytest.raises(BenchError, match=r"is in use by process \d+ on"):
        run(job(output=output))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"initial": Path("~nosuchuser/head")}, "no draft head at ~nosuchuser/head"),
        ({"initial": Path("x" * 300)}, "no draft head at xxx"),
        ({"decoder": "egle"}, "no draft network to train"),
        ({"max_length": 3}, "at most 3 tokens hold no answer"),
        ({"data": ["self", "~nosuchuser/data"]}, "no such training data: ~nosuchuser/data"),
    ],
)
def test_what_cannot_work_is_refused_before_data_are_generated(job, no_work, changes, message):
    with pytest.raises(BenchError, match=message):
        run(job(**{"data": ["self"]} | changes))


@pytest.mark.parametrize("name", ["head.json", "head.safetensors", "curve.csv"])
def test_an_output_that_cannot_be_written_is_refused_first(job, no_work, tmp_path, name):
    (tmp_path / "head" / name).mkdir(parents=True)
    with pytest.raises(BenchError, match=f"{name} is a folder"):
        run(job(data=["self"]))


@pytest.mark.parametrize("parts", ["head", "head/in/it"])
def test_an_output_that_is_a_file_is_refused_first(job, no_work, tmp_path, parts):
    (tmp_path / "head").write_text("")
    with pytest.raises(BenchError, match=r"is a file|cannot write to"):
        run(job(data=["self"], output=tmp_path / parts))


@pytest.mark.parametrize(
    "setting",
    [
        {"epochs": 1e9},
        {"epochs": float("inf")},
        {"epochs": float("nan")},
        {"lr": 2.0},
        {"unroll": 10**6},
        {"batch_tokens": 10**12},
    ],
    ids=str,
)
def test_absurd_recipes_are_refused(setting):
    with pytest.raises(BenchError, match=f"{next(iter(setting))} is"):
        Recipe(**setting)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("identity", "another target"),
        ("files_sha256", "another target files"),
        ("dtype", "another dtype"),
    ],
)
def test_another_target_does_not_continue_a_training(
    job, tiny, monkeypatch, request, name, message
):
    run(job())
    request.getfixturevalue("no_work")
    monkeypatch.setattr(tiny, name, "edited")
    with pytest.raises(BenchError, match=f"was trained with {message}"):
        run(job(data=["self"]))


def test_features_are_of_one_state_of_the_target(train, tiny, tmp_path, monkeypatch):
    train(recipe=NO_STEPS)
    monkeypatch.setattr(tiny, "files_sha256", "edited")
    run_again = tmp_path / "again"
    train(recipe=NO_STEPS, output=run_again)
    assert len(list((tmp_path / "cache" / "features").glob("*/features.bin"))) == 2


def test_a_head_names_the_software_that_trained_it(train):
    products = str(product_type(torch.device("cpu"))).removeprefix("torch.")
    expected = environment(torch.get_num_threads()) | {"products": products}
    assert train(recipe=NO_STEPS).facts["environment"] == expected
