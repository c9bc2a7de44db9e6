"""One of our own targets behind the double's API, decoded by our own loop.

Its greedy text is vanilla's, so a run that asks it over HTTP must find no difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from threading import Lock
from typing import Any

from fspad_bench.core.protocols import Generation, Limit
from fspad_bench.decoders.build import build_decoder
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.serving.double.service import Piece, request_of


class OwnTarget:
    """A target and a decoder, which answer one request at a time and speculate in all of them.

    A completion is one piece: the loop returns it whole. Log-probabilities are not given.
    """

    def __init__(self, target: TransformersTarget, decoder: str = "prompt_lookup") -> None:
        self.target = target
        self.decoder = build_decoder(decoder, target)
        self.drafted = 0
        self.accepted = 0
        self.lock = Lock()

    def check(self, body: Mapping[str, Any]) -> None:
        """Raise BenchError where the body asks what is not."""
        request_of(body, 0, self.target.config.vocab_size)

    def pieces(self, body: Mapping[str, Any]) -> Iterator[Piece]:
        """Yield a completion, whole."""
        request = request_of(body, 0, self.target.config.vocab_size)
        limit = Limit(request.max_tokens, self.target.stop_ids)
        with self.lock:
            generation = self.decoder.generate(
                self.target, request.sampler, list(request.prompt), limit
            )
            piece = self._piece(generation)
            self.drafted += piece.drafted
            self.accepted += piece.accepted
        yield piece

    def _piece(self, generation: Generation) -> Piece:
        ended = generation.tokens[-1] in self.target.stop_ids
        return Piece(
            generation.tokens,
            [],
            [],
            sum(generation.drafted),
            sum(generation.committed) - len(generation.committed),
            "stop" if ended else "length",
        )
