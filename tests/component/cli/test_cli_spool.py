"""`spool` and `config` on real folders: nothing is ever started fresh by mistake, and a bad file changes nothing."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from appliance.cli import exits
from tests.support.sites import CliSite


def test_init_makes_a_spool_and_its_first_generation(bare: CliSite) -> None:
    told = bare.json("spool", "init")
    assert told["path"] == str(bare.folder / "spool") and told["format"] == 1
    assert (bare.folder / "state" / "spool-uuid").read_text().strip() == told["uuid"]
    assert bare.json("config", "show")["generation"] == 1
    assert bare("balance").endswith("unaccounted 0\n")
    assert bare("spool", "check").endswith("good\n")


def test_init_never_over_something(site: CliSite) -> None:
    site("spool", "init", status=exits.UNREACHABLE)
    assert "is not empty" in site.err and " — " in site.err


def test_init_with_a_bad_file_makes_nothing(bare: CliSite) -> None:
    bare.config.write_text(bare.config.read_text() + "[limits]\nchild_seconds = 'x'\n")
    bare("spool", "init", status=exits.FINDING)
    assert "limits.child_seconds" in bare.err and not (bare.folder / "spool").exists()


@pytest.mark.requirement("a foreign or empty spool mount is refused")
@pytest.mark.parametrize("case", ["missing", "empty", "foreign"])
def test_a_wrong_mount_is_refused_with_a_mend(site: CliSite, case: str) -> None:
    shutil.move(site.folder / "spool", site.folder / "away")
    if case == "empty":
        (site.folder / "spool").mkdir()
    elif case == "foreign":
        shutil.move(site.folder / "state", site.folder / "state.away")
        site("spool", "init")
        shutil.rmtree(site.folder / "state")
        shutil.move(site.folder / "state.away", site.folder / "state")
    for argv in (["status", "--once"], ["balance"], ["list"], ["hold", "1"], ["keeper"], ["receiver"]):
        site(*argv, status=exits.UNREACHABLE)
        assert site.err.startswith(f"dcmgate: {site.folder}/spool ") and " — " in site.err, argv
    found = site.json("spool", "check", status=exits.FINDING)
    assert found["problems"] and not found["good"]


def test_adopt_takes_another_disk_on_purpose(site: CliSite) -> None:
    (site.folder / "state" / "spool-uuid").write_text("00000000-0000-4000-8000-000000000000\n")
    site("status", "--once", status=exits.UNREACHABLE)
    assert "`dcmgate spool adopt`" in site.err
    told = site.json("spool", "adopt")
    assert told["before"].startswith("00000000-") and told["uuid"] != told["before"]
    site("status", "--once")


def test_a_spool_that_nobody_vouches_for_is_not_used(site: CliSite) -> None:
    (site.folder / "state" / "spool-uuid").rename(site.folder / "uuid")
    site("status", "--once", status=exits.UNREACHABLE)
    assert "adopt" in site.err
    assert "adopt" in site("spool", "check", status=exits.FINDING)


def test_migrate_says_that_there_is_nothing_to_do(site: CliSite) -> None:
    assert site.json("spool", "migrate") == {"path": str(site.folder / "spool"), "from": 1, "to": 1}


def test_check_names_what_is_wrong_and_goes_on(site: CliSite) -> None:
    one, two = site.fill([b"one", b"two"])
    os.truncate(site.spool().object_path(one.number), 4097)
    with site.spool().object_path(two.number).open("r+b") as file:
        file.seek(4096)
        file.write(b"x")
    found = site.json("spool", "check", "--digests", status=exits.FINDING)
    assert found["unaccounted"] == 1
    assert any(f"{one.number:016x}" in p for p in found["problems"])
    assert any(f"{two.number:016x}: digest is wrong" in p for p in found["problems"])


@pytest.mark.requirement("a lost ledger is rebuilt from the objects")
@pytest.mark.parametrize("case", ["missing", "damaged"])
def test_a_lost_ledger_is_rebuilt_and_costs_no_image(site: CliSite, case: str) -> None:
    custodies = site.fill([b"one", b"two"])
    path = site.folder / "spool" / "ledger.sqlite"
    for name in (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
        if name.exists():
            name.rename(site.folder / name.name)
    if case == "damaged":
        path.write_bytes(b"not a database" * 1000)
    site("status", "--once", status=exits.FINDING)
    assert "spool rebuild" in site.err or "spool check" in site.err
    told = site.json("spool", "rebuild")
    assert told["accepted"] == 2 and (told["moved"] is not None) == (case == "damaged")
    assert [o["number"] for o in site.json("list", "--objects")["objects"]] == [f"{c.number:016x}" for c in custodies]
    assert site.json("balance")["waiting"] == 2
    assert site.json("config", "show")["generation"] == 1


def test_rebuild_is_refused_while_a_keeper_answers(site: CliSite) -> None:
    from appliance.manage.control import ControlServer
    server = ControlServer(site.run, {})
    server.start()
    try:
        site("spool", "rebuild", status=exits.UNREACHABLE)
        assert "a keeper answers" in site.err
    finally:
        server.stop()


# --- configuration in force ----------------------------------------------------------------------------------------------

@pytest.mark.requirement("a bad file leaves the last good generation in force")
def test_a_bad_file_changes_nothing(site: CliSite) -> None:
    good = site.config.read_text()
    site.config.write_text(good.replace('id = "second"', 'id = "second"\nprot = 9'))
    site("reload", status=exits.FINDING)
    assert site.err.count("\n") == 1
    assert f"{site.config}:15: destination.second.prot: there is no setting of this name here — did you mean" in site.err
    assert site.json("status")["generation"] == 1
    assert "the configuration file is bad, generation 1 is in force" in site.err
    site.config.write_text("this is [ not TOML\n[spool]\npath = \"" + str(site.folder / "spool") + "\"\nstate = \""
                           + str(site.folder / "state") + "\"\n")
    assert site.json("config", "show")["destinations"][1]["id"] == "second"
    site.config.write_text(good.replace("9\n", "10\n"))
    assert site.json("status")["stale"] is True
    assert "`dcmgate reload` puts it in force" in site("status", "--once")
    assert site.json("reload") == {"generation": 2, "changed": True}
    assert site.json("reload") == {"generation": 2, "changed": False}
    assert [json.dumps(c["generation"]) for c in site.kinds("configured")] == ["1", "2"]


def test_a_missing_file_names_itself(bare: CliSite) -> None:
    bare.config.rename(bare.folder / "away.toml")
    for argv in (["status"], ["spool", "init"], ["config", "check"], ["run"]):
        bare(*argv, status=exits.FINDING)
        assert bare.err.startswith(f"dcmgate: {bare.config}: there is no such file — "), argv


def test_archive_init_makes_the_marker(bare: CliSite) -> None:
    folder = bare.folder / "archive"
    assert bare.json("archive", "init", str(folder))["path"] == str(folder)
    assert (folder / "DCMGATE-ARCHIVE").exists()
    bare("archive", "init", str(folder), status=exits.USAGE)
    assert "is an archive already" in bare.err
