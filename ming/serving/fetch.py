"""Files that a request points to: data URLs, and addresses where that is allowed; never files of the server.

The host name is resolved first, all its network addresses must be public, and the connection goes to an address that
was checked, so that the name cannot point elsewhere the second time. Redirects pass the same check.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from ming.media import NamedBytes, decode_base64, raise_if_no_port
from ming.serving.errors import ApiError, shorten

MAX_REDIRECTS = 3

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public internet, also an IPv4 address inside an IPv6 address."""
    if isinstance(address, ipaddress.IPv6Address):
        teredo = address.teredo
        inner = address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else None)
        if inner is None and address in NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        if address not in GLOBAL_UNICAST:  # the library calls site-local, IPv4-compatible and unassigned ones global
            return False
    return address.is_global and not address.is_multicast


NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")


async def resolve(host: str, port: int) -> list[Address]:
    """All addresses of a host name.

    Raises:
        OSError: the name has none.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]


def decode_field(text: str, param: str) -> bytes:
    """The bytes of a field of a request that holds base64, plain or as a data URL, with line ends or without.

    Raises:
        ApiError: the text is neither, or holds no data.
    """
    try:
        data = decode_base64(text, "this field")
    except ValueError as error:
        raise ApiError(f"{param}: {error}", param, code="invalid_base64") from error
    if not data:
        raise ApiError(f"{param}: the base64 holds no data", param, code="invalid_base64")
    return data


@dataclass(frozen=True)
class Fetcher:
    """Reads the files that URLs of a request point to.

    Args:
        allow_remote: http and https addresses may be read.
        max_bytes, max_seconds: limits of one file.
        is_allowed: which network addresses may be reached; the default is the public internet.
    """

    allow_remote: bool = False
    max_bytes: int = 64 << 20
    max_seconds: float = 20.0
    is_allowed: Callable[[Address], bool] = is_public

    def read(self, url: str, param: str) -> bytes:
        """The bytes of a data URL or of the file at an address; not to be called from an event loop.

        Raises:
            ApiError: it is neither, it may not be read, or it cannot be.
        """
        scheme = url.partition(":")[0].lower()
        if scheme == "data":
            return decode_field(url, param)
        if scheme not in ("http", "https"):
            raise ApiError(
                f"{param}: {shorten(url)} is neither a data URL nor an address; files of the server are never read, "
                "send the file as data:<type>;base64,<data>",
                param,
                code="unsupported_url",
            )
        if not self.allow_remote:
            raise ApiError(
                f"{param}: this server does not read addresses such as {shorten(url)}; send the file as "
                "data:<type>;base64,<data>, or start the server with --allow-remote",
                param,
                code="remote_not_allowed",
            )
        try:
            return NamedBytes(asyncio.run(self._in_time(httpx.URL(url), param)), url)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as error:
            raise ApiError(
                f"{param}: cannot read {shorten(url)}: {error or type(error).__name__}", param, code="remote_failed"
            ) from error

    async def _in_time(self, url: httpx.URL, param: str) -> bytes:
        """The body at a URL within `max_seconds` in all; timeouts of single reads would not end a slow stream."""
        try:
            async with asyncio.timeout(self.max_seconds):
                return await self._download(url, param)
        except TimeoutError as error:
            raise ApiError(
                f"{param}: {shorten(str(url))} was not complete after {self.max_seconds:g} s", param
            ) from error

    async def _download(self, url: httpx.URL, param: str) -> bytes:
        # No proxies or passwords of the environment: the connection goes to the address that was checked.
        # `_in_time` ends the whole download.
        client = httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=None)  # nosec B113
        async with client:
            for _ in range(MAX_REDIRECTS + 1):
                found = await self._get(client, url, param)
                if isinstance(found, bytes):
                    return found
                url = found
        raise ApiError(f"{param}: more than {MAX_REDIRECTS} redirects, at last to {shorten(str(url))}", param)

    async def _get(self, client: httpx.AsyncClient, url: httpx.URL, param: str) -> bytes | httpx.URL:
        """The body, or the URL that the answer redirects to."""
        async with client.stream(**await self._pinned(url, param)) as response:
            if response.has_redirect_location:
                return url.join(response.headers["location"])
            return await self._body(response, url, param)

    async def _pinned(self, url: httpx.URL, param: str) -> dict:
        """A request to a checked network address of the URL; header and TLS handshake keep the host name."""
        if url.scheme not in ("http", "https") or not url.host:
            raise ApiError(
                f"{param}: {shorten(str(url))} is not an http or https address", param, code="unsupported_url"
            )
        raise_if_no_port(url)
        port = url.port or {"http": 80, "https": 443}[url.scheme]
        addresses = await resolve(url.host, port)
        refused = [address for address in addresses if not self.is_allowed(address)]
        if refused or not addresses:
            raise ApiError(
                f"{param}: {shorten(str(url))} leads to {refused[0] if refused else 'no address'}, which is not on "
                "the public internet; send the file as data:<type>;base64,<data>",
                param,
                code="address_not_allowed",
            )
        headers = {"host": url.netloc.decode(), "user-agent": "ming-serving", "accept-encoding": "identity"}
        target = url.copy_with(host=str(addresses[0]), userinfo=b"", fragment=None)
        return {"method": "GET", "url": target, "headers": headers, "extensions": {"sni_hostname": url.host}}

    async def _body(self, response: httpx.Response, url: httpx.URL, param: str) -> bytes:
        if response.status_code != httpx.codes.OK:
            raise ApiError(f"{param}: {shorten(str(url))} answers {response.status_code}", param, code="remote_failed")
        data = bytearray()
        async for chunk in response.aiter_raw():
            data += chunk
            if len(data) > self.max_bytes:
                raise ApiError(
                    f"{param}: {shorten(str(url))} is larger than {self.max_bytes} bytes", param, status=413
                )
        return bytes(data)


__all__ = ["Fetcher", "decode_field", "is_public", "resolve"]
