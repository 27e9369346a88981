"""Where the fuzzers begin: valid inputs of our own generators, slight damage to them, and the corpora that were worth keeping.

`corpus/<target>.hex` has one input a line; a line that begins with `#` names the
finding of the line below it. Everything else is made here.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterable
from pathlib import Path

from appliance.dicom import part10
from appliance.model import Custody, Source
from tests.support import corpus, dicom_bytes, objects
from tests.support.dicom_mutations import mutate
from tests.support.scu import IMPLICIT, VERIFICATION, associate_request, echo_command, fragments, store_command

KEPT = Path(__file__).with_name("corpus")

_CODES = ("ISO_IR 100", "ISO_IR 192", "GB18030", "\\ISO 2022 IR 87", "ISO 2022 IR 13\\ISO 2022 IR 87", "\\ISO 2022 IR 149")


def kept(target: str) -> list[bytes]:
    """The inputs of `corpus/<target>.hex`; none where there is no such file."""
    path = KEPT / f"{target}.hex"
    lines = path.read_text().split("\n") if path.exists() else []
    return [bytes.fromhex(line) for line in lines if line and not line.startswith("#")]


def generated(target: str, damaged: int = 0) -> list[bytes]:
    """Valid inputs of a target, and `damaged` times as many with something wrong in them; the same on every call."""
    whole = list(dict.fromkeys(_MADE[target]()))
    return whole + [mutate(1000 * n + m, data) for m, data in enumerate(whole) if data for n in range(damaged)]


def _pdus() -> list[bytes]:
    made = (dicom_bytes.ASSOCIATE_RQ, dicom_bytes.RICH_ASSOCIATE_RQ, dicom_bytes.ASSOCIATE_AC, dicom_bytes.ASSOCIATE_RJ,
            dicom_bytes.RELEASE_RQ, dicom_bytes.RELEASE_RP, dicom_bytes.ABORT)
    return [pdu[:1] + pdu[6:] for pdu in made]


def _on_an_association() -> list[bytes]:
    split = dicom_bytes.data_pdu((1, 1, dicom_bytes.ECHO_COMMAND[:20]), (1, 3, dicom_bytes.ECHO_COMMAND[20:]))
    return [dicom_bytes.ECHO_PDU, dicom_bytes.STORE_MESSAGE, dicom_bytes.ECHO_PDU * 3 + dicom_bytes.RELEASE_RQ, split,
            dicom_bytes.STORE_MESSAGE * 2 + dicom_bytes.ABORT, dicom_bytes.data_pdu(
                (3, 3, dicom_bytes.STORE_COMMAND), (3, 2, bytes(40)), (1, 3, dicom_bytes.ECHO_COMMAND))]


def _conversations() -> list[bytes]:
    return [dicom_bytes.ASSOCIATE_RQ + rest for rest in _on_an_association()] + [
        dicom_bytes.RICH_ASSOCIATE_RQ + dicom_bytes.RELEASE_RQ, dicom_bytes.ASSOCIATE_RQ, dicom_bytes.RELEASE_RQ]


def scans() -> list[bytes]:
    """What a scanner says to a gateway from its connection to its release."""
    report = objects.sr(1, size=900)
    contexts = [(VERIFICATION, IMPLICIT), (objects.SR, objects.EXPLICIT), (objects.CT, IMPLICIT)]
    echo, store = echo_command(1), store_command(2, objects.SR, report.sop_instance)
    store = dicom_bytes.data_pdu((3, 3, store)) + b"".join(
        bytes(piece) for piece in fragments(report.parts, report.length, 3, 512))
    tiny = dicom_bytes.data_pdu((5, 3, store_command(3, objects.CT, "1.2.3")), (5, 2, b"\x08\0\x60\0\2\0\0\0CT"))
    front = associate_request("DCMGATE", "FUZZ", contexts)
    end = dicom_bytes.RELEASE_RQ
    return [front + dicom_bytes.data_pdu((1, 3, echo)) + store + tiny + end, front + tiny * 3 + end, front + tiny, front + end,
            front + dicom_bytes.data_pdu((5, 3, store_command(3, objects.CT, "../../x"))) + dicom_bytes.data_pdu(
                (5, 0, bytes(100))) + dicom_bytes.ABORT]


def _cut(inputs: Iterable[bytes]) -> list[bytes]:
    return [bytes((number * 37 % 256,)) + data for number, data in enumerate(inputs)]


def _answers() -> list[bytes]:
    response = dicom_bytes.data_pdu((3, 3, _response()))
    return [dicom_bytes.ASSOCIATE_AC + response + dicom_bytes.RELEASE_RP, dicom_bytes.ASSOCIATE_AC, dicom_bytes.ASSOCIATE_RJ,
            dicom_bytes.ASSOCIATE_AC + dicom_bytes.ABORT]


def _response() -> bytes:
    element = dicom_bytes.element
    return (element(0x0000, b"\x3c\0\0\0") + element(0x0002, b"1.2.840.10008.1.1\0") + element(0x0100, b"\x01\x80")
            + element(0x0120, b"\x09\0") + element(0x0800, b"\1\1") + element(0x0900, b"\0\0") + element(0x0902, b"no room "))


def _commands() -> list[bytes]:
    element = dicom_bytes.element
    move = element(0x0003, b"1.2\0") + element(0x0100, b"\x40\1") + element(0x0110, b"\3\0") + element(0x0800, b"\1\1")
    cancel = element(0x0100, b"\xff\x0f") + element(0x0120, b"\3\0") + element(0x0800, b"\1\1")
    return [dicom_bytes.ECHO_COMMAND, dicom_bytes.STORE_COMMAND, _response(), move + element(0x1001, b"1.9\0"), cancel]


def _heads() -> list[bytes]:
    source = Source(listener="lan", calling="CT_1", called="DCMGATE", raw_calling=b"CT_1".ljust(16),
                    raw_called=b"\xff\0DCM".ljust(16), address="::1", port=11112, peer="ct", certificate="ab" * 32)
    record = Custody(number=5, boot=1, since_boot=2, wall=3, sop_class=objects.CT.encode(), sop_instance=b"../../x\xff",
                     transfer_syntax=objects.EXPLICIT, length=100, digest=bytes(32), source=source)
    head = part10.build_head(record)
    at = head.index(b'{"v"')
    return [head, head[132:], head[at:].rstrip(b"\0")[:-4], json.dumps({"v": 1}).encode()]


def _data_sets(implicit: bool) -> list[bytes]:
    syntax = IMPLICIT if implicit else objects.EXPLICIT
    item = struct.pack("<HHL", 0xFFFE, 0xE000, 16) + objects.element(0x00081150, "UI", "1.2.3.4", syntax)
    body = [(0x00080005, b"CS", b"ISO_IR 192"), (0x00080060, b"CS", b"CT"), (0x00081140, b"SQ", item),
            (0x00090010, b"LO", b"GEMS_IDEN_01"), (0x00091027, b"SL", b"\7\0\0\0"), (0x00100010, b"PN", "Wang^小东".encode()),
            (0x00280009, b"AT", b"\x18\0\x63\x10"), (0x00280010, b"US", b"\1\2"), (0x00280030, b"DS", b"0.5\\0.5 "),
            (0x00280103, b"US", b"\1\0"), (0x00280106, b"SS", b"\xff\xff"), (0x7FE00010, b"OW", bytes(8))]
    made = [corpus.pieces(body, implicit=implicit), corpus.nested(3, implicit=implicit),
            b"".join(bytes(part) for part in objects.sr(1, size=900).parts) if not implicit else b""]
    made += [corpus.pieces([(0x00080005, b"CS", code.encode()), (0x00100010, b"PN", b"Yamada=\x1b$B;3ED\x1b(B")],
                           implicit=implicit) for code in _CODES]
    made.append(objects.element(0x00081140, "SQ", b"", syntax, length=0xFFFFFFFF) + item
                + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0) + objects.element(0x00100020, "LO", "P1", syntax))
    return made


def _big() -> list[bytes]:
    return [corpus.pieces([(0x00080060, b"CS", b"CT"), (0x00280010, b"US", b"\1\2")], order="big")]


def _with_syntax() -> list[bytes]:
    return [*_recodable(), *(b"\2" + data for data in _big())]


def _recodable() -> list[bytes]:
    return [bytes((number,)) + data for number, made in enumerate((_data_sets(False), _data_sets(True))) for data in made]


def _deflated() -> list[bytes]:
    made = [b"".join(bytes(part) for part in objects.deflated(1).parts)]
    random_tail = random.Random(1).randbytes(40)
    return [*made, made[0][:200], made[0] + random_tail, b"\x78\x9c" + made[0]]


def _noise() -> list[bytes]:
    """What hypothesis draws its choices from has no form of its own."""
    dice = random.Random(3)
    return [dice.randbytes(size) for size in (20, 100, 400, 1500)]


_MADE = {
    "pdus": _pdus, "pdu_meaning": _pdus, "acceptor": lambda: _cut(_conversations()),
    "messages": lambda: _cut(_on_an_association()), "requestor": lambda: _cut(_answers()), "commands": _commands,
    "heads": _heads, "elements": _with_syntax, "element_meaning": _with_syntax, "deflated": _deflated,
    "recoding": _recodable, "recoding_meaning": _recodable, "live": scans,
    "text": lambda: [code.encode() + b"\nYamada=\x1b$B;3ED\x1b(B" for code in _CODES],
    "replies": lambda: [b"\1[null]", b'\2[{"1048592":"A"},null]', b"\0[]"],
    "structured_pdus": _noise, "structured_messages": _noise, "structured_data_sets": _noise, "structured_heads": _noise,
}
