"""The keeper's control socket: JSON lines over a Unix stream socket, `<[control] run>/keeper.sock`.

    {"verb": "hold", "args": {"numbers": ["00000000000012ab"], "reason": "…"}}
    {"ok": true, "result": {…}}   or   {"ok": false, "error": "…", "mend": "…"}

Who asks is what the kernel says of the peer (SO_PEERCRED), never an argument.
Every message is bounded in size and time, and so is the number of askers at
once. Where no keeper runs, the same verbs are called in this process (`Local`).

On failure: what cannot be understood is answered with an error and the
connection is closed; a silent asker is cut off after `SILENCE_SECONDS`.
"""

from __future__ import annotations

import json
import os
import pwd
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from appliance.errors import ConfigError, ControlError, DcmgateError, KeeperAbsent, KeeperUnreachable
from appliance.telemetry.log import Log

Verb = Callable[[str, dict[str, Any]], Any]
"""Does one thing for the person named first; the arguments are JSON values, and so is the result. Raises DcmgateError."""

SOCKET = "keeper.sock"
LARGEST_REQUEST = 1 << 20
LARGEST_ANSWER = 1 << 24
SILENCE_SECONDS = 10.0
"""Time for a whole request to arrive, for an answer to be taken, and between two requests."""

ANSWER_SECONDS = 120.0
"""How long a client waits for an answer: a requeue of 100,000 objects is one transaction."""

ASKERS = 16

_START = "start the gateway, or look at its log for why it does not answer"
_log = Log("control")


def user_name(uid: int) -> str:
    """The name of a user of this machine, "uid:N" where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return f"uid:{uid}"


def this_user() -> str:
    """Who runs this process."""
    return user_name(os.getuid())


def requester(connection: socket.socket) -> str:
    """Who is at the other end of a Unix socket, by the kernel's word (unix(7), SO_PEERCRED)."""
    _pid, uid, _gid = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII")))
    return user_name(uid)


class Asking(Protocol):
    """The two ways to reach the verbs: `Remote` and `Local`."""

    def call(self, verb: str, **args: Any) -> Any:
        """The verb's result. ControlError where it is refused or cannot be reached."""


# --- lines ---------------------------------------------------------------------------------------------------------------

class _Line:
    """Reads and writes JSON lines, each with a bound and a deadline."""

    def __init__(self, sock: socket.socket, largest: int) -> None:
        self.sock = sock
        self.largest = largest
        self._held = bytearray()

    def read(self, seconds: float) -> Any:
        """The next value; EOFError at a clean end. TimeoutError, ValueError (no JSON, or too long), OSError."""
        end = time.monotonic() + seconds
        searched = 0
        while (at := self._held.find(b"\n", searched)) < 0:
            searched = len(self._held)
            if searched > self.largest:
                raise ValueError(f"longer than {self.largest} bytes")
            self.sock.settimeout(max(0.001, end - time.monotonic()))
            chunk = self.sock.recv(65536)
            if not chunk and not self._held:
                raise EOFError
            if not chunk:
                raise ValueError("ends in the middle")
            self._held += chunk
            if time.monotonic() > end:
                raise TimeoutError("too slow")
        line = bytes(self._held[:at])
        del self._held[:at + 1]
        try:
            return json.loads(line)
        except RecursionError:
            raise ValueError("nested too deep") from None

    def write(self, value: Any, seconds: float) -> None:
        """TimeoutError, ValueError (too long), OSError."""
        line = json.dumps(value, separators=(",", ":")).encode() + b"\n"
        if len(line) > self.largest:
            raise ValueError(f"longer than {self.largest} bytes")
        self.sock.settimeout(seconds)
        self.sock.sendall(line)


# --- server --------------------------------------------------------------------------------------------------------------

class ControlServer:
    """Answers at `<folder>/keeper.sock`. One thread accepts, one serves each asker, at most `ASKERS` at once."""

    def __init__(self, folder: str | Path, verbs: Mapping[str, Verb], *, silence_seconds: float = SILENCE_SECONDS) -> None:
        self.path = Path(folder) / SOCKET
        self._verbs = verbs
        self._silence = silence_seconds
        self._free = threading.Semaphore(ASKERS)
        self._sock: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._wake_in, self._wake_out = socket.socketpair()
        self._stopped = False

    def start(self) -> None:
        """Bind and answer. ControlError where another keeper answers already or the folder cannot be used."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self.path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            if is_answering(self.path):
                raise ControlError(f"another keeper answers at {self.path}", mend="stop it first: one spool has one keeper")
            # Bound beside and renamed over: a left-over socket of a dead keeper needs no deletion, and nobody sees a gap.
            beside = self.path.with_name(f"{SOCKET}.{os.getpid()}")
            sock.bind(str(beside))
            os.chmod(beside, 0o660)
            sock.listen(8 * ASKERS)
            os.rename(beside, self.path)
        except OSError as e:
            sock.close()
            raise ControlError(f"cannot listen at {self.path}: {e.strerror or e}",
                               mend="look at the owner and mode of that folder, or name another in [control] run") from e
        except ControlError:
            sock.close()
            raise
        sock.setblocking(False)
        self._sock = sock
        self._thread = threading.Thread(target=self._accept, name="control", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it answers, as far as its own thread goes."""
        return self._thread is not None and self._thread.is_alive()

    def stop(self) -> None:
        """Take no more; requests under way are finished by their own threads."""
        self._stopped = True
        self._wake_out.send(b"x")
        if self._thread is not None:
            self._thread.join(5.0)
        for sock in (self._sock, self._wake_in, self._wake_out):
            if sock is not None:
                sock.close()

    def _accept(self) -> None:
        assert self._sock is not None
        with selectors.DefaultSelector() as ready:
            ready.register(self._sock, selectors.EVENT_READ)
            ready.register(self._wake_in, selectors.EVENT_READ)
            while not self._stopped:
                ready.select()
                try:
                    connection, _ = self._sock.accept()
                except (BlockingIOError, InterruptedError):
                    continue
                except OSError as e:
                    _log.error("cannot take a request", error=str(e))
                    time.sleep(0.1)       # no descriptors: give those who hold them time to end
                    continue
                if not self._free.acquire(blocking=False):
                    connection.close()
                    continue
                try:
                    threading.Thread(target=self._serve, args=(connection,), name="control-asker", daemon=True).start()
                except RuntimeError as e:
                    _log.error("no thread for a request", error=str(e))
                    connection.close()
                    self._free.release()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                by = requester(connection)
                line = _Line(connection, LARGEST_REQUEST)
                answers = _Line(connection, LARGEST_ANSWER)
                while not self._stopped:
                    try:
                        request = line.read(self._silence)
                    except ValueError as e:
                        answers.write(_refusal(f"the request cannot be understood: {e}"), self._silence)
                        return
                    answer = self._answer(by, request)
                    try:
                        answers.write(answer, self._silence)
                    except ValueError as e:
                        answers.write(_refusal(f"the answer is {e}", "ask for less"), self._silence)
        except (EOFError, OSError):
            pass                          # gone, or silent for too long: its own loss
        finally:
            self._free.release()

    def _answer(self, by: str, request: Any) -> dict[str, Any]:
        try:
            if not isinstance(request, dict) or not isinstance(request.get("verb"), str):
                raise ControlError("a request is an object with a verb")
            args = request.get("args", {})
            if not isinstance(args, dict):
                raise ControlError("the arguments of a request are an object")
            return {"ok": True, "result": do(self._verbs, by, request["verb"], args)}
        except DcmgateError as e:
            return _refusal(e.what if isinstance(e, ConfigError) else e.message, e.mend)
        except Exception as e:  # noqa: BLE001  top of an asker's thread: one broken verb must not silence the keeper
            _log.crash("a verb failed", verb=str(request.get("verb")), by=by)
            return _refusal(f"the keeper failed at this: {type(e).__name__}", "its log says why; report it")


def _refusal(error: str, mend: str = "") -> dict[str, Any]:
    return {"ok": False, "error": error, "mend": mend}


def do(verbs: Mapping[str, Verb], by: str, verb: str, args: dict[str, Any]) -> Any:
    """Call a verb by its name. ControlError where there is none, else what the verb raises."""
    if verb not in verbs:
        raise ControlError(f'there is no verb "{verb[:40]}"', mend="the keeper knows " + ", ".join(sorted(verbs)))
    return verbs[verb](by, args)


# --- client --------------------------------------------------------------------------------------------------------------

def is_answering(path: str | Path) -> bool:
    """Whether somebody listens at that socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.settimeout(2.0)
        try:
            probe.connect(str(path))
        except TimeoutError:
            return True
        except OSError:
            return False
        return True


class Remote:
    """The verbs of a running keeper."""

    def __init__(self, folder: str | Path, *, answer_seconds: float = ANSWER_SECONDS) -> None:
        self.path = Path(folder) / SOCKET
        self._seconds = answer_seconds

    def call(self, verb: str, **args: Any) -> Any:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(SILENCE_SECONDS)
            try:
                sock.connect(str(self.path))
            except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
                raise KeeperAbsent(f"no keeper answers at {self.path}", mend=_START) from None
            except PermissionError:
                raise KeeperUnreachable(f"{self.path} may not be used by {user_name(os.geteuid())}",
                                   mend="use sudo, or join the group of that socket") from None
            except OSError as e:
                raise KeeperUnreachable(f"the keeper cannot be reached at {self.path}: {e.strerror or e}", mend=_START) from e
            try:
                _Line(sock, LARGEST_REQUEST).write({"verb": verb, "args": args}, SILENCE_SECONDS)
            except ValueError as e:
                raise ControlError(f"the request is {e}", mend="do it in several parts") from None
            except OSError:
                pass                      # it may have hung up after an answer: read it
            try:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_WR)
                answer = _Line(sock, LARGEST_ANSWER).read(self._seconds)
            except TimeoutError:
                raise KeeperUnreachable(f"the keeper did not answer within {self._seconds:g} s", mend=_START) from None
            except (EOFError, ValueError, OSError) as e:
                raise KeeperUnreachable(f"the keeper gave no answer: {e or 'it hung up'}", mend=_START) from None
        if not isinstance(answer, dict) or answer.get("ok") is not True:
            said = answer if isinstance(answer, dict) else {}
            raise ControlError(str(said.get("error", "the keeper's answer makes no sense")), mend=str(said.get("mend", "")))
        return answer.get("result")


class Local:
    """The same verbs in this process, for a spool whose keeper does not run; `by` is the user who runs it."""

    def __init__(self, verbs: Mapping[str, Verb], by: str | None = None) -> None:
        self._verbs = verbs
        self._by = by or this_user()

    def call(self, verb: str, **args: Any) -> Any:
        return do(self._verbs, self._by, verb, args)


class Either:
    """The running keeper, or, where none runs, what `verbs()` opens: once, and only then."""

    def __init__(self, folder: str | Path, verbs: Callable[[], Mapping[str, Verb]]) -> None:
        self._remote = Remote(folder)
        self._verbs = verbs
        self._local: Local | None = None

    def call(self, verb: str, **args: Any) -> Any:
        if self._local is None:
            try:
                return self._remote.call(verb, **args)
            except KeeperAbsent:
                self._local = Local(self._verbs())
        return self._local.call(verb, **args)
