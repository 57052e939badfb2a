"""The fixtures and the mark of ``sse_app.pytest_plugin`` in other projects, under anyio's plugin and pytest-asyncio."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_docs import CHECKOUT, blocks

SETTINGS = {
    "anyio": 'anyio_mode = "auto"',
    "anyio-strict": "",
    "pytest-asyncio": 'asyncio_mode = "auto"',
    "pytest-asyncio-strict": 'asyncio_mode = "strict"',
}
MARKS = {"anyio-strict": "pytestmark = pytest.mark.anyio", "pytest-asyncio-strict": "pytestmark = pytest.mark.asyncio"}
CONFTEST = """
import pytest

@pytest.fixture
def anyio_backend():
    return "asyncio"
"""
FIXTURES = """
import asyncio
from sse_app.testing import VirtualTimeLoop, events

def virtual():
    return isinstance(asyncio.get_running_loop(), VirtualTimeLoop)

@pytest.fixture
async def loop():
    yield asyncio.get_running_loop()

async def welcomed(sse_client):
    async with sse_client.stream("GET", "/events") as response:
        return (await anext(events(response))).type == "welcome"

async def test_real(sse_client, loop):
    assert await welcomed(sse_client)
    assert loop is asyncio.get_running_loop()
    assert not virtual()

@pytest.mark.virtual_time
async def test_virtual(sse_client, loop):
    assert await welcomed(sse_client)
    assert loop is asyncio.get_running_loop()
    await asyncio.sleep(3600)
    assert round(asyncio.get_running_loop().time()) == 3600

@pytest.mark.virtual_time
class TestClass:
    @pytest.mark.parametrize("number", [1, 2])
    async def test_virtual(self, number, loop):
        assert virtual()
        assert loop is asyncio.get_running_loop()

async def test_real_again(loop):
    assert not virtual()
"""
ALONE = """
import asyncio
from sse_app.testing import VirtualTimeLoop

@pytest.mark.virtual_time
async def test_virtual():
    await asyncio.sleep(3600)
    assert isinstance(asyncio.get_running_loop(), VirtualTimeLoop)

async def test_real():
    assert not isinstance(asyncio.get_running_loop(), VirtualTimeLoop)
"""


def run(directory: Path, plugin: str, test: str, conftest: str = CONFTEST) -> tuple[str, str]:
    """Run a project's tests with warnings as errors. Return the last line of the output, and all of it."""
    settings = ["[tool.pytest.ini_options]", 'filterwarnings = ["error"]', 'addopts = "--strict-markers"']
    settings += ['asyncio_default_fixture_loop_scope = "function"'] if "pytest-asyncio" in plugin else []
    (directory / "pyproject.toml").write_text("\n".join([*settings, SETTINGS[plugin]]))
    (directory / "conftest.py").write_text(conftest)
    (directory / "test_it.py").write_text(f"import pytest\n{MARKS.get(plugin, '')}\n{test}")
    without = ["-p", "no:asyncio"] if "pytest-asyncio" not in plugin else []
    command = [sys.executable, "-m", "pytest", "-q", *without]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=50)
    return done.stdout.strip().rpartition("\n")[2], done.stdout + done.stderr


@pytest.mark.parametrize("plugin", ["anyio", "pytest-asyncio"])
def test_fixtures_and_the_mark_work_under_a_plugin_that_runs_all_that_is_async(plugin: str, tmp_path: Path) -> None:
    last, output = run(tmp_path, plugin, FIXTURES)
    assert last.startswith("5 passed"), output


@pytest.mark.parametrize("plugin", SETTINGS)
def test_the_mark_works_under_a_plugin_in_any_mode(plugin: str, tmp_path: Path) -> None:
    last, output = run(tmp_path, plugin, ALONE)
    assert last.startswith("2 passed"), output


@pytest.mark.parametrize("scope", ["module", "session"])
def test_a_marked_test_fails_on_a_loop_that_a_wider_fixture_holds_open(scope: str, tmp_path: Path) -> None:
    conftest = f"""{CONFTEST.replace("fixture", f"fixture(scope='{scope}')")}

@pytest.fixture(scope="{scope}")
async def wide():
    yield
"""
    tests = """
async def test_before(wide):
    pass

@pytest.mark.virtual_time
async def test_virtual():
    pass
"""
    last, output = run(tmp_path, "anyio", tests, conftest)
    assert last.startswith("1 failed, 1 passed"), output
    assert "This virtual_time test runs on a loop of real time" in output


def test_a_marked_test_that_is_not_async_fails(tmp_path: Path) -> None:
    last, output = run(tmp_path, "anyio", "@pytest.mark.virtual_time\ndef test_sync():\n    pass\n")
    assert last.startswith("1 failed"), output
    assert "run_virtual runs a coroutine in others" in output


def test_a_mark_for_a_whole_module_concerns_its_async_tests(tmp_path: Path) -> None:
    tests = "import asyncio\npytestmark = pytest.mark.virtual_time\n\ndef test_sync():\n    pass\n\n"
    last, output = run(tmp_path, "anyio", f"{tests}async def test_async():\n    await asyncio.sleep(3600)\n")
    assert last.startswith("2 passed"), output


def test_the_tests_of_the_documentation_pass_under_pytest_asyncio_too(tmp_path: Path) -> None:
    found = blocks(CHECKOUT / "docs" / "testing.md")
    for block in found:
        if name := re.match(r"# (\w+\.py)\n", block.text):
            (tmp_path / name[1]).write_text(block.text)
    settings = next(block.text for block in found if "asyncio_mode" in block.text)
    (tmp_path / "pyproject.toml").write_text(settings)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q"], cwd=tmp_path, capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stdout


def test_the_loops_of_other_tests_of_pytest_asyncio_stay_theirs(tmp_path: Path) -> None:
    """The project's own hook makes the loops of tests without the mark."""
    hook = """
import asyncio

class OwnLoop(asyncio.SelectorEventLoop):
    pass

def pytest_asyncio_loop_factories(config, item):
    return {"own": OwnLoop}
"""
    own = "assert type(asyncio.get_running_loop()).__name__ == 'OwnLoop'\n    assert not isinstance"
    test = ALONE.replace("assert not isinstance", own)
    last, output = run(tmp_path, "pytest-asyncio", test, CONFTEST + hook)
    assert last.startswith("2 passed"), output
