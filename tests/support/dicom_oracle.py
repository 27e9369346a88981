"""What pynetdicom and pydicom make of bytes, in the plain values that ours are compared with; None where they refuse.

They refuse with whatever exception they like. Where a reading of theirs is a
known liberty that says nothing about ours (padding, say), it is taken off here,
with its reason.
"""

from __future__ import annotations

import io
import struct
import warnings
from typing import Any

import pydicom.config
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pynetdicom import pdu as theirs
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.dsutils import decode as decode_command
from pynetdicom.pdu_primitives import P_DATA

KINDS = {1: theirs.A_ASSOCIATE_RQ, 2: theirs.A_ASSOCIATE_AC, 3: theirs.A_ASSOCIATE_RJ, 5: theirs.A_RELEASE_RQ,
         6: theirs.A_RELEASE_RP, 7: theirs.A_ABORT_RQ}

Message = tuple[int, dict[int, bytes], bytes]
"""Presentation context, elements of the command set by number, data set."""


def bare_uid(value: object) -> str:
    """A UID without padding: pynetdicom takes off one NUL or none and every blank that Python knows, we all NULs and spaces."""
    return str(value or "").strip("\0 \t\n\v\f\r\x1c\x1d\x1e\x1f\x85\xa0")


def association(data: bytes) -> dict[str, Any] | None:
    """The meaning of one whole PDU of any type but P-DATA-TF."""
    try:
        decoded = KINDS[data[0]]()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")       # values that break the rules of UI are kept all the same
            decoded.decode(data)
        if data[0] == 3:
            return {"reject": (decoded.result, decoded.source, decoded.reason_diagnostic)}
        if data[0] == 7:
            return {"abort": (decoded.source, decoded.reason_diagnostic)}
        if data[0] in (5, 6):
            return {}
        user = decoded.user_information
        contexts = [(c.context_id, bare_uid(c.abstract_syntax), [bare_uid(s) for s in c.transfer_syntax]) if data[0] == 1
                    else (c.context_id, c.result, bare_uid(c.transfer_syntax) if c.result == 0 else "")
                    for c in decoded.presentation_context]
        version = user.implementation_version_name
        return {"application": bare_uid(decoded.application_context_name), "contexts": contexts,
                "called": decoded.called_ae_title.strip() if data[0] == 1 else None,
                "calling": decoded.calling_ae_title.strip() if data[0] == 1 else None,
                "max": user.maximum_length or 0, "uid": bare_uid(user.implementation_class_uid),
                "version": (version or "").strip(),
                "roles": sorted((bare_uid(r.uid), bool(r.scu_role), bool(r.scp_role))
                                for r in user.role_selection.values())}
    except Exception:  # noqa: BLE001 - an oracle may fail in any way it likes
        return None


def command(raw: bytes) -> dict[int, bytes] | None:
    """The elements of a command set as pydicom splits it, values as raw bytes by element number of group 0000."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = decode_command(io.BytesIO(raw), True, True)
            return _elements(found)
    except Exception:  # noqa: BLE001 - see above
        return None


def _elements(found: Dataset) -> dict[int, bytes]:
    elements = {}
    for tag in sorted(found.keys()):
        item = found.get_item(tag)
        if tag.group or not isinstance(getattr(item, "value", None), (bytes, type(None))):
            raise ValueError("not a plain element of group 0000")
        elements[tag.element] = bytes(item.value or b"")
    return elements


def messages(stream: bytes) -> list[Message] | None:
    """The whole DIMSE messages in a stream of whole P-DATA-TF PDUs and nothing else."""
    found: list[Message] = []
    message = DIMSEMessage()
    at = 0
    try:
        while at < len(stream):
            end = at + 6 + int(struct.unpack_from(">L", stream, at + 2)[0])
            assert stream[at] == 4 and end <= len(stream)
            data = theirs.P_DATA_TF()
            data.decode(stream[at:end])
            at = end
            for value in data.to_primitive().presentation_data_value_list:
                part = P_DATA()
                part.presentation_data_value_list = [list(value)]  # type: ignore[list-item]   # one at a time: it drops the rest
                if message.decode_msg(part):
                    elements = command(message.encoded_command_set.getvalue())
                    assert elements is not None and message.data_set is not None
                    found.append((int(message.context_id or 0), elements, message.data_set.getvalue()))
                    message = DIMSEMessage()
        return found
    except Exception:  # noqa: BLE001 - see above
        return None


def data_set(data: bytes, syntax: str) -> Dataset | None:
    """The data set as pydicom reads it, without a single warning, each element once, to the last byte of its value."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = read_dataset(io.BytesIO(data), syntax == "1.2.840.10008.1.2", syntax != "1.2.840.10008.1.2.2")
            return found if _whole(found, data, 0) else None
    except Exception:  # noqa: BLE001 - see above
        return None


def _whole(found: Dataset, data: bytes, end: int | None = None) -> bool:
    """Without a word pydicom keeps the last of two elements with one tag, what is there of a value that is cut off, as
    text of any VR what has an undefined length, which is for sequences and pixel data (PS3.5 7.1.1), and any tag in a
    sequence as an item. `end`: where the first element begins, None where that is not known."""
    for item in list(found.values()):
        start, length = getattr(item, "value_tell", None), getattr(item, "length", 0xFFFFFFFF)
        if start is None or length == 0xFFFFFFFF:
            end = None                            # where a value of undefined length ends is not told
        else:
            if len(item.value or b"") != length or (end is not None and start - end not in (8, 12)):
                return False
            end = start + length
    for element in found:                         # values are converted only when they are looked at
        if element.is_undefined_length and element.VR not in ("SQ", "UN") and element.tag != 0x7FE00010:
            return False
        if element.VR == "SQ" and not all(_is_item(inner, data) and _whole(inner, data) for inner in element.value):
            return False
    return True


def _is_item(found: Dataset, data: bytes) -> bool:
    start = getattr(found, "seq_item_tell", None)
    return start is None or data[start:start + 4] in (b"\xfe\xff\0\xe0", b"\xff\xfe\xe0\0")


pydicom.config.settings.reading_validation_mode = pydicom.config.WARN
