"""fspad-bench: is a speculative decoder lossless, and how much faster is it than a fair baseline?

The public names, imported on first use (importing this package imports no torch):

    load_target     a model by preset, folder or hub id, on a device
    build_decoder   a decoder by its name on a target, ready to `generate`
    generate        the loop itself, for a drafter that is not registered
    Sampler         greedy, or temperature and cuts; logits processors; the noise of a seed
    Limit           where a generation ends
    custom_generate any decoder inside transformers' `model.generate`
    Generation      the tokens, counts and seconds of one
    Drafter         the base class of a decoder of your own; it works with Tree, Context, Step
    LayerPlan       which sublayers of a target a session runs
    BenchError      the one error a user meets: what is wrong, what to do
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fspad_bench.core.loop import generate
    from fspad_bench.core.protocols import Context, Drafter, Generation, LayerPlan, Limit, Step
    from fspad_bench.core.sampling import Sampler
    from fspad_bench.core.tree import Tree
    from fspad_bench.decoders.build import build_decoder
    from fspad_bench.integrations.custom_generate import custom_generate
    from fspad_bench.models.load import load_target
    from fspad_bench.util.errors import BenchError

__version__ = "0.1.0"
__all__ = [
    "BenchError",
    "Context",
    "Drafter",
    "Generation",
    "LayerPlan",
    "Limit",
    "Sampler",
    "Step",
    "Tree",
    "build_decoder",
    "custom_generate",
    "generate",
    "load_target",
]

_HOMES = {
    "BenchError": "util.errors",
    "Context": "core.protocols",
    "Drafter": "core.protocols",
    "Generation": "core.protocols",
    "LayerPlan": "core.protocols",
    "Limit": "core.protocols",
    "Sampler": "core.sampling",
    "Step": "core.protocols",
    "Tree": "core.tree",
    "build_decoder": "decoders.build",
    "custom_generate": "integrations.custom_generate",
    "generate": "core.loop",
    "load_target": "models.load",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
