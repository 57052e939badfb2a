"""The two commands of a bare checkout: real interpreters and environments, a pip that only records its calls."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sse_app import bootstrap
from sse_app.bootstrap import Plan, Stamp, plan
from tests import __main__ as tests_command

BASE_PYTHON = os.path.realpath(sys.executable)  # the interpreter below the environment that these tests run in

MAIN = """
import json, os, sys
from sse_app.bootstrap import bootstrap
bootstrap(os.environ.get("EXTRAS", "").split())
print(json.dumps({"prefix": sys.prefix, "arguments": sys.argv[1:]}))
"""

FAKE_PIP = """
import json, os, signal, sys
with open(os.environ["PIP_CALLS"], "a") as calls:
    print(json.dumps(sys.argv[1:]), file=calls)
match os.environ.get("PIP_DOES"):
    case "fail":
        print("the index does not answer")
        sys.exit(1)
    case "kill":
        os.kill(os.getppid(), signal.SIGKILL)
    case "wait":
        open("started", "w").close()
        open("go").close()
"""

BACKEND = """
import zipfile

def build_editable(directory, config_settings=None, metadata_directory=None):
    info = "sse_app-0.1.0.dist-info/"
    with zipfile.ZipFile(directory + "/sse_app-0.1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("from_pip.py", "")
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: sse-app\\nVersion: 0.1.0\\n")
        wheel.writestr(info + "RECORD", "")
    return "sse_app-0.1.0-py3-none-any.whl"
"""


class Checkout:
    """A checkout with nothing but the bootstrap, and functions that run commands in it."""

    def __init__(self, path: Path, pip: Path) -> None:
        self.path = path
        self.pip = pip
        self.calls = pip / "calls"
        (path / "sse_app").mkdir(parents=True)
        shutil.copy(bootstrap.__file__, path / "sse_app")
        (path / "sse_app" / "__main__.py").write_text(MAIN)
        (path / "pyproject.toml").write_text("[project]\n")
        (pip / "pip").mkdir(parents=True)
        (pip / "pip" / "__init__.py").touch()
        (pip / "pip" / "__main__.py").write_text(FAKE_PIP)

    def start(self, *arguments: str, python: str | Path = BASE_PYTHON, **environment: str) -> subprocess.Popen[str]:
        command = [str(python), *(arguments or ("-m", "sse_app"))]
        environment = {"PYTHONPATH": str(self.pip), "PIP_CALLS": str(self.calls)} | environment
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=self.path, env=environment, **streams)

    def run(self, *arguments: str, **options: str) -> subprocess.CompletedProcess[str]:
        with self.start(*arguments, **options) as process:
            stdout, stderr = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def installed(self) -> list[str]:
        """The arguments of the calls of pip, in order."""
        return [json.loads(call)[-1] for call in self.calls.read_text().splitlines()] if self.calls.exists() else []

    @property
    def venv(self) -> Path:
        return self.path / ".venv"


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path / "checkout", tmp_path / "site")


def stamp(**changes: Any) -> Stamp:
    return Stamp("/checkout", "3.11.2 /usr/bin/python3.11", "abc", frozenset({"test"}))._replace(**changes)


@pytest.mark.parametrize(
    ("found", "sound", "expected"),
    [
        (stamp(), True, Plan.RUN),
        (stamp(extras=frozenset({"lint", "test"})), True, Plan.RUN),
        (stamp(extras=frozenset()), True, Plan.INSTALL),
        (stamp(extras=frozenset({"lint"})), True, Plan.INSTALL),
        (stamp(pyproject="abd"), True, Plan.INSTALL),
        (stamp(python="3.11.9 /usr/bin/python3.11"), True, Plan.REMAKE),
        (stamp(checkout="/moved"), True, Plan.REMAKE),
        (stamp(), False, Plan.REMAKE),
        (None, True, Plan.REMAKE),
        (None, False, Plan.REMAKE),
    ],
)
def test_plan(found: Stamp | None, sound: bool, expected: Plan) -> None:
    assert plan(found, stamp(), sound) is expected


def test_stamp_is_read_as_written(tmp_path: Path) -> None:
    stamp().write(tmp_path / "stamp")
    assert Stamp.read(tmp_path / "stamp") == stamp()


@pytest.mark.parametrize("content", ["", "[", "1", "[1]", '["a", "b", "c", 4]', "\x00"])
def test_no_stamp_is_read_from_anything_else(tmp_path: Path, content: str) -> None:
    (tmp_path / "stamp").write_text(content)
    assert Stamp.read(tmp_path / "stamp") is None
    assert Stamp.read(tmp_path / "absent") is None


def test_cold_start_makes_the_environment_and_goes_on_in_it(checkout: Checkout) -> None:
    done = checkout.run("-m", "sse_app", "serve", "--port", "1")
    assert json.loads(done.stdout) == {"prefix": str(checkout.venv), "arguments": ["serve", "--port", "1"]}
    assert checkout.installed() == ["."]
    assert [line.split()[1] for line in done.stderr.splitlines()] == ["making", "installing", "ready"]
    assert "SSE_APP_NO_BOOTSTRAP=1" in done.stderr


def test_warm_start_only_goes_on(checkout: Checkout) -> None:
    checkout.run()
    checkout.calls.unlink()
    done = checkout.run(PYTHONPATH="")  # the second run needs no pip
    assert (json.loads(done.stdout)["prefix"], done.stderr) == (str(checkout.venv), "")
    assert checkout.installed() == []


def test_interpreter_flags_survive(checkout: Checkout) -> None:
    checkout.run()
    code = "import sys; from sse_app.bootstrap import bootstrap; bootstrap(); print(sys.prefix, sys.flags.dev_mode)"
    assert checkout.run("-X", "dev", "-c", code).stdout.split() == [str(checkout.venv), "True"]


def test_further_extras_are_added_and_fewer_change_nothing(checkout: Checkout) -> None:
    for extras in ("", "test lint", "", "lint"):
        assert checkout.run(EXTRAS=extras).returncode == 0
    assert checkout.installed() == [".", ".[lint,test]"]


def test_changed_pyproject_installs_again_into_the_same_environment(checkout: Checkout) -> None:
    checkout.run(EXTRAS="test")
    (checkout.venv / "kept").touch()
    (checkout.path / "pyproject.toml").write_text("[project]\n# changed\n")
    done = checkout.run()
    assert json.loads(done.stdout)["prefix"] == str(checkout.venv)
    assert checkout.installed() == [".[test]", ".[test]"]
    assert (checkout.venv / "kept").exists()


def test_killed_half_way_is_made_anew(checkout: Checkout) -> None:
    assert checkout.run(PIP_DOES="kill").returncode == -9
    (checkout.venv / "half").touch()
    done = checkout.run()
    assert json.loads(done.stdout)["prefix"] == str(checkout.venv)
    assert not (checkout.venv / "half").exists()


def test_failing_pip_shows_its_output_and_what_to_do(checkout: Checkout) -> None:
    done = checkout.run(PIP_DOES="fail")
    assert (done.returncode, done.stdout) == (1, "")
    assert "the index does not answer" in done.stderr
    assert "the network or a proxy" in done.stderr
    assert json.loads(checkout.run().stdout)["prefix"] == str(checkout.venv)


def test_missing_pip_names_the_package(checkout: Checkout) -> None:
    done = checkout.run("-S", "-m", "sse_app", PYTHONPATH="")  # -S: no site-packages, hence no pip
    assert done.returncode == 1
    assert "apt install python3-pip" in done.stderr
    assert not checkout.venv.exists()


def test_lost_base_interpreter_is_noticed(checkout: Checkout) -> None:
    checkout.run()
    (checkout.venv / "bin" / "python").unlink()
    (checkout.venv / "bin" / "python").symlink_to("/nowhere/python3")
    assert json.loads(checkout.run().stdout)["prefix"] == str(checkout.venv)
    assert checkout.installed() == [".", "."]


def test_environment_that_is_not_one_any_more_does_not_start_for_ever(checkout: Checkout) -> None:
    checkout.run()
    (checkout.venv / "pyvenv.cfg").unlink()
    assert json.loads(checkout.run().stdout)["prefix"] == str(checkout.venv)


def test_environment_of_someone_else_is_left_alone(checkout: Checkout) -> None:
    checkout.venv.mkdir()
    (checkout.venv / "theirs").touch()
    done = checkout.run()
    assert done.returncode == 1
    assert "leave it alone" in done.stderr
    assert [child.name for child in checkout.venv.iterdir()] == ["theirs"]


def test_unwritable_checkout_is_said(checkout: Checkout) -> None:
    (checkout.path / ".venv.lock").mkdir()  # root may write everywhere, but not here
    done = checkout.run()
    assert done.returncode == 1
    assert "Is the checkout writable?" in done.stderr
    assert "Traceback" not in done.stderr


def test_two_starts_at_once_install_once(checkout: Checkout) -> None:
    os.mkfifo(checkout.path / "started")
    os.mkfifo(checkout.path / "go")
    with checkout.start(PIP_DOES="wait") as first:
        (checkout.path / "started").read_text()
        with checkout.start() as second:
            assert second.stderr
            assert "waiting" in second.stderr.readline()
            (checkout.path / "go").write_text("")
            outputs = [first.communicate()[0], second.communicate()[0]]
    assert [json.loads(output)["prefix"] for output in outputs] == [str(checkout.venv)] * 2
    assert checkout.installed() == ["."]


def test_opt_out_stays_where_it_is(checkout: Checkout) -> None:
    done = checkout.run(SSE_APP_NO_BOOTSTRAP="1")
    assert json.loads(done.stdout)["prefix"] == sys.base_prefix
    assert not checkout.venv.exists()


def test_installed_package_stays_where_it_is(checkout: Checkout) -> None:
    (checkout.path / "pyproject.toml").unlink()
    done = checkout.run()
    assert json.loads(done.stdout)["prefix"] == sys.base_prefix
    assert not checkout.venv.exists()


def test_another_environment_is_used_as_it_is(checkout: Checkout, tmp_path: Path) -> None:
    subprocess.run([BASE_PYTHON, "-m", "venv", "--without-pip", tmp_path / "other"], check=True)
    done = checkout.run(python=str(tmp_path / "other" / "bin" / "python"))
    assert json.loads(done.stdout)["prefix"] == str(tmp_path / "other")
    assert not checkout.venv.exists()


def test_real_pip_fills_the_environment(checkout: Checkout) -> None:
    (checkout.path / "backend.py").write_text(BACKEND)
    (checkout.path / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "sse-app"\nversion = "0.1.0"\n'
    )
    done = checkout.run(PYTHONPATH="", PIP_NO_INDEX="1", PIP_CONFIG_FILE=os.devnull, PATH=os.environ["PATH"])
    assert done.returncode == 0, done.stderr
    assert len(list(checkout.venv.glob("lib/python3*/site-packages/from_pip.py"))) == 1


@pytest.fixture
def debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Debian without our packages, where we are root: a folder with the stub commands, for `apt-get` to log into."""
    apt_get = 'echo "$*" >> "$0.log"; "${0%/*}/policy-rc.d"; echo $? >> "$0.policy"; echo busy; exit ${APT_FAILS:-0}'
    for name, script in {"dpkg-query": "exit 1", "apt-get": apt_get}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv(bootstrap.OPT_OUT, raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(tests_command, "POLICY", tmp_path / "policy-rc.d")
    return tmp_path / "apt-get.log"


def test_root_on_debian_gets_what_is_missing(debian: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tests_command.install_debian_packages()
    update, install = debian.read_text().splitlines()
    assert update.endswith(" update")
    assert install.endswith(f" install --yes --no-install-recommends {' '.join(tests_command.DEBIAN_PACKAGES)}")
    output = capfd.readouterr().err
    assert "busy" not in output
    assert "SKIPPED" not in output
    first = output.splitlines()[0]
    for text in (*tests_command.DEBIAN_PACKAGES, "apt-get", str(tests_command.POLICY), "--no-install"):
        assert text in first


def test_failing_apt_is_shown_and_what_follows_from_it(
    debian: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APT_FAILS", "100")
    tests_command.install_debian_packages()
    output = capfd.readouterr().err
    assert "busy" in output
    assert f"MISSING: {' '.join(tests_command.DEBIAN_PACKAGES)} (apt-get" in output
    assert "WILL BE SKIPPED" in output


@pytest.mark.parametrize("failing", ["0", "100"])
def test_no_service_is_started_by_what_is_installed(
    debian: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    monkeypatch.setenv("APT_FAILS", failing)
    tests_command.install_debian_packages()
    asked = debian.with_suffix(".policy").read_text().split()
    assert asked
    assert set(asked) == {"101"}
    assert not tests_command.POLICY.exists()


def test_the_machines_own_policy_is_left_alone(debian: Path) -> None:
    tests_command.POLICY.write_text("#!/bin/sh\nexit 104\n")
    tests_command.POLICY.chmod(0o750)
    before = tests_command.POLICY.stat()
    tests_command.install_debian_packages()
    assert debian.with_suffix(".policy").read_text().split() == ["104", "104"]
    assert tests_command.POLICY.read_text() == "#!/bin/sh\nexit 104\n"
    after = tests_command.POLICY.stat()
    assert (after.st_mode, after.st_ino, after.st_mtime_ns) == (before.st_mode, before.st_ino, before.st_mtime_ns)


def test_a_policy_that_is_a_link_to_nothing_is_left_alone(debian: Path) -> None:
    target = debian.with_name("alternatives")
    tests_command.POLICY.symlink_to(target)
    tests_command.install_debian_packages()
    assert tests_command.POLICY.readlink() == target
    assert not target.exists()


def test_a_policy_that_a_package_brings_stays(debian: Path) -> None:
    with tests_command.no_service_started():
        tests_command.POLICY.write_text("#!/bin/sh\nexit 104\n")
    assert tests_command.POLICY.read_text() == "#!/bin/sh\nexit 104\n"


def test_a_killed_installation_forbids_nothing_and_is_cleaned_up(debian: Path) -> None:
    kill = "import os, signal, tests.__main__ as t, pathlib; t.POLICY = pathlib.Path(os.environ['POLICY'])\n"
    kill += "with t.no_service_started(): os.kill(os.getpid(), signal.SIGKILL)"
    environment = {**os.environ, "POLICY": str(tests_command.POLICY)}
    killed = subprocess.run([sys.executable, "-c", kill], env=environment, cwd=tests_command.CHECKOUT)
    assert killed.returncode == -9
    assert subprocess.run([tests_command.POLICY]).returncode == 0
    tests_command.install_debian_packages()
    assert not tests_command.POLICY.exists()


def test_who_is_not_root_is_told(
    debian: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    tests_command.install_debian_packages()
    output = capfd.readouterr().err
    assert "root and apt-get" in output
    assert "WILL BE SKIPPED" in output
    assert not debian.exists()


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[str]:
    """Run `python3 -m tests` with these arguments. Return the command that it would become."""
    became: list[str] = []
    monkeypatch.setattr(sys, "argv", ["tests", *arguments])
    monkeypatch.setattr(tests_command, "bootstrap", lambda extras: None)
    monkeypatch.setattr(os, "execv", lambda python, command: became.extend(command))
    tests_command.main()
    return became


def test_who_asks_for_no_installation_gets_none_and_is_told_what_is_skipped(
    debian: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    became = run_main(monkeypatch, "--no-install", "-q", "tests/test_topics.py")
    assert became == [sys.executable, "-m", "pytest", "-q", "tests/test_topics.py"]
    assert not debian.exists()
    assert not tests_command.POLICY.exists()
    output = capfd.readouterr().err
    assert "as --no-install asks" in output
    assert "WILL BE SKIPPED" in output


def test_who_does_not_ask_for_it_gets_the_packages(debian: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_main(monkeypatch, "-q")[-2:] == ["pytest", "-q"]
    assert len(debian.read_text().splitlines()) == 2


@pytest.mark.parametrize("arguments", [["--lint"], ["--no-install", "--lint"], ["--lint", "--no-install"]])
def test_the_linters_run_instead_with_or_without_no_install(
    arguments: list[str], debian: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tests_command, "LINTERS", (("platform",),))
    with pytest.raises(SystemExit) as ended:
        run_main(monkeypatch, *arguments)
    assert ended.value.code == 0
    assert not debian.exists()


@pytest.mark.parametrize(("ci", "status"), [("true", 1), ("", 0)])
def test_skip_fails_in_ci_only(tmp_path: Path, ci: str, status: int) -> None:
    (tmp_path / "test_it.py").write_text("import pytest\n\n\ndef test_it():\n    pytest.skip('no browser')\n")
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "--rootdir", str(tmp_path), str(tmp_path)]
    environment = {**os.environ, "CI": ci}
    done = subprocess.run(command, env=environment, cwd=tests_command.CHECKOUT, capture_output=True, text=True)
    assert done.returncode == status, done.stdout
    assert ("a failure in CI" in done.stdout) == bool(ci)


def test_tests_in_the_background_of_a_script_can_interrupt_their_children(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import signal, subprocess, sys\n\n\n"
        "def test_it():\n"
        "    signal.raise_signal(signal.SIGINT)  # a script's Ctrl+C is not for what it put in the background\n"
        "    child = 'import signal; signal.raise_signal(signal.SIGINT)'\n"
        "    done = subprocess.run([sys.executable, '-c', child], stderr=subprocess.DEVNULL)\n"
        "    assert done.returncode == -signal.SIGINT\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "--rootdir", str(tmp_path), str(tmp_path)]
    in_the_background = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command]
    done = subprocess.run(in_the_background, cwd=tests_command.CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("beside", "others", "status"), [("True", "True", 0), ("False", "True", 1), ("True", "False", 1)]
)
def test_the_whole_suite_is_what_both_of_its_halves_say(
    beside: str,
    others: str,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for folder in tests_command.BESIDE:
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / f"test_{Path(folder).name}.py").write_text(f"def test_it(): assert {beside}")
    (tmp_path / "tests" / "test_other.py").write_text(f"def test_it(): assert {others}")
    monkeypatch.chdir(tmp_path)
    assert tests_command.run_all() == status
    output = capfd.readouterr().out
    for name in ("test_browser.py", "test_chaos.py", "test_other.py"):
        assert name in output
