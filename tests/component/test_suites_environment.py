"""The Python environment of the suites on devices: lanes that ask for it at once get one that is whole."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "hw-test" / "environment"


def test_lanes_that_ask_at_once_get_one_environment(tmp_path: Path) -> None:
    suites = tmp_path / "hw-test"
    suites.mkdir()
    shutil.copy(SCRIPT, suites)
    (suites / "requirements.lock").write_text("# nothing: this is about who makes it\n")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    environ = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    lanes = [subprocess.Popen([suites / SCRIPT.name], env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True) for _ in range(3)]
    said = [lane.communicate(timeout=120) for lane in lanes]
    assert [lane.returncode for lane in lanes] == [0, 0, 0], said
    (where,) = {out.strip() for out, _ in said}
    assert (Path(where) / ".complete").exists()
    assert sum("making" in err for _, err in said) == 1
    assert subprocess.run([Path(where) / "bin" / "python", "-m", "pip", "--version"], check=False).returncode == 0
