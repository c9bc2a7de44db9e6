"""Shared by the tests of scripts: small settings, what their parts print, and their summary."""

import sys
import time

SMALL = {
    "DEVICE": "cpu",
    "TARGET": "tiny",
    "SHAPES": "tiny@1",
    "PREFIXES": "16",
    "NODES": "2",
    "TOKENS": "4",
    "LEAST": "1",
}
TRACEBACK = "printf 'Traceback (most recent call last):\\nValueError: kept\\n' >&2; exit 1"
# Stands for a server: it listens at the port that follows, and answers whatever is asked.
LISTENER = f'''exec {sys.executable} -c "
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), Handler).serve_forever()
"'''


def summary(folder):
    """name -> (exit code, state) of the last line of each part."""
    lines = (folder / "summary.tsv").read_text().splitlines()
    return {
        name: (int(code), state)
        for name, code, seconds, state in (line.split("\t") for line in lines)
        if int(seconds) >= 0
    }


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
