"""A second host on this machine: a network namespace with its own address, host name and processes, and a link to it.

Both hosts share this machine's file system. Needs root and iproute2.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

HOME, FAR = "10.231.77.1", "10.231.77.2"  # addresses of this host and of the other


@dataclass(frozen=True)
class FarHost:
    """The other host; `prefix` before a command runs it there."""

    name: str

    @property
    def prefix(self) -> tuple[str, ...]:
        apart = ("unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")
        return ("ip", "netns", "exec", self.name, *apart, "sh", "-c", f'hostname {self.name} && exec "$@"', "sh")

    def cut_link(self, seconds: float) -> None:
        """Loses every packet between the hosts for a time."""
        _ip("-n", self.name, "link", "set", "far", "down")
        time.sleep(seconds)
        _ip("-n", self.name, "link", "set", "far", "up")


def find_obstacle() -> str | None:
    """Says why this machine can have no second host."""
    if os.geteuid() != 0:
        return "not root"
    missing = [program for program in ("ip", "unshare") if shutil.which(program) is None]
    if missing:
        return f"no {missing[0]}"
    tried = subprocess.run(["ip", "netns", "add", "ctclip-try"], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "delete", "ctclip-try"], capture_output=True, check=False)
    return tried.stderr.strip() or None


@contextmanager
def far_host() -> Iterator[FarHost]:
    """A second host with the address `FAR`, to which this one is `HOME`."""
    host = FarHost("ctclip-far")
    near = "ctclip-home"
    _remove(host.name, near)  # a killed test may have left it
    try:
        _ip("netns", "add", host.name)
        _ip("link", "add", near, "type", "veth", "peer", "name", "far", "netns", host.name)
        _ip("address", "add", f"{HOME}/30", "dev", near)
        _ip("link", "set", near, "up")
        _ip("-n", host.name, "address", "add", f"{FAR}/30", "dev", "far")
        for device in ("far", "lo"):
            _ip("-n", host.name, "link", "set", device, "up")
        yield host
    finally:
        _remove(host.name, near)


def _remove(namespace: str, device: str) -> None:
    """The kernel removes a namespace's devices some time after it, so the link goes first."""
    for command in (["link", "delete", device], ["netns", "delete", namespace]):
        subprocess.run(["ip", *command], capture_output=True, check=False)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
