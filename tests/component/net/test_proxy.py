"""CONNECT through proxies that say yes, no, nothing, too much, or nonsense."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.net.proxy import LARGEST_ANSWER, Proxy, ProxyError
from appliance.policy import FailureKind, failure_of
from tests.support.proxies import LOGIN, BadProxy, bad_proxy, password, says
from tests.support.waiting import free_port

YES = b"HTTP/1.1 200 Connection established\r\n\r\n"


def refused(proxy: Proxy, seconds: float = 5.0) -> ProxyError:
    with pytest.raises(ProxyError) as caught:
        proxy.connect("pacs.example.org", 2762, seconds)
    return caught.value


def test_what_follows_the_answer_is_the_far_ends_and_nothing_before_it(tmp_path: Path) -> None:
    """In one packet, in pieces, with interim answers, with lines of the proxy's own, with bare line feeds."""
    for parts in ([YES + b"hello"], [b"HTTP/1.1 2", b"00\r\n", b"\r", b"\nhello"],
                  [b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200\r\nContent-Length: 9\r\nVia: x\r\n\r\nhello"],
                  [b"HTTP/1.0 204 Yes\n\nhel", b"lo"]):
        with bad_proxy(says(*parts)) as there, Proxy(there.place, tmp_path).connect("pacs.example.org", 2762, 5) as sock:
            assert sock.getblocking()
            said = b""
            while part := sock.recv(100):
                said += part
        assert said == b"hello", parts
        assert there.requests == [b"CONNECT pacs.example.org:2762 HTTP/1.1\r\nHost: pacs.example.org:2762\r\n\r\n"]


def test_an_address_of_ipv6_and_the_password_of_its_file(tmp_path: Path) -> None:
    with bad_proxy(says(YES)) as there:
        file = password(tmp_path, there.place, "clinic:p:w")
        Proxy(there.place, tmp_path).connect("2001:db8::7", 2762, 5).close()
        assert b"CONNECT [2001:db8::7]:2762 " in there.requests[0]
        assert b"\r\nProxy-Authorization: Basic Y2xpbmljOnA6dw==\r\n" in there.requests[0]
        file.write_text("clinic:new\n")                     # counts from the next connection on
        Proxy(there.place, tmp_path).connect("2001:db8::7", 2762, 5).close()
        assert b"Basic Y2xpbmljOm5ldw==" in there.requests[1]


NO: dict[str, tuple[tuple[bytes, ...], str, str, FailureKind]] = {
    "password is missing": ((b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=x\r\n\r\n",),
                            "credentials", "it wants a user name and password", FailureKind.PROXY_REFUSES),
    "another scheme": ((b"HTTP/1.1 407 No\r\nProxy-Authenticate: Negotiate\r\nProxy-Authenticate: NTLM\r\n\r\n",),
                       "credentials", "it wants negotiate, ntlm, and only Basic", FailureKind.PROXY_REFUSES),
    "forbidden": ((b"HTTP/1.1 403 Forbidden\r\n\r\n",), "forbidden", "does not lead to pacs.example.org:2762",
                  FailureKind.PROXY_REFUSES),
    "method": ((b"HTTP/1.1 405 Method Not Allowed\r\n\r\n",), "forbidden", "405", FailureKind.PROXY_REFUSES),
    "redirect": ((b"HTTP/1.1 302 Found\r\nLocation: http://login/\r\n\r\n",), "forbidden", "302", FailureKind.PROXY_REFUSES),
    "bad gateway": ((b"HTTP/1.1 502 Bad Gateway\r\n\r\n",), "far_end", "cannot reach pacs.example.org:2762",
                    FailureKind.PROXY),
    "gateway time-out": ((b"HTTP/1.1 504 \r\n\r\n",), "far_end", "504", FailureKind.PROXY),
    "ssh": ((b"SSH-2.0-OpenSSH_9.2\r\n",), "not_a_proxy", "is no HTTP proxy", FailureKind.PROXY),
    "nonsense": ((b"HTTP/1.1 OK\r\n\r\n",), "not_a_proxy", "is no HTTP proxy", FailureKind.PROXY),
    "too long": ((b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * LARGEST_ANSWER,), "not_a_proxy", "longer", FailureKind.PROXY),
    "interim for ever": ((b"HTTP/1.1 100 Continue\r\n\r\n" * 100,), "not_a_proxy", "never comes", FailureKind.PROXY),
    "nothing": ((), "closed", "without an answer", FailureKind.PROXY),
    "half": ((b"HTTP/1.1 200 OK\r\nVia:",), "closed", "in the middle", FailureKind.PROXY),
    "control characters": ((b"HTTP/1.1 403 \x1b[2Jno\r\n\r\n",), "forbidden", "403 (?[2Jno)", FailureKind.PROXY_REFUSES),
}


@pytest.mark.parametrize("what", NO)
def test_no_in_all_ways(tmp_path: Path, what: str) -> None:
    parts, check, words, kind = NO[what]
    with bad_proxy(says(*parts)) as there:
        error = refused(Proxy(there.place, tmp_path))
    assert (error.check, failure_of(error).kind) == (check, kind), error
    assert words in str(error) and there.place in str(error)


def test_a_wrong_password_is_told_from_a_missing_one_and_never_said(tmp_path: Path) -> None:
    with bad_proxy(says(b"HTTP/1.1 407 No\r\n\r\n")) as there:
        password(tmp_path, there.place)
        error = refused(Proxy(there.place, tmp_path))
    assert error.check == "credentials" and "does not take our user name and password" in str(error)
    assert LOGIN.partition(":")[2] not in str(error)


@pytest.mark.parametrize(("line", "words"), [("nobody", "no line of the form"), ("", "no line of the form"),
                                             (":x", "no line of the form"), ("a:b\tc", "control character"),
                                             ("a:" + "b" * 2000, "too long")])
def test_a_file_that_is_no_password(tmp_path: Path, line: str, words: str) -> None:
    with bad_proxy(says(YES)) as there:
        password(tmp_path, there.place, line)
        error = refused(Proxy(there.place, tmp_path))
        assert error.check == "no_password" and words in str(error)
        assert there.requests == []


def test_no_proxy_there(tmp_path: Path) -> None:
    error = refused(Proxy(f"127.0.0.1:{free_port()}", tmp_path))
    assert error.check == "reach" and "Connection refused" in str(error)
    error = refused(Proxy("proxy.invalid:3128", tmp_path))
    assert error.check == "reach" and "proxy.invalid:3128" in str(error)


def _drips(sock: socket.socket) -> None:
    for byte in b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000:
        sock.sendall(bytes((byte,)))
        threading.Event().wait(0.1)


@pytest.mark.parametrize("script", [lambda sock: sock.recv(1), _drips], ids=["silent", "dripping"])
def test_one_deadline_for_all_of_it(tmp_path: Path, script: Callable[[socket.socket], None]) -> None:
    with bad_proxy(script) as there:
        began = time.monotonic()
        error = refused(Proxy(there.place, tmp_path), 0.5)
        assert error.check == "timeout" and time.monotonic() - began < 3


def test_given_up_while_the_answer_is_awaited(tmp_path: Path) -> None:
    there: BadProxy
    cancel = os.eventfd(0, os.EFD_CLOEXEC)

    def script(sock: socket.socket) -> None:
        os.eventfd_write(cancel, 1)
        sock.recv(1)

    with bad_proxy(script) as there:
        began = time.monotonic()
        with pytest.raises(ProxyError) as caught:
            Proxy(there.place, tmp_path).connect("pacs.example.org", 2762, 60, cancel)
        assert caught.value.check == "closed" and time.monotonic() - began < 10
    os.close(cancel)
