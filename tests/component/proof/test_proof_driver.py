"""The driver of the proof: whatever an instrument does, there is a report, and it says so."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.proof import __main__ as driver
from tests.proof import instruments, report
from tests.proof.instruments import ROOT, discover
from tests.proof.runner import TAG
from tests.support.waiting import wait_until

GOOD = """
def run(budget: Budget) -> Figures:
    budget.say("half way")
    assert budget.folder.is_dir() and not list(budget.folder.iterdir())
    seen = budget.state / "runs"
    seen.write_text(str(int(seen.read_text()) + 1) if seen.exists() else "1")
    (budget.folder / "rest").write_text("x")
    return Figures(NAME, {"cases": 7, "runs": int(seen.read_text())}, acknowledged=5, mutants={"no sync": "test_sync"})
"""


def _instrument(folder: Path, name: str, body: str, extra: str = "") -> None:
    (folder / "package").mkdir(exist_ok=True)
    text = ("from tests.proof.figures import Budget, CannotRun, Figures\n"
            f'NAME = "{name}"\nABOUT = "one of the tests"\nREQUIREMENTS = ("I1",)\n{extra}\n')
    (folder / "package" / f"{name}.py").write_text(text + textwrap.dedent(body))


def _command(folder: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "tests.proof", "--package", str(folder / "package"), "--write", str(folder / "proof.json"),
            *arguments]


def _drive(folder: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    environment = {**os.environ, "TMPDIR": str(folder)}
    done = subprocess.run(_command(folder, *arguments), cwd=ROOT, capture_output=True, text=True, timeout=120, env=environment,
                          check=False)
    assert done.stderr == ""
    return done.returncode, report.read(folder / "proof.json"), done.stdout


def test_what_the_instruments_found_is_summed_and_kept(tmp_path: Path):
    _instrument(tmp_path, "first", GOOD)
    _instrument(tmp_path, "second", GOOD.replace("acknowledged=5", "acknowledged=6"), "EXCLUSIVE = True")
    status, proof, said = _drive(tmp_path, "--seed", "3")
    assert status == 0 and proof["holds"] and proof["wanting"] == []
    assert proof["totals"] == {"acknowledged": 11, "lost": 0, "altered": 0, "unaccounted": 0, "mutants": 2, "mutants_caught": 2}
    assert proof["instruments"]["first"]["counts"] == {"cases": 7, "runs": 1} and proof["instruments"]["first"]["seed"] == 3
    assert "first: half way" in said
    assert "| first | holds | 7 cases, 1 runs | 5 | 0 | 0 | 0 |" in (tmp_path / "proof.md").read_text()
    assert not (tmp_path / "dcmgate-proof").exists(), "the scratch folders are gone"

    status, proof, _ = _drive(tmp_path, "--only", "first")
    assert status == 0 and proof["instruments"]["first"]["counts"]["runs"] == 2, "its state goes on"
    assert proof["instruments"]["second"]["counts"]["runs"] == 1 and proof["holds"], "the other's result stays"


@pytest.mark.parametrize(("value", "text"), [(3, "3"), (12345, "12,345"), (0.0, "0"), (0.994, "0.99"), (17.5, "17.50"),
                                             (1234.5, "1,234"), (float("nan"), "nan")])
def test_numbers_are_said_as_people_read_them(value: float, text: str):
    assert report.number(value) == text


@pytest.mark.parametrize(("body", "result", "told"), [
    ("def run(budget): raise ValueError('no')", "crashed", "ValueError: no"),
    ("import os, signal\ndef run(budget): os.kill(os.getpid(), signal.SIGSEGV)", "crashed", "SIGSEGV"),
    ("import os\ndef run(budget): os._exit(0)", "crashed", "exit status 0 without a result"),
    ("import tests.proof.nowhere\ndef run(budget): pass", "crashed", "ModuleNotFoundError"),
    ("def run(budget): return None", "crashed", "NoneType"),
    ("def run(budget): raise CannotRun('no loop devices')", "cannot run", "no loop devices"),
    ("def run(budget): return Figures(NAME)", "fails", "nothing was tried"),
    ("def run(budget): return Figures(NAME, {'cases': 1}, lost=1)", "fails", ""),
    ("def run(budget): return Figures(NAME, {'cases': 1}, mutants={'no sync': ''})", "fails", ""),
    ("def run(budget): return Figures(NAME, {'cases': 1}, failures=['seed 4'])", "fails", "seed 4"),
    ("def run(budget): is this Python?", "crashed", "invalid syntax"),
])
def test_an_instrument_that_fails_fails_the_proof_and_no_other(tmp_path: Path, body: str, result: str, told: str):
    _instrument(tmp_path, "bad", body)
    _instrument(tmp_path, "good", GOOD)
    status, proof, said = _drive(tmp_path)
    assert status == 1 and not proof["holds"]
    assert proof["instruments"]["bad"]["result"] == result and proof["instruments"]["good"]["result"] == "holds"
    assert told in said
    assert proof["wanting"][0].startswith(f"bad: {result}")


def test_an_instrument_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path):
    _instrument(tmp_path, "hangs", """
        import subprocess, time
        def run(budget):
            child = subprocess.Popen(["sleep", "600"], start_new_session=True)
            budget.say(f"child {child.pid}")
            time.sleep(600)
    """)
    _instrument(tmp_path, "good", GOOD)
    status, proof, said = _drive(tmp_path, "--limit", "2")
    assert status == 1
    assert {name: one["result"] for name, one in proof["instruments"].items()} == {"good": "holds", "hangs": "hung"}
    child = int(said.split("child ")[1].split()[0])
    assert not psutil.pid_exists(child)


def test_what_an_instrument_leaves_running_is_its_failure(tmp_path: Path):
    _instrument(tmp_path, "leaves", """
        import subprocess
        def run(budget):
            subprocess.Popen(["sleep", "600"], start_new_session=True)
            return Figures(NAME, {"cases": 1})
    """)
    status, proof, _ = _drive(tmp_path)
    assert status == 1 and "left behind: process" in proof["instruments"]["leaves"]["failures"][0]
    tags = [_tag(process) for process in psutil.process_iter() if process.name() == "sleep"]
    assert not any(tag.startswith(str(tmp_path)) for tag in tags)


def _tag(process: psutil.Process) -> str:
    try:
        return process.environ().get(TAG, "")
    except psutil.Error:
        return ""


def test_a_result_on_other_code_is_no_proof_of_this(tmp_path: Path):
    _instrument(tmp_path, "first", GOOD)
    _instrument(tmp_path, "second", GOOD)
    _drive(tmp_path)
    file = tmp_path / "proof.json"
    proof = json.loads(file.read_text())
    proof["instruments"]["second"]["version"] = "other"
    file.write_text(json.dumps(proof))
    status, proof, _ = _drive(tmp_path, "--only", "first")
    assert status == 0 and not proof["holds"] and "second: run on other code" in proof["wanting"][0]


def test_an_instrument_that_never_ran_is_wanting(tmp_path: Path):
    _instrument(tmp_path, "first", GOOD)
    _instrument(tmp_path, "second", GOOD)
    status, proof, _ = _drive(tmp_path, "--only", "first")
    assert status == 0 and not proof["holds"] and proof["wanting"] == ["second: not run"]


def test_the_whole_of_the_proof_is_all_that_is_expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _instrument(tmp_path, "first", GOOD)
    monkeypatch.setattr(instruments, "PACKAGE", tmp_path / "package")
    monkeypatch.setattr(instruments, "EXPECTED", ("first", "second"))
    arguments = ["--package", str(tmp_path / "package"), "--write", str(tmp_path / "proof.json")]
    assert driver.main(arguments) == 1
    assert report.read(tmp_path / "proof.json")["wanting"] == ["second: not run"]
    assert driver.main([*arguments, "--only", "first"]) == 0


def test_a_driver_that_is_ended_ends_its_instruments(tmp_path: Path):
    _instrument(tmp_path, "waits", """
        import os, time
        def run(budget):
            (budget.state / "pid").write_text(str(os.getpid()))
            try:
                time.sleep(600)
            finally:
                (budget.state / "put away").write_text("")
    """)
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(_command(tmp_path), cwd=ROOT, stdout=subprocess.DEVNULL, env=environment) as driver:
        state = tmp_path / "proof-state" / "waits"
        wait_until(lambda: (state / "pid").exists() and (state / "pid").read_text(), 30, "the instrument runs")
        driver.send_signal(signal.SIGTERM)
        assert driver.wait(30) == 130
    assert (state / "put away").exists()
    assert not psutil.pid_exists(int((state / "pid").read_text()))


def test_a_name_that_there_is_not_is_refused(tmp_path: Path):
    _instrument(tmp_path, "first", GOOD)
    command = _command(tmp_path, "--only", "fist")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "no such instrument: fist; there are: first" in done.stdout


def test_every_instrument_of_the_package_can_be_read():
    assert [(one.name, one.fault) for one in discover() if one.fault] == []
