"""What must not leave a machine with a record: folders, addresses, names of users and hosts.

- A record holds paths as they were typed: of heads, of data, of decoders' files. Only their last
  parts are published.
- A record's free text (the command line, errors, findings, prompts, answers) is not published.
"""

from __future__ import annotations

import re
from typing import Any

from fspad_bench.decoders.label import SERVED, Label

ADDRESS = re.compile(r"\w://|^[^/\\\s]+@[^/\\\s]+:|^[\w.-]+:\d+$")  # of a server, a user on a host
DEVICE = re.compile(r"^(cpu|cuda|hpu|mps|npu|xpu):\d{1,2}$")
HIDDEN = "(address)"


def base_name(text: str) -> str:
    """Return the last part of a path; any other text but an address stays as it is."""
    if ADDRESS.search(text) and not DEVICE.search(text):
        return HIDDEN
    return re.split(r"[/\\]", text.rstrip("/\\"))[-1] if re.search(r"[/\\]", text) else text


def base_names(value: Any) -> Any:
    """Return a value of JSON with each of its texts reduced to a base name."""
    if isinstance(value, str):
        return base_name(value)
    if isinstance(value, dict):
        return {base_name(str(name)): base_names(item) for name, item in value.items()}
    if isinstance(value, list):
        return [base_names(item) for item in value]
    return value


def decoder_name(label: str) -> str:
    """Return a decoder's label without the folder of its file, `own=file.py:Class@preset`, and
    without the address of a served engine.
    """
    if Label.of(label).served:
        own = Label.of(label).own
        return f"{base_name(own)}={SERVED}{HIDDEN}" if own else f"{SERVED}{HIDDEN}"
    own, equals, decoder = label.rpartition("=")
    path, colon, name = decoder.rpartition(":")
    return f"{base_name(own)}{equals}{base_name(path)}{colon}{base_name(name)}"
