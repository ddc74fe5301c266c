"""Where a service is and how it is reached: its URL, the proxy that the environment names, and the certificates to trust."""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.request import getproxies

import httpx

from gradest.errors import InvalidInput, ServiceError

__all__ = ["Address", "Verify"]

Verify = bool | str | os.PathLike[str] | ssl.SSLContext
"""Which certificates of HTTPS are trusted."""

_PORTS = {"http": 80, "https": 443}
_IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, eq=False)
class Address:
    """A service and the way to it.

    url: without a user's name and password, so that messages and logs can show it.
    auth: the name and password that the URL had.
    proxy: None for a direct connection.
    proxy_variable: the environment variable that names the proxy, or "".
    verify: what httpx calls so.
    """

    url: httpx.URL
    auth: httpx.BasicAuth | None
    proxy: httpx.Proxy | None
    proxy_variable: str
    verify: ssl.SSLContext | bool

    def __str__(self) -> str:
        through = f" (through the proxy that {self.proxy_variable} names)" if self.proxy else ""
        return f"{self.url}{through}"

    @classmethod
    def parse(cls, text: str, verify: Verify) -> Address:
        """Return the address of the service at a URL.

        Raises InvalidInput if the text is no such URL, and ServiceError if the environment names a proxy that cannot be used.
        """
        url = _parse_url(text)
        auth = httpx.BasicAuth(url.username, url.password) if url.userinfo else None
        url = url.copy_with(userinfo=b"")
        variable, proxy = _find_proxy(url)
        # without HTTPS no certificate is read, which takes a tenth of a second
        return cls(url, auth, proxy, variable, _trust(verify) if url.scheme == "https" else False)


def _parse_url(text: str) -> httpx.URL:
    if not isinstance(text, str):
        raise InvalidInput(
            f"the URL of a service must be text such as 'http://127.0.0.1:8000', not {type(text).__name__}"
        )
    shown = re.sub(r"^([a-z]+://)?.*@", r"\1***@", text, flags=re.DOTALL)  # a password may be in front of the @
    wrong = f"{shown!r} is not the URL of a service, which is like 'http://127.0.0.1:8000'"
    if not re.match("https?://", text, re.IGNORECASE):
        rest = re.sub("^([a-z]*:(?=//)|https?:)?/*", "", shown)
        meant = f". Did you mean 'http://{rest}'?" if rest else ""
        raise InvalidInput(f"{wrong}: it must begin with http:// or https://{meant}")
    url, reason = httpx.URL(), ""
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        reason = "" if "@" in text else f": {error}"  # which may quote a part of a password
    if not url.scheme:
        raise InvalidInput(f"{wrong}{reason}")
    if not url.host or re.search(r"\s", text) or not (url.port is None or 0 < url.port < 1 << 16):
        raise InvalidInput(f"{wrong}: its host or its port is missing or impossible")
    if url.query or url.fragment:
        raise InvalidInput(f"{wrong}: it may have no part that begins with ? or #")
    return url


def _trust(verify: Verify) -> ssl.SSLContext | bool:
    """Return httpx's setting for the certificates to trust. Raises InvalidInput if they cannot be read."""
    if verify is False or isinstance(verify, ssl.SSLContext):
        return verify
    try:
        if verify is True:
            return httpx.create_ssl_context()
        path = str(Path(verify))
        is_folder = Path(verify).is_dir()
        return ssl.create_default_context(cafile=None if is_folder else path, capath=path if is_folder else None)
    except (OSError, TypeError) as error:
        source = "SSL_CERT_FILE or SSL_CERT_DIR" if verify is True else f"verify={verify!r}"
        raise InvalidInput(f"{source} must name a file or a folder of certificates in PEM form: {error}") from error


def _find_proxy(url: httpx.URL) -> tuple[str, httpx.Proxy | None]:
    """Return the environment's proxy for a URL, and the variable that names it: none for this machine and those in NO_PROXY.

    httpx's own rules know no networks such as 10.0.0.0/8, fail at IPv6 addresses in brackets, and ask a proxy for 127.0.0.1.
    """
    proxies = getproxies()
    name = next((name for name in (url.scheme, "all") if proxies.get(name)), None)
    if name is None or _is_this_machine(url.host) or _is_excluded(url, proxies.get("no", "")):
        return "", None
    variable = f"{name.upper()}_PROXY"
    remedy = f"Correct it, or connect without a proxy, by NO_PROXY={url.host}"
    try:
        proxy = httpx.Proxy(proxies[name] if "://" in proxies[name] else f"http://{proxies[name]}")
    except (httpx.InvalidURL, ValueError):
        message = f"{variable} is not the URL of a proxy, which is like http://proxy.example:3128. {remedy}"
        raise ServiceError(0, "No connection", message) from None
    if proxy.url.scheme.startswith("socks") and find_spec("socksio") is None:
        message = f"{variable} names a SOCKS proxy, which needs a package: pip install 'httpx[socks]'. {remedy}"
        raise ServiceError(0, "No connection", message)
    return variable, proxy


def _to_ip(host: str) -> _IpAddress | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _is_this_machine(host: str) -> bool:
    address = _to_ip(host)
    if address is not None:
        return address.is_loopback or address.is_unspecified
    return host == "localhost" or host.endswith(".localhost")


def _is_excluded(url: httpx.URL, no_proxy: str) -> bool:
    """Tell whether NO_PROXY names the host: by a name, its domain, an address or a network, perhaps with a port; or by *."""
    host, port = url.host.rstrip("."), url.port or _PORTS[url.scheme]
    address = _to_ip(host)
    for entry in re.split(r"[\s,]+", no_proxy.lower()):
        scheme, mark, rest = entry.rpartition("://")
        found = re.fullmatch(r"(?:\[(.+)\]|([^:]*))(?::(\d+))?", rest)
        name = (found[1] or found[2]) if found else rest  # an IPv6 address without brackets has no port
        if (mark and scheme not in (url.scheme, "all")) or (found and found[3] and int(found[3]) != port):
            continue
        if name == "*":
            return True
        try:
            network = ipaddress.ip_network(name, strict=False)
        except ValueError:
            domain = name.removeprefix("*").strip(".")
            if domain and (host == domain or host.endswith(f".{domain}")):
                return True
        else:
            if address is not None and address.version == network.version and address in network:
                return True
    return False
