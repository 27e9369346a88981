"""The index: finds what people look for, forgets what is gone, and can be thrown away at any time."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from appliance.errors import SpoolError
from appliance.model import Attributes
from appliance.spool import index as ix
from appliance.spool.index import Index, Query, study_key


def attributes(study: str = "1.2.3", series: str = "1.2.3.1", **values: str) -> Attributes:
    tags = {"name": ix.PATIENT_NAME, "id": ix.PATIENT_ID, "accession": ix.ACCESSION, "date": ix.STUDY_DATE,
            "modality": ix.MODALITY, "station": ix.STATION, "description": ix.STUDY_DESCRIPTION,
            "series_description": ix.SERIES_DESCRIPTION}
    return Attributes({ix.STUDY_UID: study, ix.SERIES_UID: series} | {tags[k]: v for k, v in values.items()})


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return Index.open(tmp_path / "index.sqlite")


@pytest.fixture
def filled(index: Index) -> Index:
    index.add([
        (1, attributes(name="Müller^Jörg", id="P-1", accession="A100", date="20260102", modality="CT", station="CT_ROOM_1",
                       description="Abdomen [KM]")),
        (2, attributes(series="1.2.3.2", name="Müller^Jörg", id="P-1", modality="SR", series_description="Dose report")),
        (3, attributes(study="9.9", series="9.9.1", name="Wang^XiaoDong=王^小东", id="p-2", accession="B200", date="20260315",
                       modality="MR")),
        (4, Attributes(readable=False)),
        (5, Attributes({ix.PATIENT_ID: "no study"})),
    ])
    return index


@pytest.mark.parametrize(("query", "found"), [
    (Query(), {"9.9", "1.2.3"}),
    (Query(patient_id="P-1"), {"1.2.3"}),
    (Query(patient_id="p-*"), {"1.2.3", "9.9"}),
    (Query(patient_id="P-"), set()),
    (Query(patient_name="muller"), {"1.2.3"}),
    (Query(patient_name="MÜLLER^J*"), {"1.2.3"}),
    (Query(patient_name="m?ller jorg"), {"1.2.3"}),
    (Query(patient_name="jorg*"), set()),
    (Query(patient_name="小东"), {"9.9"}),
    (Query(accession="a1*"), {"1.2.3"}),
    (Query(study_uid="9.9"), {"9.9"}),
    (Query(date="20260102"), {"1.2.3"}),
    (Query(date="20260101-20260201"), {"1.2.3"}),
    (Query(date="20260201-"), {"9.9"}),
    (Query(date="-20260201"), {"1.2.3"}),
    (Query(modality="sr"), {"1.2.3"}),
    (Query(modality="?R"), {"1.2.3", "9.9"}),
    (Query(station="ct*"), {"1.2.3"}),
    (Query(description="[km]"), {"1.2.3"}),
    (Query(description="dose"), {"1.2.3"}),
    (Query(modality="CT", patient_id="p-2"), set()),
    (Query(patient_name="' OR 1=1 --"), set()),
])
def test_search(filled: Index, query: Query, found: set[str]) -> None:
    assert {info.uid for info in filled.search(query)} == found


def test_search_gives_the_latest_first_and_no_more_than_asked(filled: Index) -> None:
    assert [i.uid for i in filled.search(Query())] == ["9.9", "1.2.3"]
    assert [i.uid for i in filled.search(Query(), limit=1)] == ["9.9"]


def test_a_study_as_its_objects_describe_it(filled: Index) -> None:
    info = filled.study(study_key("1.2.3"))
    assert info is not None
    assert (info.patient_name, info.patient_id, info.accession) == ("Müller^Jörg", "P-1", "A100")
    assert (info.modalities, info.stations, info.objects) == (("CT", "SR"), ("CT_ROOM_1",), 2)
    assert filled.study("0" * 16) is None
    assert filled.objects_of(study_key("1.2.3")) == [1, 2]


def test_empty_fields_are_filled_by_later_objects_and_others_stay(filled: Index) -> None:
    filled.add([(6, attributes(study="9.9", series="9.9.1", name="Other^Name", description="Knee", station="MR1"))])
    info = filled.study(study_key("9.9"))
    assert info is not None and (info.description, info.stations) == ("Knee", ("MR1",))
    assert info.patient_name.startswith("Wang")


def test_series_of_objects(filled: Index) -> None:
    found = filled.locate([1, 2, 3, 4, 5, 77])
    assert {n: (f.study_uid, f.series_uid) for n, f in found.items()} == {
        1: ("1.2.3", "1.2.3.1"), 2: ("1.2.3", "1.2.3.2"), 3: ("9.9", "9.9.1")}


def test_study_keys_are_sixteen_hex_digits_and_empty_for_none() -> None:
    assert len(study_key("1.2.3")) == 16 and int(study_key("1.2.3"), 16)
    assert study_key("1.2.3") != study_key("1.2.4")
    assert study_key("") == ""


@pytest.mark.requirement("data protection: nothing of a patient stays longer than the objects")
def test_what_is_dropped_leaves_no_patient_behind(filled: Index) -> None:
    filled.drop([1])
    info = filled.study(study_key("1.2.3"))
    assert info is not None and info.modalities == ("SR",)
    filled.drop([2, 3, 3, 999])
    assert filled.search(Query()) == []
    assert filled.numbers(0, 100) == {4, 5}
    filled.close()
    content = b"".join(p.read_bytes() for p in filled.path.parent.glob("index.sqlite*"))
    assert "Müller".encode() not in content


def test_adding_twice_changes_nothing(filled: Index) -> None:
    before = filled.search(Query())
    filled.add([(1, attributes(name="Müller^Jörg", id="P-1", modality="CT"))])
    assert filled.search(Query()) == before


def test_values_of_a_stranger_are_data(index: Index) -> None:
    hostile = "x'; DROP TABLE studies; --\0\ud800"
    index.add([(1, attributes(study=hostile, name=hostile, id=hostile, modality="[*"))])
    assert len(index.search(Query())) == 1
    assert len(index.search(Query(modality="[*"))) == 1


def test_complete_is_kept_until_the_file_is_new(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    with Index.open(path) as index:
        assert not index.complete
        index.add([(1, attributes())])
        index.set_complete(True)
    with Index.open(path) as index, Index.open(path, read_only=True) as reader:
        assert index.complete and reader.complete
        assert len(reader.search(Query())) == 1
    ix.remove(path)
    with Index.open(path) as index:
        assert not index.complete


@pytest.mark.parametrize("damage", [b"garbage" * 1000, b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_damaged_index_is_made_anew(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "index.sqlite"
    path.write_bytes(damage)
    with pytest.raises(SpoolError):
        Index.open(path, read_only=True)
    with Index.open(path) as index:
        assert not index.complete
        index.add([(1, attributes())])


def test_another_database_is_made_anew_and_none_is_an_error_for_readers(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    with pytest.raises(SpoolError):
        Index.open(path, read_only=True)
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE x(y)")
    db.execute("PRAGMA user_version = 99")
    db.commit()
    db.close()
    with Index.open(path) as index:
        assert index.search(Query()) == []


def test_two_processes_share_it(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    with Index.open(path) as one, Index.open(path) as two:
        one.add([(1, attributes())])
        two.add([(2, attributes())])
        assert one.numbers(0, 9) == two.numbers(0, 9) == {1, 2}
