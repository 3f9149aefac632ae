"""Addresses by which hosts meet: as text, as a socket that listens at one and no other, as an interface."""

import os
import socket
import time
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Self
from urllib.parse import urlsplit

import psutil

from truefit.core.errors import TruefitError
from truefit.core.terminal import say


@dataclass(frozen=True)
class Address:
    """Where the first host listens for the others."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the address of `HOST:PORT`, where an IPv6 address stands in brackets; raises ValueError."""
        parts = urlsplit(f"//{text}")
        if not parts.hostname or not parts.port or parts.netloc != text or "@" in text:
            raise ValueError(text)
        return cls(parts.hostname, parts.port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Return the address of a command's argument; raises TruefitError."""
    try:
        return Address.parse(text)
    except ValueError:
        raise TruefitError(f"{text}: found no address, allowed: HOST:PORT, such as 10.0.0.1:29500") from None


def wait_for_listener(address: Address) -> str:
    """Wait as `connected` does until something listens at the address, and return its IP address."""
    with connected(address) as connection:
        return str(connection.getpeername()[0])


def connected(address: Address) -> socket.socket:
    """Wait without end until something listens at the address, say so, and return a connection to it.

    Raises TruefitError for a name that nobody knows.
    """
    said = False
    while True:
        try:
            return socket.create_connection((address.host, address.port), timeout=5)
        except socket.gaierror as error:
            raise TruefitError(f"{address}: {address.host}: {error.strerror}") from None
        except OSError as error:
            if not said:
                say(f"waiting for a training that listens at {address}; for now: {error.strerror or error}", error=True)
            said = True
            time.sleep(1)


def listener(address: Address) -> socket.socket:
    """Return a socket that listens at the address and no other; raises TruefitError, naming the setting."""
    try:
        family, _, _, _, where = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
        if ip_address(str(where[0]).partition("%")[0]).is_unspecified:
            found, allowed = f"{address}, which is every address of this machine", "the one by which the other hosts reach it"
            raise TruefitError(f"params.yaml: launch.rendezvous: found {found}, allowed: {allowed}")
        return socket.create_server((str(where[0]), address.port), family=family)
    except OSError as error:
        fault = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        allowed = f"an address of this machine and a free port ({fault})"
        raise TruefitError(f"params.yaml: launch.rendezvous: found {address}, allowed: {allowed}") from None


def interface_towards(address: str) -> str | None:
    """Return the name of the network interface by which this machine reaches the IP address, or None."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:  # which sends nothing
        try:
            probe.connect((address, 9))
        except OSError:
            return None
        own = probe.getsockname()[0]
    for name, addresses in psutil.net_if_addrs().items():
        if any(found.address.partition("%")[0] == own for found in addresses):
            return str(name)
    return None
