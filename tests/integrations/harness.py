"""lm-eval with our model registered, and a task of its on local data, for the tests of both ways.

lm-eval takes seconds to import, so nothing here does while tests are collected.
"""

import json
from types import SimpleNamespace

from fspad_bench.integrations import lm_eval as door

LENGTH = 24
SHOWN = [
    {"question": f"Ann has {i} pens and buys 3. How many?", "answer": f"{i} + 3.\n#### {i + 3}"}
    for i in range(2, 9)
]
ASKED = [f"Tom has {i} eggs and eats {i % 3}. How many are left?" for i in (7, 12, 30, 41)]


def loaded():
    """lm-eval, and what the tests need of it."""
    door.register()
    import lm_eval.tasks
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import get_model
    from lm_eval.models.huggingface import HFLM

    def request(context, given=None, kind="generate_until", number=0):
        arguments = (context,) if given is None else (context, given)
        return Instance(kind, {}, arguments, 0, ("t", number, 1))

    return SimpleNamespace(
        evaluate=lm_eval.evaluate,
        TaskManager=lm_eval.tasks.TaskManager,
        HFLM=HFLM,
        Model=get_model(door.MODEL),
        get_model=get_model,
        request=request,
    )


def write_task(folder, answers, **changes):
    rows = [{"question": q, "answer": a} for q, a in zip(ASKED, answers, strict=True)]
    for name, content in (("train", SHOWN), ("test", rows)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, content)))
    import lm_eval.tasks
    import yaml

    files = {name: str(folder / f"{name}.jsonl") for name in ("train", "test")}
    card = {
        "include": lm_eval.tasks.__path__[0] + "/gsm8k/gsm8k.yaml",
        "task": "gsm8k_mine",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {
            "data_files": files,
            "cache_dir": str(folder / "cache" / answers[0][5:]),
        },
        "num_fewshot": 1,
        "generation_kwargs": {"until": ["Question:"], "do_sample": False, "max_gen_toks": LENGTH},
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(card | changes))
    return folder / "mine.yaml"


def answered(harness, model, path, **given):
    """The results of a task, and of each sample the response and what filters made of it."""
    loaded = harness.TaskManager(include_defaults=False).load([str(path)])
    (task,) = loaded["tasks"].values()
    task.set_fewshot_seed(1234)  # as `simple_evaluate` does; examples are drawn at random
    if given:
        task.set_config(key="generation_kwargs", value=given, update=True)
    made = harness.evaluate(model, loaded, bootstrap_iters=0)
    samples = made["samples"]["gsm8k_mine"]
    return made["results"]["gsm8k_mine"], [
        (sample["filter"], *sample["filtered_resps"], *sample["resps"][0]) for sample in samples
    ]
