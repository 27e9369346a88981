"""What is fuzzed: functions from bytes to None that raise where the parsers do what they must not.

A parser may refuse with the error of ours that it names. Any other exception
goes through to the fuzzer, as does `Wrong`: two readings of the same bytes that
differ, be it ours and the oracle's (`tests.support.dicom_oracle`), or ours of the
bytes cut in another way.

Every target gives the first byte or two to what is not the parser's own input
(which syntax, where to cut), so that the fuzzer finds those ways as well.
"""

from __future__ import annotations

import random
import struct
from binascii import crc32
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

from appliance.dicom import charset, dimse, part10, pdu, uids
from appliance.dicom.elements import MAX_VALUE, Read, read_tags, reader
from appliance.dicom.indications import CommandReceived, Fragment
from appliance.dicom.recode import recode
from appliance.dicom.upper import UpperLayer
from appliance.errors import DimseError, FormatError, HeadError, PduError, ProtocolError
from appliance.sandbox.dictionary import vr_of
from appliance.sandbox.inflate import inflating
from appliance.sandbox.parent import _attributes
from tests.support import dicom_bytes, dicom_oracle
from tests.support.dicom_oracle import bare_uid
from tests.support.upper_drive import Drive

Target = Callable[[bytes], None]
Meaning = dict[str, object]

SYNTAXES = (uids.EXPLICIT_LE, uids.IMPLICIT_LE, uids.EXPLICIT_BE)
WANTED = frozenset((0x00080005, 0x00080016, 0x00080018, 0x00080050, 0x00080060, 0x00081140, 0x00091001, 0x00091027, 0x00100010,
                    0x00100020, 0x00181063, 0x0020000D, 0x00204000, 0x00280009, 0x00280010, 0x00280030, 0x00280106))
"""One tag for each way in which values are read: text by character set or not, numbers, ambiguous, private, sequences."""

REQUEST = pdu.decode(pdu.ASSOCIATE_RQ, dicom_bytes.ASSOCIATE_RQ[6:])


compared: Counter[str] = Counter()
"""How often each differential target found that both accept: none would be a comparison of nothing."""


class Wrong(AssertionError):
    """Two readings of the same bytes that ought to be one."""


def same(ours: object, other: object, what: str) -> None:
    if ours != other:
        raise Wrong(f"{what}:\n  {ours!r}\n  {other!r}"[:4000])


# --- protocol data units ----------------------------------------------------------------------------------------------


def pdus(data: bytes) -> None:
    """Association PDUs: parsed or PduError; what is encoded again means the same."""
    if not data:
        return
    try:
        value = pdu.decode(data[0], data[1:])
    except PduError:
        return
    if len(data) < 60000:                        # beyond, an item that was left out may not fit its length any more
        again = pdu.encode(value)
        same(pdu.decode(again[0], again[6:]), value, "encoded and decoded again")


def pdu_meaning(data: bytes) -> None:
    """Association PDUs: what both accept means the same to pynetdicom."""
    if data and data[0] in dicom_oracle.KINDS:
        ours = association_meaning(data[0], data[1:])
        if ours is not None:
            whole = bytes((data[0], 0)) + struct.pack(">L", len(data) - 1) + data[1:]
            other = dicom_oracle.association(whole)
            if other is not None:
                compared["pdu_meaning"] += 1
                same(ours, other, "pynetdicom reads this PDU otherwise")


def association_meaning(kind: int, body: bytes) -> dict[str, object] | None:
    """Our reading in the oracle's words."""
    try:
        value = pdu.decode(kind, body)
    except PduError:
        return None
    match value:
        case pdu.AssociateReject():
            return {"reject": (value.result, value.source, value.reason)}
        case pdu.Abort():
            return {"abort": (value.source, value.reason)}
        case pdu.ReleaseRequest() | pdu.ReleaseReply():
            return {}
        case pdu.AssociateRequest():
            contexts: list[object] = [(c.id, bare_uid(c.abstract), [bare_uid(s) for s in c.syntaxes]) for c in value.contexts]
        case pdu.AssociateAccept():
            contexts = [(c.id, c.result, bare_uid(c.syntax) if c.result == 0 else "") for c in value.contexts]
    request = isinstance(value, pdu.AssociateRequest)
    return {"application": bare_uid(value.application_context), "contexts": contexts,
            "called": pdu.title_text(value.called).strip() if request else None,
            "calling": pdu.title_text(value.calling).strip() if request else None,
            "max": value.max_length, "uid": bare_uid(value.implementation_uid), "version": value.implementation_version.strip(),
            "roles": sorted((bare_uid(r.uid), r.scu, r.scp) for r in value.roles)}


# --- associations -----------------------------------------------------------------------------------------------------


def _pieces(data: bytes, seed: int) -> list[bytes]:
    dice = random.Random(seed)
    cuts = sorted(dice.randrange(len(data) + 1) for _ in range(dice.choice((1, 1, 2, 5, 40))))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def _twice(make: Callable[[int], Drive], how: int, data: bytes) -> Drive:
    """Drive the same bytes whole and in pieces: both must tell the same. Returns the first."""
    whole = make(0)
    whole.run([data])
    cut = make((0, 3, 6, 4096)[how & 3])
    cut.run(_pieces(data, how))
    same(cut.told, whole.told, "how the bytes are cut changes what they mean")
    told = sum(len(entry[2]) for entry in whole.told if entry[0] == "data" and isinstance(entry[2], bytes))
    if told > len(data):
        raise Wrong(f"{told} bytes of data sets in {len(data)} bytes")
    return whole


def acceptor(data: bytes) -> None:
    """A connection from its first byte: events or ProtocolError, the same however the bytes are cut."""
    if data:
        _twice(lambda direct: Drive(UpperLayer.acceptor(), direct=direct), data[0], data[1:])


def _associated(direct: int) -> Drive:
    drive = Drive(UpperLayer.acceptor(), direct=direct)
    drive.run([dicom_bytes.ASSOCIATE_RQ])
    drive.told.clear()
    return drive


def messages(data: bytes) -> None:
    """Messages on an association that is up; those that pynetdicom accepts as well are the same to it."""
    if not data:
        return
    stream = data[1:]
    drive = _twice(_associated, data[0], stream)
    theirs = dicom_oracle.messages(stream) if drive.error is None and all(
        entry[0] in ("CommandReceived", "data") for entry in drive.told) else None
    if theirs is not None:
        compared["messages"] += bool(theirs)
        other = [(number, _meant(command), body) for number, command, body in theirs]
        same(_messages(stream), other, "pynetdicom reads these messages otherwise")


def _messages(stream: bytes) -> list[tuple[int, Meaning, bytes]]:
    """Our reading: whole messages only."""
    found: list[tuple[int, Meaning, bytes]] = []
    begun: tuple[int, Meaning] = (0, {})
    body = bytearray()
    for event in _associated(0).layer.feed(stream):
        if isinstance(event, CommandReceived):
            begun = event.context_id, _meaning(event.command)
            if not event.command.has_data_set:
                found.append((*begun, b""))
        elif isinstance(event, Fragment):
            body += event.view or b""
            if event.last:
                found.append((*begun, bytes(body)))
                body.clear()
    return found


def requestor(data: bytes) -> None:
    """A destination's bytes from its answer to our A-ASSOCIATE-RQ on."""
    if not data:
        return

    def make(direct: int) -> Drive:
        layer = UpperLayer.requestor()
        assert isinstance(REQUEST, pdu.AssociateRequest)
        layer.request(REQUEST)
        return Drive(layer, direct=direct)

    drive = _twice(make, data[0], data[1:])
    if drive.error is None and drive.layer.contexts and drive.layer.idle:
        with suppress(ProtocolError):
            drive.layer.send_command(1, dicom_bytes.ECHO_COMMAND * 3)


# --- command sets -----------------------------------------------------------------------------------------------------


_NAMED = (0x0000, 0x0002, 0x0100, 0x0110, 0x0120, 0x0700, 0x0800, 0x0900, 0x1000)


def _meaning(command: dimse.Command) -> Meaning:
    """A command set as we read it."""
    return {"field": command.field, "message": command.message_id, "responded": command.responded_id,
            "class": command.sop_class, "instance": command.sop_instance, "priority": command.priority,
            "data": command.has_data_set, "status": command.status, "others": command.others}


def _meant(elements: dict[int, bytes]) -> Meaning:
    """The same from the bare elements that the oracle found."""
    numbers = {tag: int.from_bytes(elements[tag], "little") for tag in _NAMED if tag in elements}
    return {"field": numbers.get(0x0100), "message": numbers.get(0x0110), "responded": numbers.get(0x0120),
            "class": (elements.get(0x0002) or elements.get(0x0003, b"")).rstrip(b"\0 "),
            "instance": (elements.get(0x1000) or elements.get(0x1001, b"")).rstrip(b"\0 "),
            "priority": numbers.get(0x0700, 0), "data": numbers.get(0x0800) != 0x0101, "status": numbers.get(0x0900),
            "others": {tag: value for tag, value in elements.items() if tag not in _NAMED}}


def commands(data: bytes) -> None:
    """Command sets: a Command or DimseError; what both accept has the same elements to pydicom; every answer can be made."""
    try:
        command = dimse.decode(data)
    except DimseError:
        return
    theirs = dicom_oracle.command(data)
    if theirs is not None:
        compared["commands"] += 1
        same(_meaning(command), _meant(theirs), "pydicom reads this command set otherwise")
    if command.is_response or command.field == dimse.C_CANCEL_RQ:
        return
    answer = dimse.decode(dimse.response(command, dimse.SUCCESS, "it is well"))
    same((answer.responded_id, answer.field, answer.status), (command.message_id, command.field | dimse.RESPONSE, 0),
         "the answer says something else")


# --- heads ------------------------------------------------------------------------------------------------------------


def sealed(head: bytes) -> bytes:
    """As a head: cut or padded to its length, with a right CRC, without which nothing behind it would ever be looked at."""
    body = head[:part10.HEAD - 4].ljust(part10.HEAD - 4, b"\0")
    return body + struct.pack("<L", crc32(b"\0\0\0\0", crc32(body)))


def heads(data: bytes) -> None:
    """Heads of spooled objects: any bytes, with and without a right CRC; a custody record that is read can be written."""
    with suppress(HeadError):
        part10.parse_head(data)
    front = bytes(128) + b"DICM"
    for head in (sealed(front + data), sealed(front + b"\2\0\x02\x01OB\0\0" + struct.pack("<L", part10.HEAD - 144) + data)):
        try:
            custody = part10.parse_head(head)
        except HeadError:
            continue
        with suppress(HeadError):                # another's record may be longer than ours ever is
            same(part10.parse_head(part10.build_head(custody)), custody, "written and read again")


# --- data sets --------------------------------------------------------------------------------------------------------


def _bounded(data: bytes) -> Read:
    """A reader that holds `read_tags` to its word: offsets never decrease, and nothing large is asked for."""
    plain, last = reader(data), 0

    def read(offset: int, n: int) -> bytes:
        nonlocal last
        if offset < last or not 0 <= n <= 65536:
            raise Wrong(f"{n} bytes asked for at {offset}, behind {last}")
        last = offset
        return plain(offset, n)

    return read


def elements(data: bytes) -> None:
    """Tags of a data set: text within bounds or FormatError; what pydicom reads without a word is read as pydicom reads it."""
    if not data:
        return
    syntax, body = SYNTAXES[data[0] % 3], data[1:]
    try:
        found = read_tags(_bounded(body), syntax, WANTED, vr_of)
    except FormatError:
        return
    for text in found.values():
        if type(text) is not str or len(text) > MAX_VALUE:
            raise Wrong(f"a value of {len(text)} characters")


def deflated(data: bytes) -> None:
    """Tags of a deflated data set."""
    with suppress(FormatError):
        read_tags(inflating(_bounded(data)), uids.DEFLATED_LE, WANTED, vr_of)


def _recoded(data: bytes, source: str, target: str) -> bytes:
    pieces = []
    for piece in recode(reader(data), len(data), source, target, vr_of):
        if len(piece) > 2 * 131072 + 4096:
            raise Wrong(f"a piece of {len(piece)} bytes")
        pieces.append(piece)
    return b"".join(pieces)


def recoding(data: bytes) -> None:
    """Implicit ↔ Explicit LE: FormatError, or a data set that goes back and forth without another change.

    Only Implicit must survive the way back: a VR that the dictionary does not
    confirm (its sender's mistake) is gone after the first step.
    """
    if not data:
        return
    body = data[1:]
    try:
        implicit = body if data[0] & 1 else _recoded(body, uids.EXPLICIT_LE, uids.IMPLICIT_LE)
        explicit = _recoded(implicit, uids.IMPLICIT_LE, uids.EXPLICIT_LE)
    except FormatError:
        return
    if len(explicit) > 4 * len(body) + 64:
        raise Wrong(f"{len(body)} bytes became {len(explicit)}")
    back = _recoded(explicit, uids.EXPLICIT_LE, uids.IMPLICIT_LE)     # FormatError here is a finding
    same(_recoded(back, uids.IMPLICIT_LE, uids.EXPLICIT_LE), explicit, "back and forth changes it")


def text(data: bytes) -> None:
    """Character sets: any bytes under any name become text."""
    name, _, raw = data.partition(b"\n")
    charset.decode(raw, charset.codec(name))


def replies(data: bytes) -> None:
    """What a limited child answers, which may be in the hands of an object."""
    if data:
        found = _attributes(data[1:], data[0] % 4)
        if found is not None and any(len(value) > 1024 for one in found for value in one.values.values()):
            raise Wrong("a value without bound is believed")


PURE: dict[str, Target] = {
    "pdus": pdus, "pdu_meaning": pdu_meaning, "acceptor": acceptor, "messages": messages, "requestor": requestor,
    "commands": commands, "heads": heads, "elements": elements, "deflated": deflated, "recoding": recoding, "text": text,
    "replies": replies,
}
