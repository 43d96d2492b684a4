"""HTTP to one server: connections that stay open, a limit for the whole request, no redirects."""

import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

MOST_BYTES = 32_000_000  # of one answer

Connect = Callable[[str, int, float], socket.socket]
"""(host, port, timeout) to a connected socket; where it may lead is decided there."""


def plain_connection(host: str, port: int, timeout: float) -> socket.socket:
    """For notebooks. The application checks the address too: see labeling.addresses."""
    return socket.create_connection((host, port), timeout=timeout)


class Wires:
    """Connections to one server: each thread keeps its own open between requests."""

    def __init__(self, url: str, key: str, timeout_seconds: float, connect: Connect) -> None:
        parts = urlsplit(url)
        self._is_https = parts.scheme == "https"
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self._is_https else 80)
        self._path = parts.path.rstrip("/")
        self._key, self._limit, self._connect = key, timeout_seconds, connect
        self._own = threading.local()
        self._open: set[socket.socket] = set()
        self._hung_up = False
        self._lock = threading.Lock()

    def exchange(
        self, path: str, payload: Mapping[str, Any] | None
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers in lower case, body. Redirects are not followed.

        Args:
            path: after the server's address; "../" goes from /v1 to what stands beside it.
        Raises: TimeoutError; OSError, http.client.HTTPException.
        """
        base = self._path
        if path.startswith("../"):
            base, path = self._path.removesuffix("/v1"), path.removeprefix("..")
        kept: http.client.HTTPConnection | None = getattr(self._own, "connection", None)
        self._own.connection = None
        if kept is not None and kept.sock is not None and kept.sock.fileno() >= 0:
            # The server may have closed it meanwhile: then a new one is tried.
            with suppress(ConnectionError, http.client.BadStatusLine):
                return self._once(kept, base + path, payload)
        return self._once(None, base + path, payload)

    def hang_up(self) -> None:
        """End what is in flight: the threads that wait for it see it fail, and until `close` nobody
        opens another connection."""
        with self._lock:
            self._hung_up = True
            still_open = list(self._open)
        for raw in still_open:
            _hang_up(raw)

    def close(self) -> None:
        """Close what is kept open, once nothing is in flight any more."""
        with self._lock:
            still_open, self._open = self._open, set()
            self._hung_up = False
        for raw in still_open:
            raw.close()

    def _once(
        self,
        connection: http.client.HTTPConnection | None,
        path: str,
        payload: Mapping[str, Any] | None,
    ) -> tuple[int, Mapping[str, str], bytes]:
        ends_at = time.monotonic() + self._limit
        is_new = connection is None
        connection = connection or self._new_connection()
        raw = connection.sock
        # A socket's timeout begins anew with every byte; this one does not.
        late = threading.Event()
        timer = threading.Timer(max(0.01, ends_at - time.monotonic()), _give_up, [raw, late])
        timer.start()
        keeps = False
        try:
            if is_new and isinstance(raw, ssl.SSLSocket):
                raw.do_handshake()
            body = None if payload is None else json.dumps(payload).encode()
            headers = {"Accept": "application/json", "User-Agent": "Prefloop"}
            if body is not None:
                headers["Content-Type"] = "application/json"
            if self._key:
                headers["Authorization"] = f"Bearer {self._key}"
            method = "GET" if body is None else "POST"
            connection.request(method, path, body=body, headers=headers)
            response = connection.getresponse()
            answer = response.read(MOST_BYTES)
            if late.is_set():  # what has come so far is no answer
                raise TimeoutError
            keeps = response.isclosed() and not response.will_close
            return (
                response.status,
                {name.lower(): value for name, value in response.getheaders()},
                answer,
            )
        except (OSError, http.client.HTTPException) as error:
            if late.is_set() or isinstance(error, TimeoutError):
                raise TimeoutError from None
            raise
        finally:
            timer.cancel()
            if keeps:
                self._own.connection = connection
            else:
                with self._lock:
                    self._open.discard(raw)
                raw.close()

    def _new_connection(self) -> http.client.HTTPConnection:
        limit = self._limit
        raw = self._connect(self._host, self._port, min(limit, 30.0))
        raw.settimeout(limit)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._is_https:
            context = ssl.create_default_context()
            raw = context.wrap_socket(
                raw, server_hostname=self._host, do_handshake_on_connect=False
            )
        connection = http.client.HTTPConnection(self._host, self._port, timeout=limit)
        connection.default_port = 443 if self._is_https else 80  # the Host header leaves it out
        connection.auto_open = 0  # it would open one to an address that nobody has checked
        connection.sock = raw
        with self._lock:
            hung_up = self._hung_up
            if not hung_up:
                self._open.add(raw)
        if hung_up:
            raw.close()
            raise ConnectionAbortedError("hung up")
        return connection


def _give_up(raw: socket.socket, late: threading.Event) -> None:
    late.set()
    _hang_up(raw)


def _hang_up(raw: socket.socket) -> None:
    with suppress(OSError):
        # Not the method of an SSLSocket, which would first forget its encryption: the thread that
        # reads would take what still arrives for plain text.
        socket.socket.shutdown(raw, socket.SHUT_RDWR)
