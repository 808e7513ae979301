"""Who may ask: host names a server answers to, and a token where it is not on loopback alone."""

import hashlib
import hmac
import ipaddress
import re
import secrets
import socket
from dataclasses import dataclass

from cocomix.utils.errors import CocomixError

SHORTEST = 16
"""Characters of a token; one of ours has 43."""


@dataclass(frozen=True)
class Access:
    """Rules of one server.

    Args:
        hosts: names it answers to, lower case; a page of another name that was made to point here is refused.
        addresses: whether it answers to any bare IP address, too: to such no other page's name can point.
        token: what a browser must have been given; None: nothing.
        cookie: the cookie that keeps it. Cookies do not know ports, so servers side by side need names of their own.
    """

    hosts: frozenset[str]
    addresses: bool = False
    token: str | None = None
    cookie: str = "cocomix"

    def knows(self, host: str) -> bool:
        """Whether a Host header's value names this server; the port may be a tunnel's."""
        name = re.sub(r":\d+$", "", host.strip()).lower().rstrip(".")
        return name in self.hosts or (self.addresses and _address(name) is not None)

    def opened_by(self, token: str) -> bool:
        """Whether `token` is the one; takes as long either way."""
        return self.token is not None and _same(token, self.token)

    def remembers(self, cookie: str) -> bool:
        """Whether a cookie's value is the one given for the token."""
        return self.token is None or _same(cookie, self.ticket)

    @property
    def ticket(self) -> str:
        """Value of the cookie: proof that its holder had the token, without the token."""
        return hashlib.sha256(f"cocomix explore {self.token}".encode()).hexdigest()


def access_for(host: str, port: int, token: str | None) -> Access:
    """Rules of a server bound to `host`: a token on anything but loopback, made here if not given.

    Raises:
        CocomixError: a token that is too short, or would not survive in an address.
    """
    if token is not None and (len(token) < SHORTEST or not re.fullmatch(r"[A-Za-z0-9._~-]+", token)):
        raise CocomixError(
            f"the token must be {SHORTEST} or more letters, digits and . _ ~ -; give another, or leave --token out"
        )
    if token is None and not is_loopback(host):
        token = secrets.token_urlsafe(32)
    address = _address(host)
    everywhere = address is not None and address.is_unspecified
    own = {socket.gethostname(), socket.getfqdn()} if everywhere else {_bracketed(host)}
    hosts = {"localhost", "127.0.0.1", "[::1]", *(name.lower() for name in own)}
    return Access(frozenset(hosts), addresses=everywhere, token=token, cookie=f"cocomix-{port}")


def is_loopback(host: str) -> bool:
    """Whether only this machine can come there."""
    address = _address(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def url_host(host: str) -> str:
    """`host` as a person can type it: a server bound to all addresses by this machine's name."""
    address = _address(host)
    return socket.gethostname() if address is not None and address.is_unspecified else _bracketed(host)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), wanted.encode())
