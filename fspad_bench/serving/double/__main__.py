"""Serve the double: `python -m fspad_bench.serving.double --port 8000`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from fspad_bench.serving.double.generation import FAULTS, RULES
from fspad_bench.serving.double.server import Completing, Server
from fspad_bench.serving.double.service import Double, Settings
from fspad_bench.util.errors import BenchError
from fspad_bench.util.terminal import note, show

KEY = "FSPAD_BENCH_API_KEY"


def parser() -> argparse.ArgumentParser:
    """Return the arguments' parser."""
    faults = "".join(f"\n  {name}: {what}" for name, what in FAULTS.items())
    made = argparse.ArgumentParser(
        prog="python -m fspad_bench.serving.double",
        description="Serve a small model of known distributions through the completions API, "
        "for trying certifiers of served engines.",
        epilog=f"faults:{faults}\n\nA bearer token in {KEY} is asked of every client.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--model", help="one of our targets in place of the model of numbers")
    made.add_argument("--decoder", default="prompt_lookup", help="of --model")
    made.add_argument("--host", default="127.0.0.1")
    made.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    made.add_argument("--depth", type=int, default=4, help="drafted tokens a step; 0: none")
    made.add_argument("--rule", default="rejection", choices=RULES)
    made.add_argument("--fault", metavar="NAME", help="one fault, named below")
    made.add_argument("--fault-depth", type=int, default=5, help="of short-rollback")
    made.add_argument("--salt", type=int, default=0, help="another number, another model")
    made.add_argument("--noise", type=float, default=1.0, help="of the draft's logits")
    made.add_argument("--step-seconds", type=float, default=0.0, help="a step takes at least")
    return made


def served(chosen: argparse.Namespace) -> Completing:
    """Return what the arguments ask to serve. Raises BenchError."""
    if chosen.model:
        from fspad_bench.models.load import load_target
        from fspad_bench.serving.double.target import OwnTarget

        return OwnTarget(load_target(chosen.model), chosen.decoder)
    return Double(
        Settings(
            depth=chosen.depth,
            rule=chosen.rule,
            fault=chosen.fault,
            fault_depth=chosen.fault_depth,
            salt=chosen.salt,
            noise=chosen.noise,
            step_seconds=chosen.step_seconds,
        )
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until interrupted."""
    chosen = parser().parse_args(arguments)
    try:
        server = Server(served(chosen), chosen.host, chosen.port, os.environ.get(KEY))
    except BenchError as error:
        note(f"error: {error.message}")
        note(f"hint:  {error.hint}")
        return error.exit_code
    except OSError as error:
        note(f"error: cannot listen on {chosen.host}:{chosen.port}: {error.strerror}")
        return BenchError.exit_code
    show(server.url)
    sys.stdout.flush()
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        return 0
    finally:
        server.server_close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
