"""``sandboxworker check``: every planted fault is found, and no other; and what it says."""

from __future__ import annotations

import ast
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from buildbot.config.master import MasterConfig
from buildbot.plugins import schedulers, steps, util
from buildbot.scripts import runner
from buildbot.worker import Worker
from click.testing import CliRunner, Result

from sandboxworker import SandboxLatentWorker, SandboxPolicy
from sandboxworker.check.addresses import PublicUrl, listening
from sandboxworker.check.configuration import Configuration
from sandboxworker.check.file_rules import _literals
from sandboxworker.check.passwords import weakness
from sandboxworker.check.rules import RULES, judge
from sandboxworker.cli import main

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "tests" / "configs").glob("*.cfg"))
#: That of the service needs its files: the service's own test has it checked.
EXAMPLES = sorted(
    file for file in ROOT.glob("examples/**/master.cfg") if file.parent.name != "service"
)

#: Only a file's mode can show these.
_NOT_PLANTED = {"file-writable"}


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["check", *arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def rules_found(file: Path, *more: str) -> set[str]:
    result = run("--json", "--fail-on", "never", *more, str(file))
    return {finding["rule"] for finding in json.loads(result.stdout)["findings"]}


def planted(file: Path) -> set[str]:
    return {
        name
        for line in re.findall(r"^# faults:(.*)", file.read_text(), re.M)
        for name in line.split()
    }


# ---- whole configurations ------------------------------------------------------------------------


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_planted_fault_is_found_and_no_other(file: Path) -> None:
    assert rules_found(file) == planted(file)


def test_each_rule_has_its_fault_among_the_bad_configurations() -> None:
    everywhere = {name for file in CONFIGS for name in planted(file)}
    assert everywhere == set(RULES) - _NOT_PLANTED


def test_what_is_wrong_with_the_sample_that_buildbot_makes_is_found(tmp_path: Path) -> None:
    """Everybody's first configuration."""
    sample = Path(runner.__file__).with_name("sample.cfg")
    shutil.copy(sample, tmp_path / "master.cfg")
    assert rules_found(tmp_path / "master.cfg") >= {
        "literal-secret",
        "password-weak",
        "web-no-login",
        "web-no-rules",
        "web-plain-http",
        "worker-port-open",
    }


@pytest.mark.skipif(not EXAMPLES, reason="the examples are not part of a wheel")
@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.parent.name)
def test_nothing_is_found_in_the_examples(file: Path) -> None:
    assert rules_found(file) == set()


@pytest.mark.parametrize("mode", [0o646, 0o644])
def test_a_file_that_others_may_write_is_found(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "master.cfg"
    shutil.copy(ROOT / "tests/configs/good_service.cfg", file)
    file.chmod(mode)
    assert rules_found(file) == ({"file-writable"} if mode == 0o646 else set())
    tmp_path.chmod(0o777)
    assert rules_found(file) == {"file-writable"}
    tmp_path.chmod(0o1777)
    assert ("file-writable" in rules_found(file)) == (mode == 0o646)


def test_a_module_beside_the_file_is_read_too(tmp_path: Path) -> None:
    good = (ROOT / "tests/configs/good_service.cfg").read_text()
    (tmp_path / "more_for_check.py").write_text('\nDEPLOY_TOKEN = "0d6f7c"\n')
    file = tmp_path / "master.cfg"
    file.write_text(f"import more_for_check\n{good}")
    result = run("--json", str(file), code=1)
    (finding,) = json.loads(result.stdout)["findings"]
    assert (finding["rule"], finding["line"]) == ("literal-secret", 2)
    assert finding["file"].endswith("more_for_check.py")
    # Another look sees it as it is then.
    (tmp_path / "more_for_check.py").write_text("")
    assert rules_found(file) == set()


# ---- who gets pull requests ----------------------------------------------------------------------

_REACHED = [
    ({"github": {}}, {"branch": "main"}, False),
    ({"github": {}}, {"branch_re": "refs/pull/.*"}, True),
    ({"github": {}}, {"category": "push"}, False),
    ({"github": {}}, {"branch_fn": lambda branch: branch.startswith("refs/pull/")}, True),
    ({"github": {"pullrequest_ref": "head"}}, {"branch_re": ".*/merge$"}, False),
    ({"gitlab": {}}, {"branch": "main"}, True),
    ({"gitlab": {}}, {"branch_re": "release/.*"}, True),
    ({"gitlab": {}}, {"branch": "main", "category": "push"}, False),
    ({"gitlab": {}}, {"branch": "main", "category_not_eq": ["merge_request", "note"]}, False),
    ({"gitea": {}}, {"branch": "main"}, True),
    ({"gitea": {}}, {"branch": "main", "category": "push"}, False),
    ({"bitbucketcloud": {}}, {"branch": "main"}, False),
    ({"bitbucketserver": {}}, {"category": "pull-created"}, True),
    ({"gitlab": {}}, {"project": "ours", "category": "push"}, False),
    ({"gitlab": {}}, {"project": "ours"}, True),
    ({"gitlab": {}}, {"filter_fn": lambda change: change.nothing_like_it}, True),
    ({"gitlab": {}}, {"filter_fn": lambda change: change.category == "push"}, False),
    ({"gitlab": {}}, {"property_eq": {"event": "push"}}, False),
    ({"gitlab": False}, {}, False),
]


@pytest.mark.parametrize(("hooks", "wanted", "is_reached"), _REACHED)
def test_a_filter_lets_pull_requests_through_or_not(
    tmp_path: Path, hooks: dict[str, Any], wanted: dict[str, Any], is_reached: bool
) -> None:
    scheduler = schedulers.AnyBranchScheduler(
        name="s", builderNames=["b"], change_filter=util.ChangeFilter(**wanted)
    )
    found = _judged(tmp_path, hooks, [scheduler])
    assert ("pull-request-unsandboxed" in found) == is_reached


def test_what_follows_from_a_pull_request_is_reached_too(tmp_path: Path) -> None:
    first = schedulers.AnyBranchScheduler(name="first", builderNames=["safe"])
    then = schedulers.Dependent(name="then", upstream=first, builderNames=["b"])
    assert "pull-request-unsandboxed" in _judged(tmp_path, {"github": {}}, [first, then])


@pytest.mark.parametrize("names", [["deeper"], [util.Property("chosen-late")]])
def test_what_a_pull_requests_build_triggers_is_reached_too(tmp_path: Path, names: Any) -> None:
    first = schedulers.AnyBranchScheduler(name="first", builderNames=["safe"])
    deeper = schedulers.Triggerable(name="deeper", builderNames=["b"])
    build = [steps.Trigger(schedulerNames=names)]
    assert "pull-request-unsandboxed" in _judged(tmp_path, {"github": {}}, [first, deeper], build)


def test_a_step_of_the_operators_own_making_is_passed_over(tmp_path: Path) -> None:
    """Buildbot takes any object that makes steps; what it will make cannot be seen."""
    all_changes = schedulers.AnyBranchScheduler(name="all", builderNames=["safe", "b"])
    found = _judged(tmp_path, {"github": {}}, [all_changes], own_step=object())
    assert "pull-request-unsandboxed" in found
    assert "log-unlimited" not in found


def test_what_nobody_triggers_is_not_reached(tmp_path: Path) -> None:
    first = schedulers.AnyBranchScheduler(name="first", builderNames=["safe"])
    deeper = schedulers.Triggerable(name="deeper", builderNames=["b"])
    build = [steps.Trigger(schedulerNames=["elsewhere"])]
    found = _judged(tmp_path, {"github": {}}, [first, deeper], build)
    assert "pull-request-unsandboxed" not in found


def _judged(
    directory: Path, hooks: Any, made: list[Any], build: Any = (), own_step: Any = None
) -> set[str]:
    """What is found where ``safe`` has a sandbox and ``b`` has none."""
    factory = util.BuildFactory()
    factory.steps = [] if own_step is None else [own_step]
    config = {
        "workers": [
            SandboxLatentWorker("s", policy=SandboxPolicy("image:1")),
            Worker("w", "gH5k2Lq9Zt4mXb1d"),
        ],
        "builders": [
            util.BuilderConfig(
                name="safe", workernames=["s"], factory=util.BuildFactory(list(build))
            ),
            util.BuilderConfig(name="b", workernames=["w"], factory=factory),
        ],
        "schedulers": [*made, schedulers.ForceScheduler(name="f", builderNames=["safe", "b"])],
        "protocols": {"pb": {"port": "tcp:9989:interface=127.0.0.1"}},
        "www": {"port": "tcp:1:interface=127.0.0.1", "change_hook_dialects": hooks},
        "buildbotNetUsageData": None,
    }
    file = directory / "master.cfg"
    file.write_text("")
    master = MasterConfig.loadFromDict(config, str(file))
    return {finding.rule.id for finding in judge(Configuration(master, file, (file,)))}


# ---- the parts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("port", "is_public", "is_encrypted"),
    [
        (9989, True, False),
        ("9989", True, False),
        ("tcp:9989", True, False),
        ("tcp:9989:interface=127.0.0.1", False, False),
        ("tcp:9989:interface=localhost", False, False),
        ("tcp:9989:interface=0.0.0.0", True, False),
        (r"tcp6:9989:interface=\:\:1", False, False),
        (r"tcp6:9989:interface=\:\:", True, False),
        ("tcp:port=9989:interface=10.0.0.7", True, False),
        ("ssl:9989:privateKey=k.pem:certKey=c.pem", True, True),
        ("unix:/run/master.sock", False, True),
    ],
)
def test_a_port_tells_who_reaches_it(port: Any, is_public: bool, is_encrypted: bool) -> None:
    found = listening(port)
    assert found is not None
    assert (found.is_public, found.is_encrypted) == (is_public, is_encrypted)


def test_no_port_is_no_port() -> None:
    assert listening(None) is None


@pytest.mark.parametrize(
    ("url", "is_exposed"),
    [
        ("http://localhost:8010/", False),
        ("http://127.0.0.1:8010/", False),
        ("http://ci.example.org/", True),
        ("https://ci.example.org/", False),
    ],
)
def test_an_address_for_people_is_exposed_without_https(url: str, is_exposed: bool) -> None:
    assert PublicUrl(url).is_exposed == is_exposed


@pytest.mark.parametrize("password", ["pass", "Password123!", "ada", "short", "aaaaaaaaaaaaaaaa"])
def test_a_password_that_is_easily_guessed_is_weak(password: str) -> None:
    assert weakness(password, "ada")


def test_a_random_password_is_not_weak() -> None:
    assert weakness("0f6c2b9d4e7a81c3", "ada") is None


@pytest.mark.parametrize(
    "line",
    [
        'worker.Worker("w", "hunter2")',
        'Try_Userpass(name="t", port=1, userpass=[("ada", "lovelace")])',
        'util.UserPasswordAuth({"ada": "lovelace"})',
        'reporters.GitHubStatusPush(token="abc")',
        'options = {"secret": "abc"}',
        'c["x"]["password"] = "abc"',
        'API_KEY = b"abc"',
        'dbPassword = "abc"',
        'f(sshPrivateKey="abc")',
        'steps.Git(repourl="https://ada:lovelace@forge.example/p.git")',
        'steps.Git(repourl=URL, auth_credentials=("ada", "lovelace"))',
        'x = "-----BEGIN OPENSSH PRIVATE KEY-----"',
        'x = "ghp_0123456789abcdefghij0123"',
    ],
)
def test_a_secret_in_the_text_is_found(line: str) -> None:
    assert len({number for number, _ in _literals(ast.parse(line))}) == 1


@pytest.mark.parametrize(
    "line",
    [
        'reporters.GitHubStatusPush(token=util.Secret("abc"))',
        'util.SandboxPolicy("image", secrets=["token"])',
        'c["secretsProviders"] = [secrets.SecretInAFile("/srv/secrets")]',
        'key = {"private_key": "/srv/key.pem", "token": None, "password": ""}',
        'token = os.environ["TOKEN"]',
        'compass = "north"; bypass = "no"; secret_name = "deploy"; tokens = "many"',
        'worker.SandboxLatentWorker("w", "text")',
        'steps.Git(repourl="ssh://git@forge.example:22/p.git")',
        'util.Interpolate("https://ada:%(secret:token)s@forge.example/p.git")',
        'c["title"] = "tokens and passwords"',
    ],
)
def test_what_only_names_a_secret_is_none(line: str) -> None:
    assert list(_literals(ast.parse(line))) == []


# ---- the command ---------------------------------------------------------------------------------

BAD = ROOT / "tests/configs/open_workers.cfg"


def test_the_report_has_reason_and_cure_and_no_secret() -> None:
    result = run(str(ROOT / "tests/configs/stock_docker.cfg"), code=1)
    assert "container-opened: worker 'docker'" in result.stdout
    assert "Cure: Take it out of hostconfig" in result.stdout
    assert "8d1f0e4b2a" not in result.output


@pytest.mark.parametrize(("level", "code"), [("low", 1), ("critical", 1), ("never", 0)])
def test_the_exit_code_tells_whether_something_severe_was_found(level: str, code: int) -> None:
    run("--fail-on", level, str(BAD), code=code)


def test_what_is_less_severe_does_not_fail() -> None:
    ignored = [f"--ignore={name}" for name in RULES if RULES[name].severity > 2]
    run("--fail-on=high", *ignored, str(BAD), code=0)
    run("--fail-on=medium", *ignored, str(BAD), code=1)


def test_a_masters_directory_stands_for_its_file(tmp_path: Path) -> None:
    shutil.copy(BAD, tmp_path / "master.cfg")
    (tmp_path / "buildbot.tac").write_text("configfile = 'master.cfg'\n")
    assert rules_found(tmp_path) == planted(BAD)


def test_what_the_file_prints_is_not_in_the_json(tmp_path: Path) -> None:
    good = (ROOT / "tests/configs/good_service.cfg").read_text()
    (tmp_path / "master.cfg").write_text(f"print('hello')\n{good}")
    assert json.loads(run("--json", str(tmp_path / "master.cfg")).stdout)["findings"] == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("raise RuntimeError('oops')", "oops"),
        ("this is no Python", "SyntaxError"),
        ("raise SystemExit(3)", "ended the program: 3"),
        ("c = {}", "does not define 'BuildmasterConfig'"),
        ("BuildmasterConfig = {'workers': 3}", "workers"),
    ],
)
def test_what_buildbot_refuses_is_told_in_one_message(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "master.cfg"
    file.write_text(text)
    result = run(str(file), code=125)
    assert told in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["/nowhere/master.cfg"],
        ["--explain", "nothing"],
        ["--ignore", "nothing", str(BAD)],
        ["--fail-on", "sometimes", str(BAD)],
        ["--no-such-option"],
    ],
)
def test_wrong_use_ends_with_125(arguments: list[str]) -> None:
    assert "rror" in run(*arguments, code=125).stderr


def test_each_rule_is_listed_and_explained() -> None:
    listed = run("--list").stdout
    assert [rule["rule"] for rule in json.loads(run("--list", "--json").stdout)]
    for name, rule in RULES.items():
        assert name in listed
        text = run("--explain", name).stdout
        assert rule.why in text
        assert rule.cure in text


def test_the_document_has_each_rule() -> None:
    document = ROOT / "docs" / "check.md"
    if document.is_file():
        rows = re.findall(r"^\| `([\w-]+)` \| (\w+) \| (.*) \|$", document.read_text(), re.M)
        assert rows == [(rule.id, rule.severity.word, rule.what) for rule in RULES.values()]
