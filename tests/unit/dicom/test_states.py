"""PS3.8 table 9-10: every cell, against pynetdicom's table and on a layer that was really brought into the state."""

from __future__ import annotations

import pytest
from pynetdicom import fsm

from appliance.dicom import pdu
from appliance.dicom.states import ACTIONS, TABLE, Evt, State, action
from appliance.dicom.upper import UpperLayer
from appliance.errors import ProtocolError, StateError
from tests.support import dicom_bytes as raw

REQUEST = pdu.decode(1, raw.ASSOCIATE_RQ[6:])
ACCEPT = pdu.decode(2, raw.ASSOCIATE_AC[6:])


@pytest.mark.requirement("PS3.8 table 9-10")
def test_the_table_is_the_standards():
    theirs = {(State(int(state[3:])), Evt(int(event[3:]))): name for (event, state), name in fsm.TRANSITION_TABLE.items()}
    assert theirs == TABLE


@pytest.mark.requirement("PS3.8 table 9-10")
def test_the_actions_lead_where_the_standard_says():
    for name, (*_, following) in fsm.ACTIONS.items():
        ours = {ACTIONS[name].requestor, ACTIONS[name].acceptor}
        theirs = {State(int(state[3:])) for state in ((following,) if isinstance(following, str) else following)}
        assert ours <= theirs, name


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Evt)
def test_every_cell_is_an_action_or_a_state_error(state: State, event: Evt):
    if (state, event) in TABLE:
        assert action(state, event) in ACTIONS
    else:
        with pytest.raises(StateError):
            action(state, event)


def _in_state(role: str, state: State) -> UpperLayer:
    if role == "acceptor":
        layer = UpperLayer.acceptor()
        if state is State.STA2:
            return layer
        layer.feed(raw.ASSOCIATE_RQ)
        if state is State.STA3:
            return layer
        if state is State.STA13:
            layer.reject(1, 1, 1)
            return layer
        layer.accept(ACCEPT)
    else:
        layer = UpperLayer.requestor()
        if state is State.STA1:
            return layer
        layer.request(REQUEST)
        if state is State.STA5:
            return layer
        layer.feed(raw.ASSOCIATE_AC)
        if state is State.STA13:
            layer.abort()
            return layer
    if state is State.STA8:
        layer.feed(raw.RELEASE_RQ)
    if state in (State.STA7, State.STA9, State.STA10, State.STA11, State.STA12):
        layer.release()
    if state in (State.STA9, State.STA10, State.STA11, State.STA12):
        layer.feed(raw.RELEASE_RQ)
    if state is State.STA11:
        layer.release_reply()
    if state is State.STA12:
        layer.feed(raw.RELEASE_RP)
    return layer


LOCAL = {
    Evt.ASSOCIATE_REQUEST: lambda layer: layer.request(REQUEST),
    Evt.ACCEPT: lambda layer: layer.accept(ACCEPT),
    Evt.REJECT: lambda layer: layer.reject(1, 1, 1),
    Evt.P_DATA_REQUEST: lambda layer: layer.send_command(1, raw.ECHO_COMMAND),
    Evt.RELEASE_REQUEST: lambda layer: layer.release(),
    Evt.RELEASE_RESPONSE: lambda layer: layer.release_reply(),
    Evt.ARTIM_EXPIRED: lambda layer: layer.expired(),
}
WIRE = {
    Evt.ASSOCIATE_AC: raw.ASSOCIATE_AC, Evt.ASSOCIATE_RJ: raw.ASSOCIATE_RJ, Evt.ASSOCIATE_RQ: raw.ASSOCIATE_RQ,
    Evt.P_DATA: raw.ECHO_PDU, Evt.RELEASE_RQ: raw.RELEASE_RQ, Evt.RELEASE_RP: raw.RELEASE_RP, Evt.ABORT: raw.ABORT,
    Evt.INVALID_PDU: b"\x47ET / HTTP/1.1",
}
REACHABLE = [("acceptor", s) for s in (2, 3, 6, 7, 8, 10, 12, 13)] + [("requestor", s) for s in (1, 5, 6, 7, 8, 9, 11, 13)]


@pytest.mark.parametrize(("role", "number"), REACHABLE)
def test_the_states_are_reached(role: str, number: int):
    assert _in_state(role, State(number)).state is State(number)


@pytest.mark.parametrize(("role", "number"), REACHABLE)
@pytest.mark.parametrize("event", LOCAL, ids=lambda e: e.name)
def test_what_the_user_asks_for(role: str, number: int, event: Evt):
    layer = _in_state(role, State(number))
    name = TABLE.get((State(number), event))
    if name is None:
        with pytest.raises(StateError):
            LOCAL[event](layer)
        assert layer.state is State(number)
        return
    sent = LOCAL[event](layer)
    if event is Evt.ASSOCIATE_REQUEST:
        assert layer.state is State.STA5  # by way of Sta4: the connection is there already
        assert sent[0] == pdu.ASSOCIATE_RQ
    else:
        assert layer.state is getattr(ACTIONS[name], role)


@pytest.mark.parametrize(("role", "number"), REACHABLE)
@pytest.mark.parametrize("event", WIRE, ids=lambda e: e.name)
def test_what_the_peer_sends(role: str, number: int, event: Evt):
    layer = _in_state(role, State(number))
    if layer.state is State.STA13 and role == "requestor":
        assert layer.feed(WIRE[event]) == []  # after our own A-ABORT nothing has a meaning any more
        return
    name = TABLE.get((State(number), event))
    if name is None or ACTIONS[name].violation:
        with pytest.raises(ProtocolError) as caught:
            layer.feed(WIRE[event])
        if name is not None:
            assert layer.state is State.STA13
            assert layer.abort(2, caught.value.reason)[:1] == b"\x07"
            assert caught.value.reason == (1 if event is Evt.INVALID_PDU else 2)
            assert layer.abort() == b"", "one A-ABORT is enough"
        assert layer.closed() == []
        return
    told = layer.feed(WIRE[event])
    assert layer.state is getattr(ACTIONS[name], role)
    assert len(told) == (0 if name in ("AA-6", "AA-2") else 1)


@pytest.mark.parametrize(("role", "number"), REACHABLE)
def test_the_connection_ends(role: str, number: int):
    layer = _in_state(role, State(number))
    told = layer.closed()
    assert layer.state is State.STA1
    assert bool(told) == (TABLE.get((State(number), Evt.CLOSED)) == "AA-4")
    assert layer.closed() == []


@pytest.mark.parametrize(("role", "number"), REACHABLE)
def test_abort_never_raises(role: str, number: int):
    layer = _in_state(role, State(number))
    sent = layer.abort(0, 0)
    assert bool(sent) == (TABLE.get((State(number), Evt.ABORT_REQUEST)) == "AA-1")
    assert sent in (b"", bytes.fromhex("07000000000400000000"))


@pytest.mark.requirement("hazard: silent socket")
def test_the_artim_timer_runs_when_the_peer_owes_us_something():
    layer = UpperLayer.acceptor()
    assert layer.artim
    layer.feed(raw.ASSOCIATE_RQ)
    assert not layer.artim
    layer.accept(ACCEPT)
    layer.feed(raw.RELEASE_RQ)
    assert not layer.artim
    layer.release_reply()
    assert layer.artim
    layer.expired()
    assert layer.state is State.STA1
    assert not layer.artim


def test_release_collision_of_the_requestor():
    layer = _in_state("requestor", State.STA7)
    layer.feed(raw.RELEASE_RQ)
    assert layer.release_reply() == raw.RELEASE_RP
    layer.feed(raw.RELEASE_RP)
    assert layer.state is State.STA1
