"""Which processes of this machine work for a server: their load is not other work in its turns."""

from __future__ import annotations

import ipaddress
import os

import httpx2
import psutil


def is_here(host: str) -> bool:
    """Return whether a host is this machine by its name."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def processes_behind(url: str) -> list[int]:
    """Return the processes that listen at an address of this machine, and those they started.

    None of another machine's, none that only another user may see, and never this process.
    """
    address = httpx2.URL(url)
    if not is_here(address.host):
        return []
    port = address.port or {"http": 80, "https": 443}[address.scheme]
    found = set()
    try:
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
            if listens and connection.pid:
                found.add(connection.pid)
                family = psutil.Process(connection.pid).children(recursive=True)
                found.update(process.pid for process in family)
    except psutil.Error:  # it may not be asked, or has ended
        pass
    return sorted(found - {os.getpid()})
