"""The command line as a person meets it: one line for an error, never a traceback, quick, options anywhere."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.cli import exits
from appliance.cli.main import FAMILIES, main, parser
from appliance.config import load
from appliance.errors import (
    ConfigError,
    ControlError,
    KeeperAbsent,
    KeeperUnreachable,
    LedgerDamaged,
    LedgerFault,
    ObjectDamaged,
    SpoolRefused,
    UsageError,
)


@pytest.fixture(autouse=True)
def no_site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    path = tmp_path / "dcmgate.toml"
    monkeypatch.setenv("DCMGATE_CONFIG", str(path))
    monkeypatch.delenv("DCMGATE_TRACE", raising=False)
    return path


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("dcmgate: ") and err.count("\n") == 1, err
    return err


def test_the_error_classes_have_the_documented_statuses() -> None:
    assert [exits.of_error(e) for e in (
        UsageError(""), ConfigError(""), ObjectDamaged(1, ""), LedgerDamaged(""), SpoolRefused(""), LedgerFault(""),
        KeeperUnreachable(""), KeeperAbsent(""), ControlError(""))] == [2, 1, 1, 1, 3, 3, 3, 3, 4]


@pytest.mark.parametrize(("argv", "status", "text"), [
    ([], exits.USAGE, "a command is missing — `dcmgate --help` lists them"),
    (["statsu"], exits.USAGE, '`dcmgate` knows no "statsu" — did you mean "status"?'),
    (["config", "chek"], exits.USAGE, '`dcmgate config` knows no "chek" — did you mean "check"?'),
    (["discard", "1"], exits.USAGE, "--reason"),
    (["show"], exits.USAGE, "NUMBER"),
    (["list", "--limit", "0"], exits.USAGE, "--limit"),
    (["list", "--state", "lost"], exits.USAGE, 'knows no "lost"'),
    (["send", "nowhere"], exits.USAGE, "HOST:PORT"),
    (["send", "127.0.0.1:1", "--called", "A" * 17], exits.USAGE, "AE title"),
    (["send", "127.0.0.1:1"], exits.UNREACHABLE, "refuses the connection"),
    (["status"], exits.FINDING, "there is no such file — `dcmgate config example`"),
    (["export", "--to", "/tmp"], exits.USAGE, "it is not said what to export"),
])
def test_an_error_is_one_line_that_names_thing_and_mend(argv: list[str], status: int, text: str,
                                                        capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == status
    assert text in one_line(capsys)


def test_an_error_in_json_is_a_value_too(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["--json", "status"], ["status", "--json"]):
        assert main(argv) == exits.FINDING
        out, err = capsys.readouterr()
        assert json.loads(out)["status"] == 1 and json.loads(out)["error"].endswith("dcmgate.toml: there is no such file")
        assert err.startswith("dcmgate: ") and "`dcmgate config example`" in json.loads(out)["mend"]
    assert main(["--json", "statsu"]) == exits.USAGE
    assert "knows no" in json.loads(capsys.readouterr().out)["error"]


def test_a_fault_in_the_program_is_one_line_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> str:
        raise ZeroDivisionError("of all things\nsecond line")

    monkeypatch.setattr(load, "example", broken)
    assert main(["config", "example"]) == exits.FAILED
    assert "ZeroDivisionError: of all things second line — report it" in one_line(capsys)


def test_a_failed_system_call_names_the_file(capsys: pytest.CaptureFixture[str], no_site: Path) -> None:
    no_site.write_text(load.example())
    assert main(["route", "explain", "/nonexistent/ct.dcm", "--file"]) == exits.UNREACHABLE
    assert one_line(capsys) == "dcmgate: /nonexistent/ct.dcm: No such file or directory\n"


def test_each_command_is_where_the_table_says_and_nothing_else_is_imported_for_it() -> None:
    def commands(top: argparse.ArgumentParser) -> list[str]:
        [action] = [one for one in top._actions if isinstance(one, argparse._SubParsersAction)]
        return list(action.choices)

    assert commands(parser()) == [word for words in FAMILIES.values() for word in words]
    for words in FAMILIES.values():
        for word in words:
            for argv in ([word], ["--json", word, "--help"], ["--config", "status", word]):
                assert commands(parser(argv)) == list(words)
    for argv in (["--help"], ["statsu"], ["--version"], ["--conf", "status", "disk"], []):
        assert len(commands(parser(argv))) > 30
    code = ("import sys; from appliance.cli.main import main; main(['config', 'example']); "
            "print('appliance.cli.update_command' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")


def test_common_options_stand_before_or_behind(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["--json", "config", "example"], ["config", "--json", "example"], ["config", "example", "--json"]):
        assert main(argv) == 0
        assert json.loads(capsys.readouterr().out)["example"] == load.example()
    for argv in (["--config", "/a", "status"], ["status", "--config", "/a"], ["--config", "/b", "status", "--config", "/a"]):
        assert parser().parse_args(argv).config == "/a"


@pytest.mark.parametrize("argv", [
    ["hold", "1a", "--reason", "x", "1b"], ["hold", "--reason", "x", "1a", "1b"], ["hold", "1a", "1b", "--reason", "x"]])
def test_options_stand_anywhere(argv: list[str]) -> None:
    arguments = parser().parse_args(argv)
    assert (arguments.numbers, arguments.reason) == (["1a", "1b"], "x")


def test_files_to_send_may_stand_behind_options() -> None:
    arguments = parser().parse_args(["send", "h:104", "--quiet", "a", "--called", "X", "b"])
    assert (arguments.place, arguments.files, arguments.called) == ("h:104", ["a", "b"], "X")


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("dcmgate 0.")


def test_config_check_names_everything(no_site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    no_site.write_text(load.example())
    assert main(["config", "check"]) == exits.OK
    assert capsys.readouterr().out == f"{no_site}: good\n"
    no_site.write_text(load.example().replace("StudyDescription", "StudyDescripton").replace('"PACS"', '"PACS "'))
    assert main(["config", "check"]) == exits.FINDING
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[-1] == f"{no_site}: 2 errors"
    assert 'did you mean "StudyDescription"?' in lines[1] and lines[0].startswith(f"{no_site}:")
    assert main(["config", "check", "--json"]) == exits.FINDING
    told = json.loads(capsys.readouterr().out)
    assert not told["good"] and [e["key"] for e in told["errors"]] == [
        "destination.pacs.called", "rule.stroke-ct.match.StudyDescripton"]


def test_config_show_of_a_file_can_be_read_again(no_site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    no_site.write_text(load.example())
    assert main(["config", "show", "--file"]) == exits.OK
    assert load.parse(capsys.readouterr().out, "shown") == load.parse(load.example(), "x")


def test_help_imports_nothing_heavy() -> None:
    script = ("import sys; from appliance.cli.main import main\n"
              "try: main(['--help'])\nexcept SystemExit: pass\n"
              "print(sorted({'apsw', 'pydicom', 'pynetdicom', 'blake3', 'ssl', 'appliance.spool', 'appliance.manage',"
              " 'appliance.forward', 'appliance.receive', 'psutil'} & set(sys.modules)), file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.strip() == "[]" and "exit status:" in done.stdout


def test_a_reader_that_goes_away_is_no_error() -> None:
    done = subprocess.run(f"set -o pipefail; {sys.executable} -m appliance.cli.main config example | true", shell=True,
                          executable="/bin/bash", capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
