"""A server that answers what a test has written, one script a request."""

import json
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CARD = {"id": "m", "owned_by": "vllm"}
RESET = "reset"


class Scripted(ThreadingHTTPServer):
    """`answers` are given in turn to POST requests, the last one again and again.

    An answer is (status, text), a list of events that are streamed whole, (events, "cut"): a stream
    that breaks off, or RESET. `pages` answer GET requests. `bodies` and `tokens` are what came.
    """

    daemon_threads = True

    def __init__(self, answers, pages=()):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = list(answers)
        self.pages = {"/v1/models": json.dumps({"data": [CARD]})} | dict(pages)
        self.bodies = []
        self.tokens = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address):
        pass


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        self.server.tokens.append(self.headers.get("Authorization"))
        page = self.server.pages.get(self.path)
        if callable(page):
            page = page()
        self.whole(404 if page is None else 200, page or "not here")

    def do_POST(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.bodies.append(json.loads(content))
        self.server.tokens.append(self.headers.get("Authorization"))
        answers = self.server.answers
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if answer == RESET:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif isinstance(answer, list):
            self.stream([*answer, "[DONE]"])
            self.wfile.write(b"0\r\n\r\n")
        elif answer[-1] == "cut":
            self.stream(answer[0])
            self.close_connection = True
        else:
            self.whole(*answer)

    def stream(self, events):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in events:
            text = event if isinstance(event, str) else json.dumps(event)
            line = f"data: {text}\n\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))

    def whole(self, status, text, headers=()):
        self.send_response(status)
        self.send_header("Content-Length", str(len(text.encode())))
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


@contextmanager
def scripted(*answers, pages=()):
    """Serve the answers until the block ends. Yields the server."""
    server = Scripted(answers, pages)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def piece(tokens, finish=None, **more):
    """Return an event of the completions API."""
    text = "".join(f" {token}" for token in tokens)
    choice = {"index": 0, "text": text, "token_ids": list(tokens), "finish_reason": finish}
    return {"choices": [choice | more]}
