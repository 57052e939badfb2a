"""The environment of a source checkout, made with nothing but Python and its pip.

`python3 -m sse_app` and `python3 -m tests` call `bootstrap()` before they import a dependency. It makes `.venv` in the
checkout, installs the checkout into it, and goes on there as `.venv/bin/python`; from then on it only does the last
step. On a bare Debian 12 this is the way that is left: pip refuses to install into the system (PEP 668),
`python3 -m venv` lacks ensurepip, but the system's pip can fill an environment without pip (`pip --python`, pip 22.3).

In a virtual environment, in an installed package, on Windows and with `SSE_APP_NO_BOOTSTRAP=1` it does nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import NamedTuple, NoReturn

CHECKOUT = Path(__file__).resolve().parent.parent
OPT_OUT = "SSE_APP_NO_BOOTSTRAP"


class Stamp(NamedTuple):
    """The sources of an environment. Its file lies there: empty during the work, written when all is done."""

    checkout: str  # the environment's scripts and the editable install hold this path
    python: str  # version and real path of the interpreter below the environment
    pyproject: str  # SHA-256
    extras: frozenset[str]

    @classmethod
    def wanted(cls, checkout: Path, extras: Iterable[str]) -> Stamp:
        python = f"{sys.version.split()[0]} {os.path.realpath(sys.executable)}"
        pyproject = hashlib.sha256((checkout / "pyproject.toml").read_bytes()).hexdigest()
        return cls(str(checkout), python, pyproject, frozenset(extras))

    @classmethod
    def read(cls, path: Path) -> Stamp | None:
        """The stamp at `path`, or None where there is none or the environment was left half made."""
        try:
            checkout, python, pyproject, extras = json.loads(path.read_text())
            return cls(checkout, python, pyproject, frozenset(extras))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, path: Path) -> None:
        path.write_text(json.dumps([*self[:3], sorted(self.extras)]))


class Plan(Enum):
    RUN = "all is there"
    INSTALL = "the environment is sound, but lacks packages"
    REMAKE = "there is no environment, or none that can be trusted"


def plan(found: Stamp | None, wanted: Stamp, sound: bool) -> Plan:
    """Return what to do with an environment stamped `found`; `sound`: its interpreter is still usable."""
    if found is None or not sound or (found.checkout, found.python) != (wanted.checkout, wanted.python):
        return Plan.REMAKE
    if found.pyproject != wanted.pyproject or not wanted.extras <= found.extras:
        return Plan.INSTALL
    return Plan.RUN


class Environment:
    """The `.venv` of one checkout."""

    def __init__(self, checkout: Path) -> None:
        self.checkout = checkout
        self.path = checkout / ".venv"
        self.python = self.path / "bin" / "python"
        self.stamp = self.path / "sse-app-bootstrap.json"

    def plan(self, wanted: Stamp) -> Plan:
        # without pyvenv.cfg the interpreter does not know that it is in an environment, and would bootstrap for ever
        sound = os.access(self.python, os.X_OK) and (self.path / "pyvenv.cfg").is_file()
        return plan(Stamp.read(self.stamp), wanted, sound)

    def prepare(self, wanted: Stamp) -> None:
        """Make the environment what `wanted` says. Ends the process with an explanation where that cannot be."""
        with self._locked() as lock:
            todo = self.plan(wanted)
            if todo is Plan.RUN:  # by whoever held the lock before us
                return
            self._refuse_what_is_not_ours()
            if importlib.util.find_spec("pip") is None:
                fail(f"pip is missing. On Debian and Ubuntu: apt install python3-pip. {self._by_hand()}")
            started = time.monotonic()
            found = Stamp.read(self.stamp)
            wanted = wanted._replace(extras=wanted.extras | (found.extras if found else frozenset()))
            self._begin()
            if todo is Plan.REMAKE:
                say(f"making {self.path} ({OPT_OUT}=1 keeps me from it and uses what is installed)")
                self._clear()
                self._run(lock, "-m", "venv", "--without-pip", str(self.path))
            extras = f"[{','.join(sorted(wanted.extras))}]" if wanted.extras else ""
            say(f"installing sse-app{extras} and its dependencies into it with pip, once")
            pip = ("-m", "pip", "--python", str(self.python), "--disable-pip-version-check")
            self._run(lock, *pip, "install", "--no-input", "--editable", f".{extras}")
            wanted.write(self.stamp)
            say(f"ready after {time.monotonic() - started:.0f} s")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """One start at a time prepares the environment; the others wait for it."""
        import fcntl  # POSIX only, and this module has to import everywhere

        with open(self.checkout / ".venv.lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("another start is preparing .venv: waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield lock.fileno()

    def _refuse_what_is_not_ours(self) -> None:
        if self.path.exists() and not self.stamp.exists() and any(self.path.iterdir()):
            fail(
                f"{self.path} is not of my making and I leave it alone. "
                f"Run me with {self.python}, or remove it, or set {OPT_OUT}=1."
            )

    def _begin(self) -> None:
        self.path.mkdir(exist_ok=True)
        self.stamp.write_text("")  # whoever finds it empty knows: ours, and interrupted

    def _clear(self) -> None:
        """Empty the environment but for the stamp, without which a half emptied one would not be ours any more."""
        for child in self.path.iterdir():
            if child.is_dir() and not child.is_symlink():
                shutil.rmtree(child)
            elif child != self.stamp:
                child.unlink()

    def _run(self, lock: int, *arguments: str) -> None:
        # The child inherits the lock: should we be killed, nobody touches the environment before it has ended too.
        command = [sys.executable, *arguments]
        done = subprocess.run(
            command,
            cwd=self.checkout,
            pass_fds=[lock],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        if done.returncode:
            print(done.stdout, file=sys.stderr)
            fail(
                f"this failed, its output is above: {' '.join(command)}\n"
                f"If the network or a proxy was in the way, put that right and start again. {self._by_hand()}"
            )

    def _by_hand(self) -> str:
        return f"Or activate an environment of your own, `pip install -e {self.checkout}` there, and start again."


def bootstrap(extras: Iterable[str] = ()) -> None:
    """Go on in the checkout's own environment, made first if need be; return where that is not called for.

    `extras` are the optional dependencies of pyproject.toml that the caller needs. This process is replaced by the same
    command line with `.venv/bin/python` as its interpreter.
    """
    in_environment = sys.prefix != sys.base_prefix
    in_checkout = (CHECKOUT / "pyproject.toml").is_file()
    if in_environment or not in_checkout or sys.platform == "win32" or os.environ.get(OPT_OUT) == "1":
        return
    environment = Environment(CHECKOUT)
    wanted = Stamp.wanted(CHECKOUT, extras)
    if environment.plan(wanted) is not Plan.RUN:
        try:
            environment.prepare(wanted)
        except OSError as error:
            fail(f"cannot make {environment.path}: {error}. Is the checkout writable? {environment._by_hand()}")
    os.execv(environment.python, [str(environment.python), *sys.orig_argv[1:]])


def say(text: str) -> None:
    print(f"sse-app: {text}", file=sys.stderr, flush=True)


def fail(text: str) -> NoReturn:
    say(text)
    sys.exit(1)
