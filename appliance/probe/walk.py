"""Walk: the hops one after the other, each bounded, until one fails.

`deep` is for a person: every address is tried, what a bad server shows is looked
at, a large exchange proves the path, and what the destination takes is listed.
Without it there is one connection and one C-ECHO, as often as one likes.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from appliance.config.hosts import is_address
from appliance.model import escape
from appliance.net import sockets
from appliance.net.certstore import Store
from appliance.net.proxy import Proxy, ProxyError
from appliance.net.secure import Secure
from appliance.net.sockets import Address, Stream
from appliance.net.tls import Client
from appliance.net.tlserrors import OURS, TlsError
from appliance.policy import Failure, FailureKind
from appliance.policy.certificates import Facts
from appliance.probe import clock, line, secure, service, storage
from appliance.probe.report import Broken, Hop, Report, State
from appliance.probe.requestor import NoAnswer, Requestor
from appliance.probe.target import Target

HOP_SECONDS = 10.0
ALL_SECONDS = 60.0
SMALL_SEGMENTS = (1200, 536)
"""Bytes of TCP payload a packet with which a path is tried again that swallows larger ones."""

FIRST_SHARE = 0.5
"""Of a hop's time, for the attempt itself; the rest is for finding out why it failed."""

_PROXY_MENDS = {
    "reach": "Check the proxy's address and port, and that it runs.",
    "credentials": "Ask the proxy's administrator for a user name and password for this box.",
    "forbidden": "Ask the proxy's administrator to allow CONNECT to {place} for this box.",
    "far_end": "The proxy is there, and does not reach {place}: check address and port, and the proxy's own name server and "
               "firewall.",
    "no_password": "Write the line user:password, for its owner alone (0600).",
}


def walk(target: Target, state: str | Path, *, deep: bool = True, pairs: Sequence[storage.Pair] = (),
         clocks: Sequence[clock.Server] = (), hop_seconds: float | None = None) -> Report:
    """Walk to `target`. `state` is the folder that certificate store and proxies' passwords are in; `pairs` what waits for
    it: (SOP class, transfer syntax); `clocks`: servers that tell the time. Never raises for what is found."""
    with ExitStack() as stack:
        return _Walk(target, state, deep, pairs, clocks, hop_seconds or HOP_SECONDS, stack).report()


class _Walk:
    def __init__(self, target: Target, state: str | Path, deep: bool, pairs: Sequence[storage.Pair],
                 clocks: Sequence[clock.Server], hop_seconds: float, stack: ExitStack) -> None:
        self._target = target
        self._state = Path(state)
        self._deep = deep
        self._pairs = pairs
        self._clocks = list(clocks)
        self._hop_seconds = hop_seconds
        self._stack = stack
        self._began = time.monotonic()
        self._hops: list[Hop] = []
        self._client = Client(Store(state), target.entry, target.host) if target.entry is not None else None
        self._proxy = Proxy(target.proxy, state) if target.proxy else None
        self._addresses: list[Address] = []
        self._address: Address | None = None
        self._stream: Stream | None = None
        self._requestor: Requestor | None = None
        self._large: Requestor | None = None
        self._latest: socket.socket | None = None
        self._chain: list[Facts] = []

    # --- all of it ----------------------------------------------------------------------------------------------------

    def report(self) -> Report:
        for name, step in self._steps():
            self._step(name, step)
        if self._deep:
            self._hops.append(clock.clock(self._clocks, self._chain))
        return Report(self._target.id, self._target.place, tuple(self._hops), (time.monotonic() - self._began) * 1000)

    def _steps(self) -> list[tuple[str, Callable[[float], Hop | None]]]:
        if self._target.folder:
            return [("folder", self._folder)]
        steps: list[tuple[str, Callable[[float], Hop | None]]] = [
            ("configuration", self._configuration), ("name", self._name), ("tcp", self._tcp)]
        if self._proxy is not None:
            steps.append(("proxy", self._through_proxy))
        if self._client is not None:
            steps.append(("tls", self._tls))
        if self._target.dicom:
            steps += [("association", self._association), ("service", self._service)]
            if self._deep:
                steps += [("path", self._path), ("storage", self._storage)]
        if self._target.listen is not None:
            steps.append(("near", self._near))
        return steps

    def _step(self, name: str, step: Callable[[float], Hop | None]) -> None:
        if any(hop.name == name for hop in self._hops):
            return
        if any(hop.state is State.FAILED for hop in self._hops):
            self._hops.append(Hop(name, State.SKIPPED, "not reached"))
            return
        began = time.monotonic()
        try:
            hop = step(min(began + self._hop_seconds, self._began + ALL_SECONDS))
        except Broken as e:
            spent = (time.monotonic() - began) * 1000
            if e.hop and e.hop != name:
                self._elsewhere(name, e, spent)
            else:
                self._hops.append(Hop(name, State.FAILED, e.text, e.cause, e.mend, spent, e.facts))
            return
        if hop is not None:
            self._hops.append(replace(hop, milliseconds=(time.monotonic() - began) * 1000))

    def _elsewhere(self, name: str, e: Broken, spent: float) -> None:
        """The fault shows at one hop and belongs to another: one before it, or `path` behind it."""
        for nth, hop in enumerate(self._hops):
            if hop.name == e.hop:
                self._hops[nth] = Hop(e.hop, State.FAILED, e.text, e.cause, e.mend, hop.milliseconds, {**hop.facts, **e.facts})
                self._hops.append(Hop(name, State.SKIPPED, "not reached", milliseconds=spent))
                return
        self._hops.append(Hop(name, State.SKIPPED, f"see {e.hop}", milliseconds=spent))
        self._hops.append(Hop(e.hop, State.FAILED, e.text, e.cause, e.mend, 0.0, e.facts))

    # --- connections --------------------------------------------------------------------------------------------------

    def _connect(self, deadline: float, segment: int = 0) -> socket.socket:
        """Another connection by the way that was found, up to where TLS or DICOM begins. OSError."""
        assert self._address is not None
        port = self._target.port if self._proxy is None else self._proxy.port
        sock = sockets.connect_to(self._address, port, max(0.1, deadline - time.monotonic()), segment=segment)
        self._stack.callback(sock.close)
        self._latest = sock
        if self._proxy is not None:
            self._proxy.ask(sock, self._target.host, self._target.port, deadline)
            sock.setblocking(True)
        return sock

    def _secured(self, sock: socket.socket, deadline: float) -> Stream:
        if self._client is None:
            return sock
        stream = self._client.wrap(sock, deadline, f"the certificate of {self._target.id} ({self._target.place})")
        self._stack.callback(stream.close)
        return stream

    def _again(self, deadline: float, segment: int = 0) -> Requestor:
        """A new connection with TLS, if any, and an association on it. OSError, NoAnswer."""
        requestor = Requestor(self._secured(self._connect(deadline, segment), deadline))
        requestor.associate(self._target.called, self._target.calling, self._contexts(), deadline)
        return requestor

    def _contexts(self) -> list[Any]:
        return [service.VERIFICATION, *service.proposals(storage.proposed(self._pairs))]

    def _first(self, deadline: float) -> float:
        """Until when the attempt itself may take."""
        now = time.monotonic()
        return now + (deadline - now) * FIRST_SHARE if self._deep else deadline

    # --- the hops -----------------------------------------------------------------------------------------------------

    def _folder(self, deadline: float) -> Hop:
        from appliance.net.archive import Archive
        target = self._target
        try:
            with Archive(Path(target.folder)):
                return Hop("folder", State.OK, f"{target.folder} is an archive")
        except OSError as e:
            raise Broken("no_archive", f"{target.folder} cannot be used: {e.strerror or e}",
                         "Check that it is mounted; a new one is made by `dcmgate archive init`.") from None

    def _configuration(self, deadline: float) -> Hop:
        target, words = self._target, []
        if self._client is not None and target.entry is not None:
            try:
                self._client.context()
            except TlsError as e:
                id = target.entry.certificate if e.check == "no_certificate" else target.entry.trust or target.entry.certificate
                mend = (f"`dcmgate cert request {id}`, have it signed, `dcmgate cert install {id}`."
                        if e.check == "no_certificate" else
                        f"`dcmgate cert install {id} --trust` with the certificates of the authorities.")
                raise Broken(e.check, e.text, mend) from None
            words.append(f"TLS {target.entry.tls}, name {self._client.server_name}")
        else:
            words.append("no TLS")
        if self._proxy is not None:
            try:
                self._proxy.credentials()
            except ProxyError as e:
                raise Broken(e.check, e.text, _PROXY_MENDS["no_password"]) from None
            words.append(f"by the proxy {self._proxy.place}")
        if target.dicom and target.called:
            words.append(f'"{escape(target.calling)}" calls "{escape(target.called)}"')
        return Hop("configuration", State.OK, ", ".join(words))

    def _name(self, deadline: float) -> Hop:
        host = self._target.host if self._proxy is None else self._proxy.host
        whose = "" if self._proxy is None else "the proxy: "
        self._addresses = line.look_up(host, max(0.1, deadline - time.monotonic()))
        found = [str(parts[0]) for _, parts in self._addresses]
        if is_address(host):
            return Hop("name", State.OK, f"{whose}{escape(host)} is an address", facts={"addresses": found})
        return Hop("name", State.OK, f"{whose}{escape(host)} is {', '.join(found)}",
                   facts={"addresses": found, "name_servers": line.name_servers()})

    def _tcp(self, deadline: float) -> Hop:
        port = self._target.port if self._proxy is None else self._proxy.port
        dialled = line.dial(self._addresses, port, deadline - time.monotonic(), every=self._deep)
        good = next((each for each in dialled if each.sock is not None), None)
        if good is None or good.sock is None:
            broken = line.none_answers(dialled, port)
            if self._proxy is not None:
                broken.text = f"the proxy: {broken.text}"
            raise broken
        line.close_all(dialled, good.sock)
        self._stack.callback(good.sock.close)
        self._stream, self._address = good.sock, good.address
        facts = line.tcp_facts(dialled, port, good.sock)
        way = facts["way"]
        by = f" by {way['interface']}" if way["interface"] else ""
        gateway = f" and gateway {way['gateway']}" if way["gateway"] else ""
        text = f"{good.host} port {port} connects from {way['source'] or '?'}{by}{gateway}"
        bad = [each for each in dialled if each.sock is None]
        if bad:
            return Hop("tcp", State.WARNING, f"{text}; but {'; '.join(each.text for each in bad)}", bad[0].cause,
                       "Each connection may have to try that address first: mend it, or have it taken out of DNS.", facts=facts)
        return Hop("tcp", State.OK, text, facts=facts)

    def _through_proxy(self, deadline: float) -> Hop:
        assert self._proxy is not None and isinstance(self._stream, socket.socket)
        target = self._target
        if self._deep:
            self._clocks.append((self._proxy.host, self._proxy.port, False))
        try:
            self._proxy.ask(self._stream, target.host, target.port, deadline)
            self._stream.setblocking(True)
        except ProxyError as e:
            raise Broken(e.check, e.text, _PROXY_MENDS.get(e.check, "Check that it is an HTTP proxy, and look in its log.")
                         .format(place=target.place), facts={"status": e.status}) from None
        return Hop("proxy", State.OK, f"{self._proxy.place} leads to {target.place}")

    # TLS

    def _tls(self, deadline: float) -> Hop:
        assert isinstance(self._stream, socket.socket)
        try:
            stream = self._secured(self._stream, self._first(deadline))
            assert isinstance(stream, Secure)
            self._stream = stream
            if not (self._target.dicom and self._target.called):
                self._refused_late(stream)
        except TlsError as e:
            raise self._tls_failed(e, deadline) from None
        except TimeoutError:
            raise self._tls_hangs(deadline) from None
        except OSError as e:
            raise self._tls_failed(TlsError("closed", f"the connection broke in the middle of TLS: {e.strerror or e}"),
                                   deadline) from None
        facts = secure.agreed(stream)
        if self._deep:
            self._chain = secure.chain_facts(stream.chain())
        elif stream.identity is not None:
            facts["sha256"] = stream.identity.fingerprint
        facts["chain"] = secure.as_json(self._chain)
        return Hop("tls", State.OK, f"{stream.version}, {stream.suite}", facts=facts)

    def _refused_late(self, stream: Secure) -> None:
        """In TLS 1.3 our certificate is refused after the handshake; where no association follows, wait a moment for that."""
        sockets.set_timeouts(stream, receive=0.5)
        with suppress(BlockingIOError):
            if not stream.recv_into(bytearray(1)):
                raise TlsError("closed", "the connection was closed right after the handshake")

    def _tls_failed(self, error: TlsError, deadline: float, hop: str = "") -> Broken:
        seen: secure.Seen | None = None
        facts: dict[str, Any] = {}
        if self._deep:
            seen = self._look(deadline)
            if seen is not None:
                facts = {"shown_protocol": seen.protocol, "shown_suite": seen.suite}
                self._chain = secure.chain_facts(seen.chain)
                facts["chain"] = secure.as_json(self._chain)
                if error.check == "protocol_version":
                    error = TlsError(error.check, f"{error.text}: it speaks {seen.protocol}", error.certificate)
            elif error.check == "no_shared_suite" and self._target.entry is not None and not self._target.entry.certificate:
                # It does not want us by any suite: then it is what TLS 1.2 says where a certificate of ours is missing.
                error = TlsError("missing", "it asks for a certificate of ours, and we show none", OURS)
            elif error.check in ("not_tls", "closed", "broken") and not error.certificate:
                plain = self._plain_where_tls(deadline)
                if plain is not None:
                    return plain
        broken = secure.failure(error, self._target, self._chain, facts)
        broken.hop = hop
        return broken

    def _look(self, deadline: float) -> secure.Seen | None:
        entry = self._target.entry
        ours = Store(self._state).material(entry.certificate) if entry is not None and entry.certificate else None
        with suppress(OSError, ValueError):
            return secure.look(self._connect(deadline), self._target.host, ours, deadline)
        return None

    def _plain_where_tls(self, deadline: float) -> Broken | None:
        target = self._target
        with suppress(OSError):
            if target.dicom and service.speaks_plain_dicom(self._connect(deadline), target, deadline):
                return Broken("plain_where_tls", f"{target.place} speaks DICOM without TLS, and {target.named} wants TLS",
                              'Name its port for TLS (2762 by custom); tls = "off" would send images in clear text.')
            heard = service.speaks_http(self._connect(deadline), target.host, deadline)
            if what := service.what_it_is(heard):
                return Broken("not_tls", f"{target.place} speaks {what} without TLS", "Check the address and the port.")
        return None

    def _tls_hangs(self, deadline: float) -> Broken:
        small = self._passes_small(deadline, lambda segment, until: self._secured(self._connect(until, segment), until))
        if small:
            return self._black_hole(small, "the TLS handshake")
        if self._deep and (plain := self._plain_where_tls(deadline)) is not None:
            return plain
        return Broken("no_answer", f"{self._target.place} takes the connection and does not answer our TLS handshake",
                      "Check the port, and whether it speaks TLS there; if it does, restart the service.")

    # The path

    def _passes_small(self, deadline: float, attempt: Callable[[int, float], object]) -> int:
        """The size of segments with which an exchange gets through that hangs without; 0 where it hangs anyway."""
        for left, segment in zip(range(len(SMALL_SEGMENTS), 0, -1), SMALL_SEGMENTS, strict=True):
            now = time.monotonic()
            if not self._deep or now >= deadline:
                return 0
            with suppress(OSError, NoAnswer):
                attempt(segment, now + (deadline - now) / left)
                return segment
        return 0

    def _black_hole(self, segment: int, what: str) -> Broken:
        mtu = segment + 40
        return Broken("path_mtu", f"large packets vanish on the way to {self._target.place}: {what} hangs, and gets through in "
                      f"packets of {mtu} bytes",
                      "Somewhere on the way (VPN, DSL, tunnel) the MTU is smaller, and the ICMP messages that would say so are "
                      f"dropped: have them let through, or set the MTU of this box's interface to {mtu}.",
                      facts={"passes_mtu": mtu}, hop="path")

    def _path(self, deadline: float) -> Hop:
        """A request of many packets, and what it says of storage."""
        if self._requestor is None:
            return Hop("path", State.SKIPPED, "no association to try it with")
        try:
            requestor = self._again(self._first(deadline))
        except NoAnswer as lost:
            return self._path_failed(lost, deadline)
        except OSError as e:
            return Hop("path", State.WARNING, f"a second connection failed: {e.strerror or e}", "second_connection",
                       "See whether it takes only one connection at a time.")
        self._large = requestor
        facts = line.path_facts(self._latest) if self._latest is not None else {}
        text = "a large request gets through" + (f", path MTU {facts['path_mtu']}" if "path_mtu" in facts else "")
        if isinstance(requestor.stream, Secure):
            self._note("tls", resumed_again=requestor.stream.resumed)
            text += ", TLS session resumed" if requestor.stream.resumed else ", TLS session not resumed"
        requestor.release(min(deadline, time.monotonic() + 2.0))
        return Hop("path", State.OK, text, facts=facts)

    def _storage(self, deadline: float) -> Hop:
        if self._large is None:
            return Hop("storage", State.SKIPPED, "no association to ask by")
        return storage.judge(self._target, self._large.contexts, self._pairs)

    def _path_failed(self, lost: NoAnswer, deadline: float) -> Hop:
        answer = lost.answer
        if isinstance(answer, Failure) and answer.kind is FailureKind.TIMEOUT:
            small = self._passes_small(deadline, lambda segment, until: self._again(until, segment))
            if small:
                raise self._black_hole(small, "a large request")
            return Hop("path", State.WARNING, "a request with 128 presentation contexts gets no answer, not in small packets "
                       "either", "large_request", "Deliveries propose fewer, so this need not matter; look in its log.")
        broken = service.no_association(lost, self._target)
        return Hop("path", State.WARNING, f"a second association, with 128 presentation contexts: {broken.text}", broken.cause,
                   "Deliveries propose fewer, so this need not matter; look in its log.")

    def _note(self, name: str, **facts: Any) -> None:
        for nth, hop in enumerate(self._hops):
            if hop.name == name:
                self._hops[nth] = replace(hop, facts={**hop.facts, **facts})

    # DICOM

    def _association(self, deadline: float) -> Hop:
        target = self._target
        assert self._stream is not None
        if not target.called:
            return Hop("association", State.SKIPPED, "nothing to call: the titles are the scanner's")
        requestor = Requestor(self._stream)
        try:
            accepted = requestor.associate(target.called, target.calling, [service.VERIFICATION], self._first(deadline))
        except NoAnswer as lost:
            raise self._not_associated(lost, deadline) from None
        self._requestor = requestor
        name = escape(accepted.accept.implementation_version or accepted.accept.implementation_uid)[:64]
        return Hop("association", State.OK, f'"{escape(target.called)}" takes "{escape(target.calling)}"' +
                   (f"; it is {name}" if name else ""), facts={
                       "implementation": name, "implementation_uid": escape(accepted.accept.implementation_uid)[:64],
                       "max_pdu": accepted.accept.max_length})

    def _not_associated(self, lost: NoAnswer, deadline: float) -> Broken:
        if isinstance(lost.error, TlsError):
            return self._tls_failed(lost.error, deadline, "tls")
        broken = service.no_association(lost, self._target)
        if broken.cause in ("no_answer", "closed") and self._deep:
            with suppress(OSError):
                if self._client is None and self._look(deadline) is not None:
                    return Broken("tls_where_plain", f"{self._target.place} speaks TLS, and {self._target.named} has "
                                  'tls = "off"', 'Write tls = "bcp195" and what it needs; or name its port without TLS.')
                other = self._secured(self._connect(deadline), deadline)
                if what := service.what_it_is(service.speaks_http(other, self._target.host, deadline)):
                    return Broken("not_dicom", f"{self._target.place} is no DICOM server: it speaks {what}",
                                  "Check the address and the port: another service answers there.")
        return broken

    def _service(self, deadline: float) -> Hop:
        requestor, target = self._requestor, self._target
        if requestor is None:
            return Hop("service", State.SKIPPED, "no association")
        try:
            status = requestor.echo(deadline)
        except NoAnswer as lost:
            if isinstance(lost.error, TlsError):
                raise self._tls_failed(lost.error, deadline, "tls") from None
            raise service.no_service(lost, target) from None
        requestor.release(min(deadline, time.monotonic() + 2.0))
        if self._client is not None and isinstance(self._stream, Secure):
            self._client.keep(self._stream)
        if status is None:
            return Hop("service", State.WARNING, f"{target.place} does not take Verification: the association alone shows "
                       "that it is there", "no_verification",
                       "Nothing need be done; where it can be allowed, C-ECHO proves more.")
        if status:
            raise Broken("echo_status", f"{target.place} answers C-ECHO with status {status:04X}", "Look in its log.",
                         facts={"status": status})
        return Hop("service", State.OK, "C-ECHO is answered", facts={"status": status})

    # A tunnel's near end

    def _near(self, deadline: float) -> Hop:
        assert self._target.listen is not None
        target, (host, port) = self._target, self._target.listen
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        place = f"{host}:{port}"
        try:
            sock = self._stack.enter_context(sockets.connect(host, port, max(0.1, deadline - time.monotonic())))
        except OSError as e:
            raise Broken("not_running", f"the near end of {target.named}, {place}, does not answer: {e.strerror or e}",
                         "See whether the gateway runs, and what its log says of this tunnel.") from None
        if target.entry is None or not (target.dicom and target.called):
            return Hop("near", State.OK, f"{place} takes connections")
        requestor = Requestor(sock)
        try:
            requestor.associate(target.called, target.calling, [service.VERIFICATION], deadline)
            requestor.echo(deadline)
        except NoAnswer as lost:
            text = service.no_association(lost, target).text if not requestor.contexts else "C-ECHO is not answered"
            raise Broken("tunnel", f"{place} takes connections, and nothing comes through: {text}",
                         "The far end answers without the tunnel: look at the log of this tunnel.") from None
        requestor.release(min(deadline, time.monotonic() + 2.0))
        return Hop("near", State.OK, f"C-ECHO is answered through {place}")
