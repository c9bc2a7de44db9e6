"""The plan of a run: what the user wants measured."""

from __future__ import annotations

from dataclasses import dataclass, field

from fspad_bench.util.errors import BenchError, near

PRECISIONS = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class Plan:
    """The settings of a run. Equal plans are the same run: an unfinished record of an equal plan is
    resumed.

    `options` holds the options of each decoder, as given. None leaves a choice to the task
    (`max_new_tokens`), to the target (`dtype`), to torch (`threads`), or sets no bound (`limit`).
    `repeats` is how often the whole set of generations is made; `aa` measures vanilla twice, for
    the noise floor. `shard` is the part of the questions that this run measures (`shards`), all of
    them where it is empty.

    Raises BenchError for a plan that measures nothing.
    """

    decoders: list[str]
    tasks: list[str]
    target: str
    options: dict[str, dict[str, str]] = field(default_factory=dict)
    data: str = "auto"
    limit: int | None = None
    temperatures: list[float] = field(default_factory=lambda: [0.0])
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    max_new_tokens: int | None = None
    dtype: str | None = None
    device: str = "cpu"
    threads: int | None = None
    log_samples: bool = False
    repeats: int = 1
    aa: bool = True
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    shard: str = ""

    def __post_init__(self) -> None:
        for name in ("decoders", "tasks", "temperatures"):
            if not getattr(self, name):
                raise BenchError(f"a plan without {name} measures nothing", "name at least one")
        for name in ("limit", "max_new_tokens", "threads", "repeats"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BenchError(f"{name} is {value}: nothing can be measured", "at least 1")
        if self.dtype not in (None, *PRECISIONS):
            raise BenchError(f"no precision is called '{self.dtype}'", near(self.dtype, PRECISIONS))
