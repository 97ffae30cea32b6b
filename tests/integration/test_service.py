"""``examples/service`` as a master in a process of its own: webhooks, trust, roles, TLS.

The forge is a git repository on this machine, and a server that answers as GitHub's API does.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.cookiejar
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPCookieProcessor, HTTPSHandler, Request, build_opener, urlopen

import attrs
import pytest
from click.testing import CliRunner
from json_server import JsonHandler, serving
from password_store import password_store
from real_master import containers_of

from sandboxworker.auditfile import reading
from sandboxworker.cli import main
from sandboxworker.identity import read_id

SERVICE = Path(__file__).resolve().parents[2] / "examples" / "service"
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not SERVICE.is_dir(), reason="the examples are not part of a wheel"),
]

BUILDBOT = [sys.executable, "-c", "from buildbot.scripts.runner import run; run()"]
GITHUB, GITEA, TOKEN = "github-5d0a7c41be", "gitea-91c2f4ab06", "token-e07d55c1a9"
PASSWORDS = {"ada": "correct-horse-1", "grace": "battery-staple-2"}
MAKEFILE = """\
all:
\t@echo building as $$(id -u)
check:
\t@ls /run/secrets; ! test -e /run/secrets/upload-token
"""
UPLOAD = '#!/bin/sh\ntest -s "$1" && echo uploaded with $(wc -c <"$1") characters: $(cat "$1")\n'


# ---- the forge -----------------------------------------------------------------------------------


class _GitHubApi(JsonHandler):
    """What Buildbot's webhook asks about a pull request."""

    def do_GET(self) -> None:
        if "/commits/" in self.path:
            self.answer(200, {"commit": {"message": "a change"}})
        else:
            self.answer(200, [{"filename": "Makefile"}])


@attrs.frozen
class Forge:
    """A repository with a main branch and a pull request."""

    url: str
    main: str
    pull: str


def forge(directory: Path) -> Forge:
    work = directory / "project"
    work.mkdir()
    (work / "Makefile").write_text(MAKEFILE)
    (work / "upload").write_text(UPLOAD)
    (work / "upload").chmod(0o755)
    main = _commit(work, "init", "--quiet", "--initial-branch=main")
    (work / "Makefile").write_text(MAKEFILE.replace("building", "a stranger builds"))
    pull = _commit(work, "checkout", "--quiet", "-b", "change")
    for ref in ("refs/pull/7/head", "refs/pull/8/head"):
        _git(work, "update-ref", ref, pull)
    _git(work, "checkout", "--quiet", "main")
    return Forge(f"file://{work}/.git", main, pull)


def _commit(work: Path, *before: str) -> str:
    _git(work, *before)
    _git(work, "add", ".")
    _git(work, "-c", "user.name=a", "-c", "user.email=a@test.invalid", "commit", "-qm", "change")
    return _git(work, "rev-parse", "HEAD")


def _git(work: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=work, check=True, capture_output=True, text=True, timeout=60
    ).stdout.strip()


# ---- the service ---------------------------------------------------------------------------------


class Service:
    """The running master, asked over HTTPS."""

    def __init__(self, basedir: Path, port: int, metrics: int, forge: Forge) -> None:
        self.basedir = basedir
        self.url = f"https://127.0.0.1:{port}"
        self.metrics = f"http://127.0.0.1:{metrics}/metrics"
        self.forge = forge
        self._context = ssl.create_default_context(cafile=str(basedir / "tls" / "cert.pem"))

    @property
    def log(self) -> str:
        return (self.basedir / "twistd.log").read_text()

    @property
    def audit(self) -> list[dict[str, Any]]:
        return list(reading(self.basedir / "audit.jsonl"))

    def browser(self) -> Any:
        """Keeps cookies, as a person's does."""
        jar = HTTPCookieProcessor(http.cookiejar.CookieJar())
        return build_opener(HTTPSHandler(context=self._context), jar)

    def get(self, path: str) -> Any:
        with self.browser().open(f"{self.url}/api/v2/{path}", timeout=30) as answer:
            return json.load(answer)

    def builds(self, builder: str) -> list[Any]:
        found = self.get(
            f"builders/{builder}/builds?property=workername&property=branch&order=buildid"
        )
        builds: list[Any] = found["builds"]
        return builds

    def finished(self, builder: str, count: int) -> Any:
        """The newest build of a builder when it has had that many, all complete."""

        def is_over() -> bool:
            builds = self.builds(builder)
            return len(builds) == count and all(build["complete"] for build in builds)

        wait(is_over, f"build {count} of {builder}", lambda: self.log[-3000:])
        return self.builds(builder)[-1]

    def logs(self, build: Any) -> str:
        steps = self.get(f"builds/{build['buildid']}/steps")["steps"]
        logs = [each for step in steps for each in self.get(f"steps/{step['stepid']}/logs")["logs"]]
        return "".join(
            self.get(f"logs/{log['logid']}/contents")["logchunks"][0]["content"] for log in logs
        )

    def hook(self, dialect: str, payload: Any, **headers: str) -> int:
        """Call a webhook; the status of the answer."""
        request = Request(f"{self.url}/change_hook/{dialect}", data=_body(payload))
        request.add_header("Content-Type", "application/json")
        for name, value in headers.items():
            request.add_header(name.replace("_", "-"), value)
        return _status(lambda: self.browser().open(request, timeout=60))

    def force(self, name: str | None, password: str | None = None) -> int:
        """Push the button, as somebody who has logged in, or as nobody."""
        browser = self.browser()
        if name is not None:
            login = Request(f"{self.url}/auth/login")
            said = base64.b64encode(f"{name}:{password or PASSWORDS[name]}".encode()).decode()
            login.add_header("Authorization", f"Basic {said}")
            with contextlib.suppress(HTTPError):  # It sends back to the address for people.
                browser.open(login, timeout=30).close()
        call = {"id": 1, "jsonrpc": "2.0", "method": "force", "params": {"branch": "evil"}}
        request = Request(f"{self.url}/api/v2/forceschedulers/release-now", data=_body(call))
        request.add_header("Content-Type", "application/json")
        return _status(lambda: browser.open(request, timeout=30))


def _body(payload: Any) -> bytes:
    return json.dumps(payload).encode()


def _status(call: Callable[[], Any]) -> int:
    try:
        with call() as answer:
            return int(answer.status)
    except HTTPError as error:
        error.close()
        return error.code


def wait(condition: Callable[[], bool], what: str, more: Callable[[], str] = str) -> None:
    give_up = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < give_up, f"waited in vain for {what}\n{more()}"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def service(engine_client: Any, left_over: Any, tmp_path_factory: Any) -> Iterator[Service]:
    directory = tmp_path_factory.mktemp("service")
    basedir = directory / "master"
    made = forge(directory)
    port, metrics = _free_port(), _free_port()
    with (
        serving(_GitHubApi) as api,
        password_store({"ci/upload-token": f"{TOKEN}\n"}),
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in {
            "URL": f"https://127.0.0.1:{port}/",
            "REPOSITORY": made.url,
            "GITHUB_API": api,
            "INTERFACE": "127.0.0.1",
            "PORT": str(port),
            "METRICS_PORT": str(metrics),
        }.items():
            patch.setenv(f"SERVICE_{name}", value)
        _buildbot("create-master", "--quiet", str(basedir))
        _furnish(basedir)
        assert "good" in _buildbot("checkconfig", str(basedir))
        try:
            _buildbot("start", str(basedir))
            yield Service(basedir, port, metrics, made)
        finally:
            _stop(basedir)
            left_over.masters.add(read_id(basedir))
    assert containers_of(engine_client, read_id(basedir)) == []


def _furnish(basedir: Path) -> None:
    """As the example's README says."""
    for file in SERVICE.glob("*.py"):
        shutil.copy(file, basedir)
    shutil.copy(SERVICE / "master.cfg", basedir)
    for folder in ("secrets", "tls"):
        (basedir / folder).mkdir(mode=0o700)
    for name, value in (("github-webhook", GITHUB), ("gitea-webhook", GITEA)):
        (basedir / "secrets" / name).write_text(value)
        (basedir / "secrets" / name).chmod(0o600)
    (basedir / "accounts").write_text("".join(map(_account, PASSWORDS.items())))
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", basedir / "tls" / "key.pem", "-out", basedir / "tls" / "cert.pem"],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip


def _account(entry: tuple[str, str]) -> str:
    code = "import sys; from accounts import line; print(line(*sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", code, *entry],
        cwd=SERVICE,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout


def _buildbot(*arguments: str) -> str:
    done = subprocess.run(
        [*BUILDBOT, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, (arguments, done.stdout + done.stderr)
    return done.stdout


def _stop(basedir: Path) -> None:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        pid = int((basedir / "twistd.pid").read_text())
        os.kill(pid, signal.SIGTERM)
        wait(lambda: not Path(f"/proc/{pid}").exists(), "the end of the master")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    return port


# ---- what the forges say -------------------------------------------------------------------------


def github_pull(made: Forge, number: int = 7) -> Any:
    repository = {"full_name": "acme/project", "html_url": "https://github.com/acme/project"}
    return {
        "action": "opened",
        "number": number,
        "repository": repository,
        "sender": {"login": "stranger"},
        "pull_request": {
            "base": {"ref": "main", "repo": repository},
            "head": {"sha": made.pull},
            "commits": 1,
            "title": "A change",
            "body": "",
            "created_at": "2026-01-01T00:00:00Z",
            "_links": {"html": {"href": "https://github.com/acme/project/pull/7"}},
        },
    }


def gitea_pull(made: Forge) -> Any:
    return {
        "action": "opened",
        "number": 8,
        "repository": {"full_name": "acme/project"},
        "pull_request": {
            "base": {"ref": "main", "repo": {"clone_url": "https://forge.example.org/p.git"}},
            "head": {"sha": made.pull},
            "title": "A change",
            "html_url": "https://forge.example.org/acme/project/pulls/8",
            "user": {"login": "stranger"},
        },
    }


def gitea_push(made: Forge) -> Any:
    return {
        "ref": "refs/heads/main",
        "after": made.main,
        "commits": [{"message": "a change", "url": "https://forge.example.org/c"}],
        "pusher": {"login": "ada"},
        "repository": {"full_name": "acme/project", "clone_url": "https://forge.example.org/p.git"},
    }


def signed(dialect: str, payload: Any, secret: str) -> dict[str, str]:
    """The headers of a call by a forge that knows this secret."""
    kind = "push" if "after" in payload else "pull_request"
    if dialect == "github":
        digest = hmac.new(secret.encode(), _body(payload), hashlib.sha1).hexdigest()
        return {"X_GitHub_Event": kind, "X_Hub_Signature": f"sha1={digest}"}
    digest = hmac.new(secret.encode(), _body(payload), hashlib.sha256).hexdigest()
    return {"X_Gitea_Event": kind, "X_Gitea_Signature": digest}


PULLS = {"github": github_pull, "gitea": gitea_pull}


# ---- the tests, in the order of a service's life -------------------------------------------------


@pytest.mark.parametrize("dialect", ["github", "gitea"])
@pytest.mark.parametrize("forgery", ["unsigned", "other secret", "other content"])
def test_a_forged_call_is_refused(service: Service, dialect: str, forgery: str) -> None:
    payload = PULLS[dialect](service.forge)
    headers = signed(dialect, payload, GITHUB if dialect == "github" else GITEA)
    if forgery == "unsigned":
        headers = {name: value for name, value in headers.items() if "Signature" not in name}
    elif forgery == "other secret":
        headers = signed(dialect, payload, "a-guess-at-the-secret")
    else:
        payload["number"] = 9
    assert service.hook(dialect, payload, **headers) == 400
    assert service.get("changes")["changes"] == []


def test_a_dialect_that_is_not_configured_is_refused(service: Service) -> None:
    assert service.hook("base", {"branch": "main"}) == 400
    assert service.get("changes")["changes"] == []


@pytest.mark.parametrize(
    ("dialect", "secret", "number"), [("github", GITHUB, 1), ("gitea", GITEA, 2)]
)
def test_a_pull_request_is_built_in_an_untrusted_sandbox(
    service: Service, dialect: str, secret: str, number: int
) -> None:
    payload = PULLS[dialect](service.forge)
    assert service.hook(dialect, payload, **signed(dialect, payload, secret)) in (200, 202)
    build = service.finished("pull-request", number)
    assert build["results"] == 0, service.logs(build)
    assert build["properties"]["workername"][0].startswith("pr-")
    assert "a stranger builds as" in service.logs(build)
    assert service.builds("release") == []


def test_the_main_branch_is_built_with_the_token_which_no_log_has(service: Service) -> None:
    payload = gitea_push(service.forge)
    assert service.hook("gitea", payload, **signed("gitea", payload, GITEA)) in (200, 202)
    build = service.finished("release", 1)
    log = service.logs(build)
    assert build["results"] == 0, log
    assert build["properties"]["workername"][0] == "main-1"
    assert f"uploaded with {len(TOKEN)} characters: <ci/upload-token>" in log
    assert TOKEN not in log
    assert TOKEN not in service.log


def test_who_may_push_the_button_is_told_by_roles(service: Service) -> None:
    assert service.force(None) == 403
    assert service.force("grace", "a-wrong-password") == 403
    assert len(service.builds("release")) == 1
    assert service.force("grace") == 200
    build = service.finished("release", 2)
    assert build["results"] == 0
    assert build["properties"]["branch"][0] == "main"  # Whatever was asked for: it is fixed.


def test_the_check_finds_nothing(service: Service) -> None:
    result = CliRunner().invoke(main, ["check", str(service.basedir)])
    assert result.exit_code == 0, result.output


def test_audit_and_metrics_tell_of_it(service: Service) -> None:
    released = [entry for entry in service.audit if entry["event"] == "secret.released"]
    assert {(entry["secret"], entry["worker"]) for entry in released} == {
        ("ci/upload-token", "main-1")
    }
    with urlopen(service.metrics, timeout=30) as answer:
        text = answer.read().decode()
    assert 'sandboxworker_builds_total{outcome="completed",worker="main-1"} 2.0' in text
    assert 'sandboxworker_secrets_total{decision="released",worker="main-1"} 2.0' in text


def test_nothing_went_wrong_on_the_way(service: Service) -> None:
    assert "Traceback" not in service.log, service.log
    assert (service.basedir / "audit.jsonl").stat().st_mode & 0o777 == 0o600
