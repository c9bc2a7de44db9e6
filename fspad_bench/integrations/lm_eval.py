"""lm-eval's command line with every decoder as one of its models.

    python -m fspad_bench.integrations.lm_eval run --model fspad-bench \\
      --model_args pretrained=smollm2-135m,decoder=fspad --tasks gsm8k

lm-eval has no entry point for models of other packages, so this door registers ours and hands on.
Everything but `--model fspad-bench` is lm-eval's own.
"""

from __future__ import annotations

import importlib.util
import sys

from fspad_bench.benchmark.lm_eval_tasks import INSTALL
from fspad_bench.cli import endings
from fspad_bench.util.errors import BenchError

MODEL = "fspad-bench"
CLASS = "fspad_bench.integrations.lm_eval_model:DecoderLM"


def register() -> None:
    """Register the model under lm-eval's names; what is built in keeps its own.

    Raises BenchError where lm-eval is not installed.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise BenchError("lm-eval is not installed", INSTALL)
    import lm_eval.models  # noqa: F401  registers what is built in, which it does not do later
    from lm_eval.api.registry import model_registry

    if MODEL not in model_registry:
        model_registry.register(MODEL, target=CLASS)


def main() -> int:
    """Run lm-eval's command line; an error of ours has two lines and an exit code, as elsewhere."""
    return endings.handled(_run)


def _run() -> int:
    register()
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
    return 0


if __name__ == "__main__":
    sys.exit(main())
