"""Programs that may answer on the port of another: found by their first bytes."""

from __future__ import annotations

import re
import socket
import ssl
import time
from contextlib import suppress
from urllib.parse import urlsplit

SNIFF_S = 5.0  # seconds for each answer
BANNER_S = 1.0  # seconds in which a server that speaks first has spoken
LONGEST_READ = 4096  # bytes of an answer that are looked at
TITLE = re.compile(rb"<title[^>]*>\s*(.*?)\s*</title", re.IGNORECASE | re.DOTALL)
FIRST_BYTES = {
    b"SSH-": "an SSH server",
    b"220": "a mail or FTP server",
    b"+OK": "a mail server",
    b"* OK": "a mail server",
    b"RFB ": "a VNC server",
    b"+PONG": "a Redis server",
    b"-NOAUTH": "a Redis server",
    b"-DENIED": "a Redis server",
    b"-ERR": "a Redis server",
    b"\x15\x03": "a TLS server",
}


def identify(address: str) -> str | None:
    """Sentence on the program behind a URL that speaks no HTTP, or None if it cannot be told."""
    parts = urlsplit(address)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    if parts.scheme != "https" and _speaks_tls(host, port):
        return "it speaks TLS: write https:// in PREFECT_API_URL"
    content = _read_first(host, port)
    if content.startswith((b"HTTP/", b"<")):
        return "it speaks no TLS: write http:// in PREFECT_API_URL" if parts.scheme == "https" else None
    if name := next((name for start, name in FIRST_BYTES.items() if content.startswith(start)), None):
        return f"{name} answers there, and no Prefect server"
    first_line = content.partition(b"\n")[0][:60].decode("ascii", "replace").strip()
    return f"another program answers there, with {first_line!r}" if content else None


def describe_page(content: bytes) -> str:
    """Sentence on an answer that is no JSON: a web page with its title, or other text."""
    if content.lstrip()[:1] != b"<":
        return "it answers with text that is no JSON, and is no Prefect server"
    found = TITLE.search(content[:LONGEST_READ])
    title = " ".join(found[1].decode("utf-8", "replace").split())[:60] if found else ""
    page = f"the web page {title!r}" if title else "a web page"
    return f"it answers with {page}, such as a login or a proxy shows, and not as Prefect's API"


def measure_round_trip(address: str) -> float | None:
    """Seconds that a connection to the server of a URL takes, or None without one."""
    parts = urlsplit(address)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    started = time.monotonic()
    try:
        socket.create_connection((parts.hostname or "", port), SNIFF_S).close()
    except OSError:
        return None
    return time.monotonic() - started


def _speaks_tls(host: str, port: int) -> bool:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with suppress(OSError), socket.create_connection((host, port), SNIFF_S) as plain:
        plain.settimeout(BANNER_S)  # a server of another protocol waits for more
        with context.wrap_socket(plain, server_hostname=host or None):
            return True
    return False


def _read_first(host: str, port: int) -> bytes:
    """First bytes of a server: those that it sends unasked, or its answer to a line of Redis and of HTTP."""
    with suppress(OSError), socket.create_connection((host, port), SNIFF_S) as connection:
        connection.settimeout(BANNER_S)
        with suppress(TimeoutError):
            return connection.recv(LONGEST_READ)
        connection.settimeout(SNIFF_S)
        connection.sendall(b"PING\r\n\r\n")
        return connection.recv(LONGEST_READ)
    return b""
