"""The requestor's association against destinations that hang, stop, reset, reject, drip or talk nonsense."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from appliance.dicom import dimse, pdu, uids
from appliance.errors import DeliveryError, ObjectDamaged
from appliance.forward.association import Association, AssociationLost, Limits
from appliance.model import Fault
from appliance.policy import Aborted, Failure, FailureKind, Party, Rejected
from tests.support.dicom_peer import Connection, dicom_peer, hang
from tests.support.waiting import free_port, wait_until

CT, EXPLICIT = uids.CT_IMAGE_STORAGE, uids.EXPLICIT_LE
CONTEXTS = [pdu.ProposedContext(1, CT, (EXPLICIT,)), pdu.ProposedContext(3, uids.VERIFICATION, (uids.IMPLICIT_LE,))]
SHORT = Limits(connect=2.0, progress=0.3)
LONG = Limits(connect=5.0, progress=10.0)
HARD = 5.0
"""Seconds in which everything below with SHORT limits must have ended: far beyond them, far below for ever."""


def party(port: int, host: str = "127.0.0.1") -> Party:
    return Party("pacs", host, port, "PACS", "GATE")


def opened(port: int, limits: Limits = SHORT) -> Association:
    association = Association(party(port), limits)
    association.associate(CONTEXTS)
    return association


def store(association: Association, data: bytes = b"abcd" * 100) -> dimse.Command:
    context = association.context_for(CT, EXPLICIT)
    assert context is not None
    return association.store(context, CT.encode(), b"1.2.3", [(data, True)])


def lost(call: object, *args: object) -> AssociationLost:
    begun = time.monotonic()
    with pytest.raises(AssociationLost) as caught:
        call(*args)  # type: ignore[operator]
    assert time.monotonic() - begun < HARD
    return caught.value


def kind(error: AssociationLost) -> FailureKind:
    assert isinstance(error.answer, Failure), error.answer
    return error.answer.kind


def test_store_echo_release():
    def script(connection: Connection) -> None:
        connection.associate(max_length=4096)
        connection.serve([0, 0xB000])
    with dicom_peer(script) as peer:
        association = opened(peer.port)
        assert association.echo() == 0
        assert store(association, b"0123456789" * 3000).status == 0xB000
        assert store(association, b"").status == 0
        association.release()
        assert not association.is_open
    first, second = peer.stored
    assert (first.data, second.data) == (b"0123456789" * 3000, b"")
    assert (first.command.message_id, second.command.message_id) == (2, 3)
    request = peer.requests[0]
    assert (pdu.title_text(request.called), pdu.title_text(request.calling)) == ("PACS", "GATE")
    assert request.contexts == tuple(CONTEXTS)


def test_fragments_respect_the_peers_maximum_length_and_ours():
    seen: list[int] = []

    def script(connection: Connection) -> None:
        connection.associate(max_length=1000)
        feed = connection.layer.feed

        def noted(data: bytes) -> list[object]:
            events = feed(data)
            return events  # type: ignore[return-value]
        connection.layer.feed = noted  # type: ignore[method-assign]
        raw = b""
        while data := connection.sock.recv(65536):
            raw += data
            position, last = 0, False
            seen.clear()
            while position + 12 <= len(raw):
                length = int.from_bytes(raw[position + 2:position + 6], "big")
                seen.append(length)
                last = raw[position + 11] == 2
                position += 6 + length
            if last and position == len(raw):
                connection.sock.sendall(connection.layer.send_command(1, dimse.store_response(dimse.Command(1, 1), 0)))
                return
    with dicom_peer(script) as peer:
        assert store(opened(peer.port), bytes(10_001)).status == 0
    assert max(seen) <= 1000
    assert seen[1:-1] == [1000] * (len(seen) - 2)
    assert sum(length - 6 for length in seen[1:]) == 10_001


@pytest.mark.requirement("hazard: destination never answers")
def test_nobody_answers_the_association():
    with dicom_peer(hang) as peer:
        error = lost(opened, peer.port, Limits(connect=0.4, progress=10))
        assert kind(error) is FailureKind.TIMEOUT
        assert error.fault is Fault.DESTINATION


@pytest.mark.requirement("hazard: destination never answers")
def test_nobody_answers_the_object():
    def script(connection: Connection) -> None:
        connection.associate()
        connection.store(status=None)
        hang(connection)
    with dicom_peer(script) as peer:
        assert kind(lost(store, opened(peer.port))) is FailureKind.TIMEOUT


@pytest.mark.requirement("hazard: destination accepts, then stops reading")
def test_the_destination_stops_reading():
    def script(connection: Connection) -> None:
        connection.associate()
        hang(connection)
    with dicom_peer(script, receive_buffer=8192) as peer:
        association = opened(peer.port)
        context = association.context_for(CT, EXPLICIT)
        assert context is not None
        endless = ((bytes(131072), False) for _ in iter(int, 1))
        assert kind(lost(association.store, context, CT.encode(), b"1.2.3", endless)) is FailureKind.TIMEOUT
        assert not association.is_open


@pytest.mark.requirement("hazard: time-outs are for lack of progress")
def test_a_slow_line_is_no_failure():
    """3 MB at about 2 MB/s, with 0.3 s for progress: the whole takes several times as long, and succeeds."""
    def script(connection: Connection) -> None:
        connection.associate(max_length=131072)
        read = connection.sock.recv

        class Slow:
            def recv(self, count: int) -> bytes:
                connection.peer.stop.wait(0.03)
                return read(count)

            def __getattr__(self, name: str) -> object:
                return getattr(sock, name)
        sock, connection.sock = connection.sock, Slow()  # type: ignore[assignment]
        connection.serve()
    with dicom_peer(script, receive_buffer=32768) as peer:
        association = opened(peer.port)
        begun = time.monotonic()
        assert store(association, bytes(3_000_000)).status == 0
        assert time.monotonic() - begun > 3 * SHORT.progress, "it was not slow: this proves nothing"
        association.release()
    assert len(peer.stored[0].data) == 3_000_000


@pytest.mark.requirement("hazard: time-outs are for lack of progress")
def test_an_answer_that_drips_is_no_progress():
    def script(connection: Connection) -> None:
        connection.associate()
        _, command = connection.command()
        answer = connection.layer.send_command(1, dimse.store_response(command, 0))
        for byte in answer:
            connection.sock.sendall(bytes((byte,)))
            if connection.peer.stop.wait(0.1):
                return
    with dicom_peer(script) as peer:
        assert kind(lost(store, opened(peer.port))) is FailureKind.TIMEOUT


def test_a_reset_in_the_middle_of_a_pdu():
    def script(connection: Connection) -> None:
        connection.associate()
        connection.command()
        connection.sock.recv(100)
        connection.reset()
    with dicom_peer(script, receive_buffer=8192) as peer:
        assert kind(lost(store, opened(peer.port, LONG), bytes(5_000_000))) is FailureKind.CLOSED


def test_the_connection_ends_instead_of_an_answer():
    def script(connection: Connection) -> None:
        connection.associate()
        connection.store(status=None)
    with dicom_peer(script) as peer:
        error = lost(store, opened(peer.port, LONG))
        assert kind(error) is FailureKind.CLOSED
        assert "closed" in error.message


@pytest.mark.parametrize("codes, fault", [((1, 1, 7), Fault.CONFIGURATION), ((1, 1, 3), Fault.CONFIGURATION),
                                          ((2, 3, 2), Fault.DESTINATION), ((2, 3, 1), Fault.DESTINATION)])
def test_rejections(codes: tuple[int, int, int], fault: Fault):
    def script(connection: Connection) -> None:
        connection.requested()
        connection.sock.sendall(connection.layer.reject(*codes))
    with dicom_peer(script) as peer:
        error = lost(opened, peer.port)
        assert error.answer == Rejected(*codes)
        assert error.fault is fault
        if codes == (1, 1, 7):
            assert '"PACS"' in error.message


@pytest.mark.parametrize("during_object", [False, True])
def test_an_abort_by_the_destination(during_object: bool):
    def script(connection: Connection) -> None:
        if during_object:
            connection.associate()
            connection.command()
        else:
            connection.requested()
        connection.sock.sendall(connection.layer.abort(2, 6))
    with dicom_peer(script) as peer:
        if during_object:
            association = opened(peer.port)
            error = lost(store, association)
            assert error.fault is Fault.OBJECT
        else:
            error = lost(opened, peer.port)
            assert error.fault is Fault.DESTINATION
        assert error.answer == Aborted(2, 6, during_object)


def test_an_abort_while_we_still_send_is_told_as_such():
    """The destination sends A-ABORT and reads no more: what it said counts, not the broken pipe."""
    def script(connection: Connection) -> None:
        connection.associate()
        connection.command()
        connection.sock.sendall(connection.layer.abort(2, 1))
        connection.sock.shutdown(socket.SHUT_WR)
        connection.peer.stop.wait(1)
    with dicom_peer(script, receive_buffer=8192) as peer:
        error = lost(store, opened(peer.port, Limits(2.0, 0.3)), bytes(20_000_000))
        assert error.answer == Aborted(2, 1, True)


NONSENSE = {
    "not DICOM": lambda c: b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "a response to another message": lambda c: c.layer.send_command(1, dimse.store_response(dimse.Command(1, 77), 0)),
    "an echo response": lambda c: c.layer.send_command(1, dimse.echo_response(dimse.Command(0x30, 1))),
    "a request": lambda c: c.layer.send_command(1, dimse.echo_request(1)),
    "a release request": lambda c: c.layer.release(),
    "a context that was not accepted": lambda c: c.layer.send_command(5, dimse.store_response(dimse.Command(1, 1), 0)),
    "PDU length 0xFFFFFFFF": lambda c: b"\x04\0\xff\xff\xff\xff",
}


@pytest.mark.requirement("threat: hostile answers")
@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_is_never_a_success(name: str):
    def script(connection: Connection) -> None:
        connection.associate()
        connection.store(status=None)
        connection.sock.sendall(NONSENSE[name](connection))
        hang(connection)
    with dicom_peer(script) as peer:
        error = lost(store, opened(peer.port))
        assert kind(error) is FailureKind.PROTOCOL
        assert error.fault is Fault.DESTINATION


def test_an_answer_counts_whatever_comes_behind_it():
    answer = dimse.store_response(dimse.Command(1, 1), 0xB007)
    for behind in (lambda c: c.layer.abort(), lambda c: c.layer.release(), lambda c: c.layer.send_command(1, answer),
                   lambda c: b"\xff\xff"):
        def script(connection: Connection, behind: object = behind) -> None:
            connection.associate()
            connection.store(status=None)
            connection.sock.sendall(connection.layer.send_command(1, answer) + behind(connection))  # type: ignore[operator]
            hang(connection)
        with dicom_peer(script) as peer:
            association = opened(peer.port)
            assert store(association).status == 0xB007
            wait_until(lambda: not association.is_usable(), 5)  # noqa: B023
            assert not association.is_open


@pytest.mark.requirement("threat: hostile answers")
def test_an_answer_that_came_before_its_question_is_not_taken_for_one():
    def script(connection: Connection) -> None:
        connection.associate()
        connection.store(status=None)
        answer = connection.layer.send_command(1, dimse.store_response(dimse.Command(1, 1), 0))
        connection.sock.sendall(answer + answer)
        hang(connection)
    with dicom_peer(script) as peer:
        association = opened(peer.port)
        store(association)
        assert kind(lost(store, association)) is FailureKind.PROTOCOL


@pytest.mark.requirement("I5")
def test_a_data_set_that_ends_in_an_error_never_becomes_whole():
    heard: list[str] = []

    def script(connection: Connection) -> None:
        connection.associate()
        connection.command()
        while True:
            event = connection.event()
            heard.append(type(event).__name__ + str(getattr(event, "last", "")))
            if not heard[-1].startswith("Fragment"):
                return

    def damaged() -> Iterator[tuple[bytes, bool]]:
        yield b"abcd", False
        raise ObjectDamaged(7, "digest is wrong")
    with dicom_peer(script) as peer:
        association = opened(peer.port, LONG)
        context = association.context_for(CT, EXPLICIT)
        assert context is not None
        with pytest.raises(ObjectDamaged):
            association.store(context, CT.encode(), b"1.2.3", damaged())
        wait_until(lambda: heard and heard[-1] == "Aborted", 5)
    assert heard == ["FragmentFalse", "Aborted"]


def test_who_cannot_be_reached():
    for host, port, expected in (("127.0.0.1", free_port(), FailureKind.REFUSED), ("a..b", 104, FailureKind.NAME),
                                 ("x" * 70 + ".invalid", 104, FailureKind.NAME), ("", 104, FailureKind.NAME),
                                 ("255.255.255.255", 104, FailureKind.UNREACHABLE)):
        error = lost(Association, party(port, host), Limits(connect=1.0))
        assert kind(error) is expected
        assert isinstance(error, DeliveryError)
        assert " — " in error.message, "it says what to do"


def test_a_release_that_nobody_answers_ends():
    def script(connection: Connection) -> None:
        connection.associate()
        hang(connection)
    with dicom_peer(script) as peer:
        association = opened(peer.port)
        begun = time.monotonic()
        association.release()
        assert time.monotonic() - begun < HARD
        association.release()
        association.abort()


def test_a_release_collision():
    done = threading.Event()

    def script(connection: Connection) -> None:
        connection.associate()
        connection.event()  # our A-RELEASE-RQ, which the script pretends not to have seen when it sends its own
        connection.sock.sendall(pdu.encode(pdu.ReleaseRequest()))
        assert connection.sock.recv(10) == pdu.encode(pdu.ReleaseReply())
        connection.sock.sendall(pdu.encode(pdu.ReleaseReply()))
        done.set()
    with dicom_peer(script) as peer:
        opened(peer.port, LONG).release()
        assert done.wait(5)


@pytest.mark.parametrize("how", ["closes", "releases", "aborts"])
def test_an_association_that_ended_while_it_lay_idle_is_not_used_again(how: str):
    def script(connection: Connection) -> None:
        connection.associate()
        connection.store()
        if how != "closes":
            connection.sock.sendall(connection.layer.release() if how == "releases" else connection.layer.abort())
        if how == "releases":
            assert connection.sock.recv(10) == pdu.encode(pdu.ReleaseReply())
    with dicom_peer(script) as peer:
        association = opened(peer.port)
        store(association)
        wait_until(lambda: not association.is_usable(), 5)
        assert not association.is_open


def test_interrupt_ends_a_blocked_call():
    def script(connection: Connection) -> None:
        connection.associate()
        connection.command()
        asked.set()
        hang(connection)
    asked = threading.Event()
    with dicom_peer(script) as peer:
        association = opened(peer.port, Limits(5.0, 60.0))
        threading.Thread(target=lambda: (asked.wait(5), association.interrupt()), daemon=True).start()
        assert kind(lost(store, association)) is FailureKind.CLOSED
