"""Which service takes what, and what a request must have."""

from __future__ import annotations

import pytest

from appliance.dicom import dimse, uids
from appliance.dicom.part10 import MAX_RAW_UID
from appliance.errors import StateError
from appliance.model import Source
from appliance.receive.services import Call, Refusal, Registry, Response, Storage, Storing, Verification

BOUND = 1000


class Writer:
    def __init__(self) -> None:
        self.finished: list[tuple[object, ...]] = []
        self.buffer = memoryview(bytearray(64))

    def room(self) -> memoryview:
        return self.buffer

    def advance(self, count: int) -> None: ...
    def write(self, data: memoryview) -> None: ...
    def abandon(self, reason: str) -> None: ...

    def finish(self, *what: object) -> None:
        self.finished.append(what)


class Intake:
    def __init__(self) -> None:
        self.writer = Writer()

    def take(self) -> Writer:
        return self.writer


def store(sop_instance: bytes = b"1.2.3", sop_class: bytes = uids.CT_IMAGE_STORAGE.encode(), field: int = dimse.C_STORE_RQ,
          has_data_set: bool = True) -> Call:
    request = dimse.Command(field, 7, sop_class=sop_class, sop_instance=sop_instance, has_data_set=has_data_set)
    return Call(request, uids.CT_IMAGE_STORAGE, uids.EXPLICIT_LE, Source())


@pytest.fixture
def storage() -> Storage:
    return Storage(Intake(), BOUND)  # type: ignore[arg-type]


def test_the_registry_is_asked_in_order(storage: Storage):
    echo = Verification(BOUND)
    registry = Registry(echo, storage)
    assert registry.service(uids.VERIFICATION) is echo
    assert registry.service(uids.CT_IMAGE_STORAGE) is registry.service("1.3.12.2.1107.5.9.1") is storage
    assert registry.service(uids.STUDY_ROOT_FIND) is None and registry.preference(uids.STUDY_ROOT_FIND) is None


def test_a_store_is_finished_with_the_bytes_of_its_command_set(storage: Storage):
    call = store(b"not a uid")
    task = storage.begin(call)
    assert isinstance(task, Storing)
    assert list(task.end()) == [Response(dimse.SUCCESS)]
    assert storage._intake.writer.finished == [  # type: ignore[attr-defined]
        (uids.CT_IMAGE_STORAGE.encode(), b"not a uid", uids.EXPLICIT_LE, call.source)]


def test_a_class_that_was_left_out_is_that_of_the_context(storage: Storage):
    storage.begin(store(sop_class=b"")).end()
    assert storage._intake.writer.finished[0][0] == uids.CT_IMAGE_STORAGE.encode()  # type: ignore[attr-defined]


@pytest.mark.requirement("hazard: empty SOP Instance UID")
@pytest.mark.parametrize(("call", "status"), [
    (store(b""), 0x0117), (store(b"1" * (MAX_RAW_UID + 1)), 0x0117), (store(has_data_set=False), 0xC000),
    (store(field=dimse.C_FIND_RQ), 0x0211)])
def test_what_cannot_be_taken_is_refused_with_a_status(storage: Storage, call: Call, status: int):
    task = storage.begin(call)
    assert isinstance(task, Refusal)
    assert [response.status for response in task.end()] == [status]


def test_a_refused_data_set_is_read_within_bounds():
    refusal = Refusal(dimse.OUT_OF_RESOURCES, "", BOUND)
    refusal.advance(BOUND - 10)
    refusal.write(memoryview(bytes(10)))
    with pytest.raises(StateError):
        refusal.advance(1)
