"""Fixtures and rules for every test."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = [f"tests.support.{name}" for name in ("nodes", "worlds", "boards", "redis_server", "nats_server")]

# `pytest --hypothesis-profile=thorough` runs every property 20 times as often. No deadline and no "too slow": a busy
# machine is not a bug.
settings.register_profile("quick", max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", settings.get_profile("quick"), max_examples=2_000)
settings.load_profile("quick")


@pytest.fixture(scope="session", autouse=True)
def plain_surroundings() -> Iterator[None]:
    """Remove variables that would send tests' requests through a proxy, or change the terminal of their processes."""
    proxies = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    with pytest.MonkeyPatch.context() as patch:
        for name in (*proxies, "FORCE_COLOR", "NO_COLOR", "COLUMNS", "LINES"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def interruptible_children() -> Iterator[None]:
    """Let the processes of tests be interrupted by SIGINT also when pytest runs in the background of a script.

    A shell without job control starts background commands with SIGINT ignored, and their children inherit that. With a
    handler that does nothing SIGINT is still ignored here, while children begin with the default (execve(2)).
    """
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if ignored:
        signal.signal(signal.SIGINT, lambda number, frame: None)
    yield
    if ignored:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio: the hub is made of its queues and transports."""
    return "asyncio"


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A key, and its certificate for localhost and 127.0.0.1."""
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    return key, certificate


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Make a skipped test a failure in CI, so that a missing browser cannot pass for a good run."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or not os.environ.get("CI"):
        return
    skipped = reporter.stats.get("skipped", [])
    for report in skipped:
        reporter.write_line(f"\nSKIPPED, a failure in CI: {report.nodeid}: {report.longrepr[2]}", red=True)
    if skipped and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
