"""One instrument in a process of its own: `python -m tests.proof.child MODULE SPEC`, started by the driver (runner.py).

SPEC is a JSON file: the fields of the budget, `result` (the file that is written
when all is over) and `progress` (an open descriptor that takes a line each).
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

from tests.proof.figures import Budget, CannotRun, Figures
from tests.proof.instruments import PACKAGE


def main(module: str, spec_file: str) -> int:
    """Runs it and leaves `{"ended": "ran" | "cannot run" | "crashed", …}`. SIGTERM unwinds, so that things are put away."""
    signal.signal(signal.SIGTERM, _unwind)
    spec = json.loads(Path(spec_file).read_text())
    answer = _answer(Path(module), _budget(spec))
    result = Path(spec["result"])
    written = result.with_suffix(".new")
    written.write_text(json.dumps(answer))
    written.rename(result)
    return 0


def _answer(module: Path, budget: Budget) -> dict[str, Any]:
    try:
        figures = _load(module).run(budget)
        if not isinstance(figures, Figures):
            return {"ended": "crashed", "reason": f"run() returned {type(figures).__name__}, not Figures"}
        answer = {"ended": "ran", "figures": figures.as_json()}
        json.dumps(answer)
        return answer
    except CannotRun as error:
        return {"ended": "cannot run", "reason": str(error)}
    except Exception as error:  # noqa: BLE001 whatever an instrument raises is that instrument's result
        traceback.print_exc()
        return {"ended": "crashed", "reason": f"{type(error).__name__}: {error}"}


def _load(module: Path) -> Any:
    """By its name in the package, so that what it starts can import it too; a module of elsewhere by its file."""
    if module.parent == PACKAGE:
        return importlib.import_module(f"tests.proof.{module.stem}")
    spec = importlib.util.spec_from_file_location(module.stem, module)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def _budget(spec: dict[str, Any]) -> Budget:
    progress = int(spec["progress"])
    os.set_inheritable(progress, False)  # what the instrument starts must not hold the driver's pipe open

    def say(line: str) -> None:
        # One write of less than PIPE_BUF is whole, whichever thread it comes from.
        os.write(progress, (" ".join(line.split())[:400] + "\n").encode())

    return Budget(Path(spec["folder"]), Path(spec["state"]), spec["seed"], spec["quick"], spec["seconds"], spec["cores"],
                  spec["version"], say)


def _unwind(_number: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(143)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
