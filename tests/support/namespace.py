"""A function run in network, mount and process namespaces of its own: nothing it does reaches the machine's network.

    answer = inside("tests.proof.network_wire:lossy", {"seed": 1}, folder, 100.0)

The function takes what JSON can carry and answers the same. When it is over, or
its time is up, everything that it has started is gone, and so are its
interfaces and mounts. Needs root.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
UNSHARE = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")


def lacking() -> str:
    """What this machine lacks for `inside`; empty where it lacks nothing."""
    if os.geteuid() != 0:
        return "only root can make network namespaces"
    if shutil.which("ip", path="/usr/sbin:/sbin:/usr/bin:/bin") is None:
        return "ip is missing: iproute2 is not installed"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "/dev/net/tun cannot be used here"
    done = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, timeout=30, check=False)
    return f"no namespaces here: {done.stderr.strip()}" if done.returncode else ""


def inside(target: str, argument: Any, folder: Path, seconds: float, say: Callable[[str], None] = lambda line: None) -> Any:
    """What `module:function` answers. Each line that it prints goes to `say`. AssertionError where it raises or is late."""
    folder.mkdir(parents=True, exist_ok=True)
    given, result, errors = folder / "argument.json", folder / "answer.json", folder / "errors.log"
    given.write_text(json.dumps(argument))
    result.unlink(missing_ok=True)
    command = [*UNSHARE, sys.executable, "-m", "tests.support.namespace", target, str(given), str(result), str(seconds)]
    with errors.open("wb") as err, subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=err,
                                                    text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                say(line.rstrip())
            process.wait(30)
        finally:
            process.kill()      # and with it all that runs in there
    if not result.exists():
        text = errors.read_text(errors="replace")
        raise AssertionError(f"{text.strip().rpartition(chr(10))[2]} (in {target})\n{text[-4000:]}")
    return json.loads(result.read_text())


def ip(*words: str) -> None:
    """The `ip` command."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr.strip()}"


def in_place_of(path: str, file: Path) -> None:
    """Let everybody in this namespace find `file` at `path`."""
    done = subprocess.run(["mount", "--bind", str(file), path], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, f"mount --bind {file} {path}: {done.stderr.strip()}"


def main(target: str, given: str, result: str, seconds: str) -> int:
    """Runs in the namespace, as its first process."""
    import signal

    signal.alarm(int(float(seconds)) + 1)    # the first process that ends takes all others along
    ip("link", "set", "lo", "up")
    module, _, name = target.partition(":")
    try:
        answer = getattr(importlib.import_module(module), name)(json.loads(Path(given).read_text()))
    except BaseException:  # noqa: BLE001  whatever it was is told outside
        traceback.print_exc()
        return 1
    written = Path(result).with_suffix(".new")
    written.write_text(json.dumps(answer))
    written.rename(result)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:5]))
