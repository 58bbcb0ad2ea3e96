"""Addresses of a language model's server, which must lie in the house unless a remote one is allowed."""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass, field, replace

import httpx

from ctclip_model.errors import ConfigurationError
from tasks.settings import REQUESTS_AT_ONCE

LOCAL_NETWORKS = tuple(
    ipaddress.ip_network(network)
    for network in (
        "127.0.0.0/8", "::1/128", "0.0.0.0/32", "::/128",  # this machine
        "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7",  # private networks: RFC 1918 and RFC 4193
        "169.254.0.0/16", "fe80::/10",  # link-local: RFC 3927 and RFC 4291
    )
)  # fmt: skip
HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(%[\w.-]+)?")  # a name, or an address of IPv4 or IPv6
CALL = "/chat/completions"


@dataclass(frozen=True)
class Endpoint:
    """Base address of a server with OpenAI's interface, such as http://127.0.0.1:8000/v1, and its use."""

    url: str
    is_remote_allowed: bool = False
    requests_at_once: int = REQUESTS_AT_ONCE
    key: str | None = field(default=None, repr=False)

    @property
    def host(self) -> str:
        return httpx.URL(self.url).raw_host.decode()

    @property
    def port(self) -> int:
        url = httpx.URL(self.url)
        return url.port or (443 if url.scheme == "https" else 80)

    def with_key(self, key: str | None) -> Endpoint:
        """The endpoint with its key. Raises `ConfigurationError` for a key that no header can hold."""
        key = (key or "").strip() or None
        if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
            raise ConfigurationError("the key of the endpoint has a space, a line break or a letter beyond ASCII")
        return replace(self, key=key)


def parse_endpoint(url: str) -> str:
    """The base address of a server. An address without a path gets /v1, as servers have it.

    Raises `ConfigurationError` for anything else than http(s)://HOST[:PORT][/PATH]. Names, passwords and queries are
    refused, and never quoted, because an address is recorded.
    """
    try:
        parsed = httpx.URL(url.strip())
    except (httpx.InvalidURL, TypeError, ValueError) as error:
        raise ConfigurationError("--endpoint is no URL: give http://HOST:PORT/v1") from error
    if parsed.userinfo or parsed.query or parsed.fragment:
        raise ConfigurationError(
            "--endpoint holds a name, a password or a query: give http://HOST:PORT/v1, and the key in the environment"
        )
    is_host = HOST.fullmatch(parsed.raw_host.decode()) and (parsed.port is None or 0 < parsed.port < 2**16)
    if parsed.scheme not in ("http", "https") or not is_host:
        raise ConfigurationError("--endpoint is no address of a server: give http://HOST:PORT/v1")
    path = parsed.path.rstrip("/").removesuffix(CALL)
    return str(parsed.copy_with(path=path or "/v1"))


def find_addresses(endpoint: Endpoint) -> list[str] | None:
    """IP addresses of the endpoint's host, all of which lie in the house. None: it is remote, which is allowed.

    Raises `ConfigurationError` if one of them is remote without `--allow-remote`, for a remote host without https, and
    for a name that does not resolve.
    """
    addresses = _resolve(endpoint)
    remote = [address for address in addresses if not is_local(address)]
    if addresses and not remote:
        return addresses
    if not endpoint.is_remote_allowed:
        raise ConfigurationError(
            f"--endpoint {endpoint.url}: {endpoint.host} is {remote[0]}, beyond this machine and its private network. "
            "Reports would leave the house: use --allow-remote if they may"
        )
    if not endpoint.url.startswith("https:"):
        raise ConfigurationError(f"--endpoint {endpoint.url}: reports go to a remote host by https alone")
    return None


def is_local(address: str) -> bool:
    """True for an IP address of this machine or of a private network."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return any(ip in network for network in LOCAL_NETWORKS if network.version == ip.version)


def _resolve(endpoint: Endpoint) -> list[str]:
    """IP addresses of the host, without repeats. A remote host that a proxy alone can resolve has none."""
    try:
        found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        if endpoint.is_remote_allowed:
            return []
        raise ConfigurationError(f"--endpoint {endpoint.url}: no address of {endpoint.host} is known") from error
    return list(dict.fromkeys(str(address[0]) for *_, address in found))
