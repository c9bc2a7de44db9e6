"""The double over HTTP: `/v1/models`, `/v1/completions`, `/version` and `/metrics`.

    with serving(Double(Settings(fault="one-hot-residual"))) as url:
        ...

Requests run in threads, one each. A server with a `key` refuses other bearer tokens.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

from fspad_bench import __version__
from fspad_bench.serving.double.service import Piece
from fspad_bench.util.errors import BenchError

MODEL = "double"
OWNER = "fspad-bench"


class Completing(Protocol):
    """A service: `Double`, or `OwnTarget`. The counters are of its whole life."""

    drafted: int
    accepted: int

    def check(self, body: Mapping[str, Any]) -> None: ...
    def pieces(self, body: Mapping[str, Any]) -> Iterator[Piece]: ...


class Server(ThreadingHTTPServer):
    """A server of one model; port 0 takes a free one."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, double: Completing, host: str = "127.0.0.1", port: int = 0, key: str | None = None
    ) -> None:
        super().__init__((host, port), Handler)
        self.double = double
        self.key = key

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that is gone; show other errors."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}"


@contextmanager
def serving(double: Completing, key: str | None = None) -> Iterator[str]:
    """Serve a model on a free port of this machine until the block ends. Yields its address."""
    server = Server(double, key=key)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.url
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or else every small write waits 40 ms for an acknowledgement

    def do_GET(self) -> None:
        double = self.server.double
        if self._refused():
            return
        if self.path == "/v1/models":
            card = {"id": MODEL, "object": "model", "owned_by": OWNER}
            self._send_json(200, {"object": "list", "data": [card]})
        elif self.path == "/version":
            self._send_json(200, {"version": __version__})
        elif self.path == "/metrics":
            self._send(200, metrics(double).encode(), "text/plain; version=0.0.4")
        else:
            self._send_error(404, f"there is no {self.path}")

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self._refused():
            return
        if self.path != "/v1/completions":
            self._send_error(404, f"there is no {self.path}")
            return
        try:
            body = json.loads(content)
            self.server.double.check(body)
        except (BenchError, ValueError, TypeError, AttributeError) as error:
            self._send_error(400, str(error))
            return
        if body.get("stream"):
            self._stream(body)
        else:
            self._send_json(200, whole(list(self.server.double.pieces(body)), body))

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: a header may hold a token."""

    def _refused(self) -> bool:
        """Answer 401 where the bearer token is not the server's key."""
        key = self.server.key
        if key is None or self.headers.get("Authorization") == f"Bearer {key}":
            return False
        self._send_error(401, "the bearer token is missing or wrong")
        return True

    def _stream(self, body: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        pieces = []
        for piece in self.server.double.pieces(body):
            pieces.append(piece)
            self._event(json.dumps({"model": MODEL, "choices": [chosen([piece], body)]}))
        if (body.get("stream_options") or {}).get("include_usage"):
            last = whole(pieces, body) | {"choices": []}
            self._event(json.dumps(last))
        self._event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def _event(self, data: str) -> None:
        line = f"data: {data}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))

    def _send_error(self, status: int, message: str) -> None:
        self._send_json(status, {"error": {"message": message, "code": status}})

    def _send_json(self, status: int, value: dict[str, Any]) -> None:
        self._send(status, json.dumps(value).encode(), "application/json")

    def _send(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def chosen(pieces: list[Piece], body: dict[str, Any]) -> dict[str, Any]:
    """Return the `choices` entry of some pieces."""
    tokens = [token for piece in pieces for token in piece.tokens]
    choice: dict[str, Any] = {
        "index": 0,
        "text": "".join(piece.text for piece in pieces),
        "logprobs": None,
        "finish_reason": pieces[-1].finish or None,
    }
    if body.get("return_token_ids"):
        choice["token_ids"] = tokens
    if body.get("logprobs") is not None:
        choice["logprobs"] = {
            "tokens": [f"token_id:{token}" for token in tokens],
            "token_logprobs": [x for piece in pieces for x in piece.chosen],
            "top_logprobs": [
                {f"token_id:{token}": x for token, x in row.items()}
                for piece in pieces
                for row in piece.top
            ],
        }
    return choice


def whole(pieces: list[Piece], body: dict[str, Any]) -> dict[str, Any]:
    """Return a whole completion, with its usage and its draft counters."""
    made = sum(len(piece.tokens) for piece in pieces)
    read = len(body["prompt"])
    steps = [piece for piece in pieces if piece.drafted]
    counters = {
        "num_spec_steps": len(steps),
        "num_draft_tokens": sum(piece.drafted for piece in steps),
        "num_accepted_draft_tokens": sum(piece.accepted for piece in steps),
    }
    return {
        "object": "text_completion",
        "model": MODEL,
        "choices": [chosen(pieces, body)],
        "usage": {
            "prompt_tokens": read,
            "completion_tokens": made,
            "total_tokens": read + made,
        },
        "metrics": {"speculative_decoding": counters},
    }


def metrics(double: Completing) -> str:
    """Return the draft counters since the start in Prometheus' text format, by vLLM's names."""
    label = f'{{model_name="{MODEL}"}}'
    return (
        "# TYPE vllm:spec_decode_num_draft_tokens_total counter\n"
        f"vllm:spec_decode_num_draft_tokens_total{label} {double.drafted}\n"
        "# TYPE vllm:spec_decode_num_accepted_tokens_total counter\n"
        f"vllm:spec_decode_num_accepted_tokens_total{label} {double.accepted}\n"
    )
