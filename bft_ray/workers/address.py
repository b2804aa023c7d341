"""The address of a Ray cluster, and whether anything listens there: told in seconds, where Ray itself tries for minutes."""

from __future__ import annotations

import os
import socket
import urllib.request
from contextlib import suppress
from urllib.parse import urlsplit

from bft_ray.config import ClusterConfig
from bft_ray.errors import first_line
from bft_ray.waits import bounded
from bft_ray.workers.ray_private import address_of_auto

PROBE_S = 5.0  # longest wait for a name to be resolved and a TCP connection
_PORTS = {"ray": 10001, "http": 80, "https": 443}  # of an address that names none


def address_of(cluster: ClusterConfig) -> str | None:
    """`cluster.address`, or RAY_ADDRESS (as in a submitted job); None: a Ray of this machine is to be started."""
    address = cluster.address or os.environ.get("RAY_ADDRESS") or None
    return None if address == "local" else address


def resolved(address: str) -> str:
    """The address that Ray would use for `auto`: RAY_ADDRESS, or that of a Ray that runs on this machine. Other addresses, and an
    `auto` for which none is found, as they are.
    """
    if address != "auto":
        return address
    if given := os.environ.get("RAY_ADDRESS"):
        return given
    with suppress(ConnectionError, ValueError):  # Ray says itself that there is none
        return address_of_auto() or address
    return address


def why_silent(address: str, timeout_s: float = PROBE_S) -> str | None:
    """Why nothing can be reached at an address: its host is unknown, its port is closed, or it does not answer in time.

    Args:
        address: HOST:PORT, or ray://, http:// or https:// HOST[:PORT]; an IPv6 address in brackets.

    Returns:
        The reason, without a full stop; None where something listens, or for any other address, such as `auto`.
    """
    place = _endpoint(address)
    if place is None:
        return None
    host, port = place
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bounded(timeout_s, lambda: socket.create_connection((host, port), timeout_s).close())
    except socket.gaierror as error:
        return f"no host of the name {host} is known here ({error.strerror})"
    except TimeoutError:
        return f"{shown} has not answered within {timeout_s:g} s"
    except ConnectionRefusedError:
        return f"nothing listens at {shown} (connection refused)"
    except OSError as error:
        return f"{shown} cannot be reached ({first_line(error)})"
    return None


def _endpoint(address: str) -> tuple[str, int] | None:
    """Host and port; None where the address is none of a port, or goes through a proxy."""
    scheme, is_url, _ = address.partition("://")
    if is_url and scheme not in _PORTS:
        return None
    try:
        parts = urlsplit(address if is_url else f"//{address}")
        host, port = parts.hostname, parts.port or _PORTS.get(parts.scheme)
    except ValueError:  # something for Ray to judge
        return None
    if (
        scheme in ("http", "https")
        and scheme in urllib.request.getproxies()
        and not urllib.request.proxy_bypass(str(host))
    ):
        return None
    return (host, port) if host and port else None
