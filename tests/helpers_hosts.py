"""Two hosts with a link between them, as network namespaces of this machine."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from helpers_required import unavailable


class Namespaces:
    """Two hosts with a link between them, each with its address and name."""

    def __init__(self) -> None:
        self.names = {host: f"truefit-{os.getpid()}-{host}" for host in "ab"}
        self.addresses = {"a": "10.77.0.1", "b": "10.77.0.2"}

    def set_up(self) -> None:
        for name in self.names.values():
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ends = [("link0", "netns", self.names["a"]), ("link0", "netns", self.names["b"])]
        ip("link", "add", *ends[0], "type", "veth", "peer", "name", *ends[1])
        for host, name in self.names.items():
            ip("-n", name, "addr", "add", f"{self.addresses[host]}/24", "dev", "link0")
            ip("-n", name, "link", "set", "link0", "up")

    def set_link(self, state: str) -> None:
        ip("-n", self.names["a"], "link", "set", "link0", state)

    def remove(self) -> None:
        for name in self.names.values():
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    def on(self, host: str) -> list[str]:
        """Return what stands before a command that is to run on the host."""
        named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', f"host-{host}"]
        return ["ip", "netns", "exec", self.names[host], *named]


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextmanager
def two_hosts() -> Iterator[Namespaces]:
    """Make them for a block; skip the test where this machine does not allow it, or fail where TRUEFIT_HOSTS is `required`."""
    made = Namespaces()
    if os.geteuid():
        unavailable("HOSTS", "network namespaces take root")
    if missing := [command for command in ("ip", "unshare", "hostname") if not shutil.which(command)]:
        unavailable("HOSTS", f"not installed: {', '.join(missing)}: apt-get install iproute2 util-linux hostname")
    try:
        try:
            made.set_up()
        except subprocess.CalledProcessError as error:
            unavailable("HOSTS", f"no network namespaces here: {error.stderr.decode().strip()}")
        yield made
    finally:
        made.remove()
