"""`python3 -m tests [--no-install] [pytest arguments]`: the test suite, from nothing.

Packages go into `.venv`; what pip does not have, root on Debian gets with apt-get, unless `--no-install` is given.
`python3 -m tests --lint` checks style and types instead.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sse_app.bootstrap import OPT_OUT, bootstrap, say

CHECKOUT = Path(__file__).resolve().parent.parent
DEBIAN_PACKAGES = (
    "apache2-bin",
    "caddy",
    "chromium",
    "curl",
    "firefox-esr",
    "haproxy",
    "iproute2",
    "libatomic1",
    "nats-server",
    "nginx",
    "openssl",
    "redis-server",
    "strace",
)
BESIDE = ("tests/browser", "tests/chaos")  # half of the suite's time, much of it spent waiting
NO_INSTALL = "--no-install"
# What Debian's tools ask before they start a service: 101 is no, 0 yes (invoke-rc.d(8), deb-systemd-invoke(1p)).
POLICY = Path("/usr/sbin/policy-rc.d")
OURS = "Made by the tests of sse-app while they install packages; safe to remove."
LINTERS = (("ruff", "check"), ("ruff", "format", "--check"), ("mypy",))


def main() -> None:
    bootstrap(extras=("test", "lint"))
    os.chdir(CHECKOUT)
    arguments = [argument for argument in sys.argv[1:] if argument != NO_INSTALL]
    if arguments == ["--lint"]:
        failures = [subprocess.run([sys.executable, "-m", *linter]).returncode for linter in LINTERS]
        sys.exit(any(failures))
    install_debian_packages(allowed=NO_INSTALL not in sys.argv)
    if not arguments:
        sys.exit(run_all())
    os.execv(sys.executable, [sys.executable, "-m", "pytest", *arguments])


def run_all() -> int:
    """Run the whole suite, the tests of BESIDE beside all others. Return the exit status.

    No test has a time to keep, so that they may share the machine.
    """
    pytest = [sys.executable, "-m", "pytest"]
    ignored = [f"--ignore={folder}" for folder in BESIDE]
    with tempfile.TemporaryFile() as output:
        beside = subprocess.Popen([*pytest, *BESIDE], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        try:
            others = subprocess.run([*pytest, *ignored, "-o", "cache_dir=.pytest_cache/others"]).returncode
            status = beside.wait()
        finally:
            beside.terminate()
        output.seek(0)
        shutil.copyfileobj(output, sys.stdout.buffer)
    return others or status


def install_debian_packages(*, allowed: bool = True) -> None:
    """Install what the tests need and pip does not have; without the right to, print what will be skipped."""
    missing = missing_debian_packages()
    if not missing:
        return
    if not allowed or os.environ.get(OPT_OUT) == "1":
        reason = f"not installed, as {NO_INSTALL if not allowed else f'{OPT_OUT}=1'} asks"
    elif os.geteuid() != 0 or not shutil.which("apt-get"):
        reason = "installing them takes root and apt-get"
    else:
        say(
            f"installing {' '.join(missing)} with apt-get, once; {POLICY} keeps their services from starting meanwhile"
            f" ({NO_INSTALL} keeps me from both)"
        )
        with no_service_started():
            reason = apt_get("update") or apt_get("install", "--yes", "--no-install-recommends", *missing)
    if reason:
        line = "=" * 100
        say(f"\n{line}\nMISSING: {' '.join(missing)} ({reason}).\nTHE TESTS THAT NEED THEM WILL BE SKIPPED.\n{line}")


@contextmanager
def no_service_started() -> Iterator[None]:
    """The tests start their servers themselves: a package may not put one on port 80, or whatever its port is.

    A policy of the machine itself stays as it is. Ours says no only as long as this process lives, so that after a kill
    nothing is forbidden.
    """
    policy = f"#!/bin/sh\n# {OURS}\nkill -0 {os.getpid()} 2>/dev/null && exit 101\nexit 0\n"
    if os.path.lexists(POLICY) and not _policy_is_ours():  # also a broken link, which exists() would not see
        yield
        return
    POLICY.write_text(policy)
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        if _policy_is_ours():  # a package may have installed another one meanwhile
            POLICY.unlink()


def _policy_is_ours() -> bool:
    return POLICY.is_file() and not POLICY.is_symlink() and OURS in POLICY.read_text(errors="replace")


def missing_debian_packages() -> list[str]:
    if not shutil.which("dpkg-query"):  # not Debian: the browser's path stands for all packages
        return [] if os.path.exists("/usr/bin/chromium") else list(DEBIAN_PACKAGES)
    query = ["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\n", *DEBIAN_PACKAGES]
    known = subprocess.run(query, capture_output=True, text=True).stdout.splitlines()
    return [package for package in DEBIAN_PACKAGES if f"{package} installed" not in known]


def apt_get(*arguments: str) -> str:
    """Run apt-get without output. Return "" on success, else what went wrong, with its output printed."""
    command = ["apt-get", "-o", "DPkg::Lock::Timeout=300", "--quiet", *arguments]  # seconds
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode == 0:
        return ""
    print(done.stdout, file=sys.stderr)
    return f"{' '.join(command)} failed, see above"


if __name__ == "__main__":
    main()
