"""The processes of this machine behind an address: a server and what it started, nobody else."""

import os
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest

from fspad_bench.serving import processes
from fspad_bench.serving.processes import is_here, processes_behind

SERVER = """
import socket, subprocess, sys
with socket.create_server(("127.0.0.1", 0)) as server:
    worker = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    print(server.getsockname()[1], worker.pid, flush=True)
    input()
    worker.communicate()
"""


@pytest.fixture
def server():
    """A server with a worker: its port, its process and the worker's."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", SERVER], **pipes) as process:
        port, worker = map(int, process.stdout.readline().split())
        yield SimpleNamespace(port=port, process=process.pid, worker=worker)
        process.communicate("\n")


def test_a_server_and_its_workers_are_found(server):
    found = processes_behind(f"http://127.0.0.1:{server.port}/v1")
    assert found == sorted([server.process, server.worker])


def test_a_server_of_another_machine_has_none_here(server):
    assert processes_behind(f"http://192.0.2.1:{server.port}") == []


def test_a_client_of_a_port_is_not_its_server(monkeypatch):
    """This process is none of them either: its load is its own."""
    kinds = [("LISTEN", 80, os.getpid()), ("ESTABLISHED", 80, 1), ("LISTEN", 81, 1)]
    seen = [
        SimpleNamespace(status=status, laddr=SimpleNamespace(port=port), pid=process)
        for status, port, process in [*kinds, ("LISTEN", 80, None)]
    ]
    monkeypatch.setattr(processes.psutil, "net_connections", lambda kind: seen)
    monkeypatch.setattr(psutil.Process, "children", lambda self, recursive: [])
    assert processes_behind("http://localhost") == []


def test_what_may_not_be_asked_is_not_found(monkeypatch):
    def refuse(kind):
        raise psutil.AccessDenied

    monkeypatch.setattr(processes.psutil, "net_connections", refuse)
    assert processes_behind("http://localhost:8000") == []


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("localhost", True),
        ("127.0.0.2", True),
        ("::1", True),
        ("0.0.0.0", True),
        ("example.org", False),
        ("10.0.0.1", False),
        ("localhost.example.org", False),
    ],
)
def test_a_host_is_this_machine_by_its_name(host, here):
    assert is_here(host) is here
