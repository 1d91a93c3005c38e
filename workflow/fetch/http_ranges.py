"""Requests for a file or a range of it over HTTP, through proxies and redirects, with every failure in words."""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import IO, NamedTuple

from gnnscale.contract.errors import UserError, reason_of

TIMEOUT_SECONDS = 60.0  # of a connection and of each read: a server that is silent for longer has hung
BLOCK_BYTES = 1 << 20
BUSY_CODES = (408, 425, 429, 500, 502, 503, 504)  # of servers that may answer if they are asked again
WEB_PAGE = re.compile(rb"\s*<(!doctype html|html)\b", re.IGNORECASE)


class Transient(Exception):
    """A failure that may not occur again: a cut connection, a busy server."""


class NoNetwork(UserError):
    """A host that cannot be reached from this machine at all."""


class FileChanged(Exception):
    """The answer of a server that has another file at this address than before."""


class RemoteFile(NamedTuple):
    """The facts that a server tells about a file."""

    url: str
    size: int | None  # bytes; None = it does not say
    has_ranges: bool
    tag: str  # ETag or time of modification, by which a change is seen; "" = it tells neither


class NoDowngrade(urllib.request.HTTPRedirectHandler):
    """A handler that follows redirects, but never from an encrypted connection to a plain one."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise UserError(f"{req.full_url}: the server sends us on to {newurl}, which is not encrypted")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def ask(url: str, page: str) -> RemoteFile:
    """Ask for the first byte of a file, and return what the server tells of it; `page` is where a person finds it."""
    with open_url(url, {"Range": "bytes=0-0"}, page) as answer:
        refuse_other_content(url, answer, page)
        headers = answer.headers
        tag = headers.get("ETag") or headers.get("Last-Modified") or ""
        if answer.status == 206:
            total = total_of(headers.get("Content-Range", ""))
            return RemoteFile(url, total, total is not None, tag)
        size = headers.get("Content-Length", "")
        return RemoteFile(url, int(size) if size.isdigit() else None, False, tag)


def read_range(remote: RemoteFile, begin: int, end: int, page: str) -> Iterator[bytes]:
    """Yield the bytes from `begin` up to `end`, or fewer where the connection is cut."""
    asked = {"Range": f"bytes={begin}-{end - 1}"}
    if remote.tag and not remote.tag.startswith("W/"):  # a weak tag does not name exact bytes
        asked["If-Range"] = remote.tag
    with open_url(remote.url, asked, page) as answer:
        if answer.status != 206:
            raise_for_whole_file(remote, answer)
        if (sent := answer.headers.get("Content-Range", "")) != f"bytes {begin}-{end - 1}/{remote.size}":
            raise FileChanged(f"bytes {begin}-{end - 1}/{remote.size} were asked for, and the server sends {sent!r}")
        yield from limited(read_blocks(answer), end - begin)


def read_whole(remote: RemoteFile, page: str) -> Iterator[bytes]:
    """Yield a file from its beginning, from a server that knows no ranges."""
    with open_url(remote.url, {}, page) as answer:
        yield from read_blocks(answer)


def raise_for_whole_file(remote: RemoteFile, answer: http.client.HTTPResponse) -> None:
    """Raise for a server that sends the whole file, as it does for a file that has changed."""
    tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
    if tag != remote.tag:
        raise FileChanged("the file on the server is another one than when the download began")
    raise Transient("the server sent the whole file in place of a range of it")


def limited(blocks: Iterator[bytes], left: int) -> Iterator[bytes]:
    for block in blocks:
        yield block[:left]
        left -= len(block)
        if left <= 0:
            return


def read_blocks(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    while True:
        try:
            block = answer.read1(BLOCK_BYTES)  # what has arrived: progress and a stop are seen at once
        except (OSError, http.client.HTTPException) as error:
            raise Transient(describe_cut(error)) from None
        if not block:
            return
        yield block


def total_of(content_range: str) -> int | None:
    """Return 1234 for `bytes 0-0/1234`."""
    total = content_range.rpartition("/")[2]
    return int(total) if total.isdigit() else None


def refuse_other_content(url: str, answer: http.client.HTTPResponse, page: str) -> None:
    """Raise for an answer that is not the file: a web page, or a test whether a browser asks."""
    is_page = answer.headers.get_content_type() in ("text/html", "application/xhtml+xml")
    if is_page or answer.status not in (200, 206):
        sent = "a web page" if is_page else f"{answer.status} {answer.reason}"
        raise UserError(
            f"{url}: the server sends {sent} in place of the file; it may ask for a login or for a browser, or have moved it",
            f"get it by a browser, into the folder of the set; the files are described at {page}",
        )


def is_web_page(beginning: bytes) -> bool:
    """Return whether a file begins as a web page does, whatever the server called it."""
    return WEB_PAGE.match(beginning) is not None


# ------------------------------------------------------------------------------------------------------------ failures
def open_url(url: str, headers: dict[str, str], page: str) -> http.client.HTTPResponse:
    """Open an address through the proxies that the environment names; raise in words what cannot be mended by waiting."""
    request = urllib.request.Request(url, headers={"User-Agent": "gnnscale", "Accept-Encoding": "identity"} | headers)
    try:
        answer: http.client.HTTPResponse = urllib.request.build_opener(NoDowngrade).open(
            request, timeout=TIMEOUT_SECONDS
        )
        return answer
    except urllib.error.HTTPError as error:
        error.close()
        raise failure_of_code(url, error, page) from None
    except (OSError, http.client.HTTPException) as error:
        raise failure_of_connection(url, error) from None


def failure_of_code(url: str, error: urllib.error.HTTPError, page: str) -> Exception:
    """Return the failure of a server that answered, but not with the file."""
    words = f"{url}: the server answers {error.code} {error.reason}"
    if error.code in BUSY_CODES:
        return Transient(words)
    if "infinite loop" in str(error.msg):
        return UserError(f"{url}: the server sends us on in a circle", f"the files are described at {page}")
    if error.code in (401, 403):
        return UserError(f"{words}: it may ask for a login or for an accepted licence", f"see {page}")
    return UserError(words, f"the address may have changed; the files are described at {page}")


def failure_of_connection(url: str, error: Exception) -> Exception:
    """Return the failure to reach a server: for good, or for the moment."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    host = urllib.parse.urlsplit(url).netloc
    if isinstance(reason, ssl.SSLCertVerificationError):
        return UserError(
            f"{host}: its certificate is not trusted ({reason.verify_message})",
            "if a proxy of this site has a certificate of its own: export SSL_CERT_FILE=FILE",
        )
    if isinstance(reason, OSError) and "Tunnel connection failed" in str(reason):
        return NoNetwork(f"{host}: the proxy {proxy_of(url)} refuses the connection ({reason})")
    if isinstance(reason, ConnectionResetError | http.client.HTTPException):
        return Transient(describe_cut(reason))
    words = reason_of(reason) if isinstance(reason, OSError) else str(reason)
    via = f" through the proxy {proxy_of(url)}" if proxy_of(url) else ""
    return NoNetwork(f"{host}: cannot be reached from {socket.gethostname()}{via} ({words})")


def proxy_of(url: str) -> str:
    """Return the proxy of an address, without a password that it may hold; "" without a proxy."""
    parts = urllib.parse.urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme, "")
    bypassed = urllib.request.proxy_bypass(parts.hostname or "")
    return "" if not proxy or bypassed else proxy.rpartition("@")[2]


def describe_cut(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return f"the server was silent for {TIMEOUT_SECONDS:.0f} s"
    reason = reason_of(error) if isinstance(error, OSError) else type(error).__name__
    return f"the connection was cut ({reason})"
