"""The samplers of a plan: one a temperature and generation, with the plan's cuts and penalties."""

from __future__ import annotations

from typing import Any

from fspad_bench.benchmark.plan import Plan
from fspad_bench.benchmark.record import PENALTIES
from fspad_bench.core.sampling import Sampler
from fspad_bench.engine.penalties import Penalties


class Samplers:
    """Raises BenchError for a setting that is out of range."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.penalties = Penalties(**{name: getattr(plan, name) for name in PENALTIES})
        for temperature in plan.temperatures:
            self.at(temperature)

    def at(self, temperature: float, stream: str = "warm-up") -> Sampler:
        """Return the sampler of a generation."""
        plan = self.plan
        return Sampler(
            temperature,
            plan.top_k,
            plan.top_p,
            plan.seed,
            stream,
            plan.min_p,
            self.penalties.processors,
        )

    @property
    def settings(self) -> dict[str, Any]:
        """The fields of a row's key that say how tokens are chosen, its temperature aside."""
        names = ("top_k", "top_p", "seed", "min_p", *PENALTIES)
        return {name: getattr(self.plan, name) for name in names}
