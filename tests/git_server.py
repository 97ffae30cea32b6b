"""Real git repositories, and real servers of them on this machine's loopback.

`Repository` writes commits with ``git fast-import``: authors and dates are fixed, so the same calls
give the same ids.  `HttpServer`, `DaemonServer` and `SshServer` are context managers; each has
threads and processes of its own and needs no reactor, and none of them waits for a port, since
Python holds the listening socket and hands each connection to git or sshd.

    with HttpServer(tmp_path) as server:
        repository = Repository(tmp_path / "project.git")
        repository.commit({"README": "hello\\n"})
        subprocess.run(["git", "clone", server.url(repository), …])
"""

from __future__ import annotations

import base64
import contextlib
import getpass
import gzip
import io
import os
import random
import shutil
import socketserver
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

import attrs

LOOPBACK = "127.0.0.1"
MIB = 1024 * 1024
_EPOCH = 1_700_000_000
_WHO = "Test Author <author@example.invalid>"
#: No held request, git or sshd outlives this many seconds.
_DEADLINE = 120


def environment(**more: str) -> dict[str, str]:
    """For git with no settings but the repository's own; it asks nobody for a password."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": "/nonexistent",
        "LC_ALL": "C.UTF-8",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        **more,
    }


def run_git(*arguments: str | Path, **more: str) -> str:
    """What a git command says, which must succeed; ``more`` goes into its environment."""
    done = subprocess.run(
        ["git", *arguments],
        env=environment(**more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_DEADLINE,
        check=False,
    )
    assert done.returncode == 0, (arguments, done.stdout + done.stderr)
    return done.stdout.strip()


# ---- repositories --------------------------------------------------------------------------------


@attrs.frozen
class Link:
    """A symbolic link among a commit's files."""

    to: str


@attrs.frozen
class Program:
    """An executable among a commit's files."""

    content: str | bytes


@attrs.frozen
class Submodule:
    """A submodule among a commit's files; ``url`` may be relative (``../other.git``)."""

    url: str
    commit: str
    name: str | None = None
    branch: str | None = None


Content = str | bytes | Link | Program | Submodule | None


class Repository:
    """A bare repository, made when it is not there yet; ``main`` is its branch."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._clock = _EPOCH
        if not path.exists():
            run_git("init", "--quiet", "--bare", "--initial-branch=main", path)
            # What people's servers allow; and no time is lost on what does not compress.
            for key, value in (
                ("uploadpack.allowFilter", "true"),
                ("core.compression", "0"),
                ("pack.window", "0"),
                ("gc.auto", "0"),
            ):
                self.git("config", key, value)

    def git(self, *arguments: str | Path) -> str:
        """What a git command in this repository says."""
        return run_git("-C", self.path, *arguments)

    def commit(
        self,
        files: Mapping[str, Content],
        *,
        on: str = "main",
        after: str | None = None,
        merging: str | None = None,
        message: str = "change",
    ) -> str:
        """Add a commit that changes these files (``None`` deletes one): its id.

        ``on``: a branch, or a full ref such as ``refs/pull/7/head``;
        ``after``: the parent, the ref's own commit by default and no parent where there is none:
        any other commit makes it what a forced push leaves; ``merging``: a second parent.
        """
        ref = on if on.startswith("refs/") else f"refs/heads/{on}"
        parent = after or self.find(ref)
        self._clock += 60
        head = [f"commit {ref}", f"committer {_WHO} {self._clock} +0000", *_data_lines(message)]
        if parent:
            head.append(f"from {parent}")
        if merging:
            head.append(f"merge {merging}")
        stream = io.BytesIO()
        stream.write("".join(f"{line}\n" for line in head).encode())
        for path, content in {**files, **self._modules(parent, files)}.items():
            stream.write(_file_command(path, content))
        self._import(stream.getvalue())
        return self.id(ref)

    def find(self, name: str) -> str | None:
        """The id of a commit, tag or ref; ``None`` if there is none of that name."""
        done = subprocess.run(
            ["git", "-C", self.path, "rev-parse", "--verify", "--quiet", name],
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout.strip() or None

    def id(self, name: str = "main") -> str:
        """The id of a commit, tag or ref, which is there."""
        found = self.find(name)
        assert found, f"no {name} in {self.path}"
        return found

    def ref(self, name: str, to: str = "main") -> None:
        """Let a full ref name a commit, whatever it named before: a new branch, a forced push."""
        self.git("update-ref", name, self.id(to))

    def branch(self, name: str, to: str = "main") -> None:
        """Make a branch, or move it."""
        self.ref(f"refs/heads/{name}", to)

    def tag(self, name: str, to: str = "main") -> None:
        """Make a plain tag, or move it."""
        self.ref(f"refs/tags/{name}", to)

    def annotated_tag(self, name: str, to: str = "main", message: str = "a tag") -> None:
        """Make an annotated tag, as `git describe` prefers them."""
        self._clock += 60
        lines = [f"tag {name}", f"from {self.id(to)}", f"tagger {_WHO} {self._clock} +0000"]
        self._import("".join(f"{line}\n" for line in [*lines, *_data_lines(message)]).encode())

    def delete(self, ref: str) -> None:
        """Delete a full ref."""
        self.git("update-ref", "-d", ref)

    def pull_request(self, number: int, files: Mapping[str, Content], base: str = "main") -> str:
        """What a hosting service makes of a pull request: the id of ``refs/pull/N/head``.

        ``refs/pull/N/merge`` is the same files, merged into ``base``.
        """
        head, merge = (f"refs/pull/{number}/{end}" for end in ("head", "merge"))
        tip = self.commit(files, on=head, after=self.find(head) or self.id(base))
        message = f"Merge {number} into {base}"
        self.commit(files, on=merge, after=self.id(base), merging=tip, message=message)
        return tip

    def merge_request(self, number: int, files: Mapping[str, Content], base: str = "main") -> str:
        """As `pull_request`, as other services do it: the id of ``refs/merge-requests/N/head``."""
        ref = f"refs/merge-requests/{number}/head"
        return self.commit(files, on=ref, after=self.find(ref) or self.id(base))

    def grow(self, mib: int, on: str = "main", seed: int = 1) -> str:
        """A commit that adds so many MiB that no compression makes smaller, 1 MiB a file."""
        chance = random.Random(seed)
        names = [f"data/{seed}/{number:04}" for number in range(mib)]
        for first in range(0, mib, 64):  # A large repository is not held in memory at once.
            self.commit({name: chance.randbytes(MIB) for name in names[first : first + 64]}, on=on)
        return self.id(on)

    def _modules(self, parent: str | None, files: Mapping[str, Content]) -> dict[str, Content]:
        """The ``.gitmodules`` that these submodules need, with those of the parent before them."""
        lines = []
        for path, content in files.items():
            if isinstance(content, Submodule):
                lines.append(f'[submodule "{content.name or path}"]\n\tpath = {path}')
                lines.append(f"\turl = {content.url}")
                if content.branch:
                    lines.append(f"\tbranch = {content.branch}")
        if not lines or ".gitmodules" in files:
            return {}
        has_some = parent and self.find(f"{parent}:.gitmodules")
        before = self.git("show", f"{parent}:.gitmodules") + "\n" if has_some else ""
        return {".gitmodules": before + "\n".join(lines) + "\n"}

    def _import(self, stream: bytes) -> None:
        done = subprocess.run(
            ["git", "-C", self.path, "fast-import", "--quiet", "--force", "--depth=0"],
            env=environment(),
            input=stream,
            capture_output=True,
            timeout=_DEADLINE,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()


def _data_lines(text: str) -> list[str]:
    return [f"data {len(text.encode())}", text]


def _file_command(path: str, content: Content) -> bytes:
    name = '"' + path.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    if content is None:
        return f"D {name}\n".encode()
    if isinstance(content, Submodule):
        return f"M 160000 {content.commit} {name}\n".encode()
    mode, body = _mode_and_body(content)
    return f"M {mode} inline {name}\ndata {len(body)}\n".encode() + body + b"\n"


def _mode_and_body(content: str | bytes | Link | Program) -> tuple[str, bytes]:
    if isinstance(content, Link):
        return "120000", content.to.encode()
    if isinstance(content, Program):
        return "100755", _bytes(content.content)
    return "100644", _bytes(content)


def _bytes(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else content


# ---- over HTTP -----------------------------------------------------------------------------------


@attrs.define
class Request:
    """One request that an `HttpServer` had; ``sent``: bytes of the answer's body."""

    method: str
    path: str
    query: str
    user: str | None = None
    fetches: bool = False
    status: int = 0
    sent: int = 0


class HttpServer:
    """Smart HTTP through git's own ``git http-backend``, for all repositories below a folder.

    ``login``: a user and a password, without which every request is answered with 401;
    ``requests``: what was asked, in order; ``redirects``: paths (their beginnings) that are
    answered with 302 to another URL.
    """

    def __init__(self, root: Path, login: tuple[str, str] | None = None) -> None:
        self.root = root
        self.login = login
        self.requests: list[Request] = []
        self.redirects: dict[str, str] = {}
        self._failing: list[int] = []
        self._open = threading.Event()
        self._open.set()
        handler = type("Handler", (_HttpHandler,), {"git": self})
        self._server = ThreadingHTTPServer((LOOPBACK, 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="git over http")

    def __enter__(self) -> HttpServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def url(self, repository: Repository, login: str = "") -> str:
        """Where it is served; ``login``: what is to stand before the host, as ``user:word``."""
        where = f"{login}@{LOOPBACK}" if login else LOOPBACK
        return f"http://{where}:{self.port}/{repository.path.relative_to(self.root)}"

    @property
    def bytes_fetched(self) -> int:
        """The bytes of all answers to fetches so far: packs and little else."""
        return sum(request.sent for request in self.requests if request.fetches)

    @property
    def fetches(self) -> int:
        """How many requests for objects there were."""
        return sum(request.fetches for request in self.requests)

    def fail(self, times: int = 1, status: int = 503) -> None:
        """Answer the next so many requests with an error."""
        self._failing += [status] * times

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Let every request wait until the block ends, as a server does that hangs."""
        self._open.clear()
        try:
            yield
        finally:
            self._open.set()

    # for the handler

    def wait_until_open(self) -> None:
        self._open.wait(_DEADLINE)

    def next_failure(self) -> int | None:
        return self._failing.pop(0) if self._failing else None

    def allows(self, request: Request, word: str | None) -> bool:
        return self.login is None or (request.user, word) == self.login


class _HttpHandler(BaseHTTPRequestHandler):
    """The bridge between one request and ``git http-backend``."""

    git: HttpServer

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        """Into `HttpServer.requests` rather than the test's output."""

    def _answer(self) -> None:
        url = urlsplit(self.path)
        request = Request(self.command, unquote(url.path), url.query)
        request.user, word = self._login()
        self.git.requests.append(request)
        with tempfile.TemporaryFile() as body:
            self._read_body(body, request)
            self.git.wait_until_open()
            with contextlib.suppress(ConnectionError):  # The client may leave at any time.
                self._answer_with(request, word, body)

    def _answer_with(self, request: Request, word: str | None, body: IO[bytes]) -> None:
        if (status := self.git.next_failure()) is not None:
            self._short(request, status)
        elif (target := self._redirect(request)) is not None:
            self._short(request, 302, Location=target)
        elif not self.git.allows(request, word):
            self._short(request, 401, **{"WWW-Authenticate": 'Basic realm="git"'})
        else:
            self._run_backend(request, body)

    def _login(self) -> tuple[str | None, str | None]:
        kind, _, value = (self.headers["Authorization"] or "").partition(" ")
        if kind != "Basic":
            return None, None
        user, _, word = base64.b64decode(value).decode().partition(":")
        return user, word

    def _redirect(self, request: Request) -> str | None:
        for start, target in self.git.redirects.items():
            if request.path.startswith(start):
                query = f"?{request.query}" if request.query else ""
                return target + request.path[len(start) :] + query
        return None

    def _read_body(self, body: IO[bytes], request: Request) -> None:
        if self.headers["Transfer-Encoding"] == "chunked":
            while size := int(self.rfile.readline(), 16):
                body.write(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
        else:
            body.write(self.rfile.read(int(self.headers["Content-Length"] or 0)))
        body.seek(0)
        if request.path.endswith("/git-upload-pack"):
            request.fetches = self._is_fetch(body.read())
            body.seek(0)

    def _is_fetch(self, body: bytes) -> bool:
        """Protocol 2 lists refs by the same address; older ones have it for objects alone."""
        if self.headers["Content-Encoding"] == "gzip":
            body = gzip.decompress(body)
        return b"command=ls-refs" not in body

    def _short(self, request: Request, status: int, **headers: str) -> None:
        request.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _run_backend(self, request: Request, body: IO[bytes]) -> None:
        variables = {
            "GIT_PROJECT_ROOT": str(self.git.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": request.method,
            "PATH_INFO": request.path,
            "QUERY_STRING": request.query,
            "REMOTE_ADDR": LOOPBACK,
            "CONTENT_TYPE": self.headers["Content-Type"] or "",
            "CONTENT_LENGTH": str(os.fstat(body.fileno()).st_size),
            "HTTP_CONTENT_ENCODING": self.headers["Content-Encoding"] or "",
            "GIT_PROTOCOL": self.headers["Git-Protocol"] or "",
        }
        if request.user:
            variables["REMOTE_USER"] = request.user
        command = ["git", "http-backend"]
        with subprocess.Popen(
            command, env=environment(**variables), stdin=body, stdout=subprocess.PIPE
        ) as backend:
            assert backend.stdout
            try:
                self._forward(request, backend.stdout)
            finally:
                backend.kill()  # It has ended, unless the client has left.

    def _forward(self, request: Request, answer: IO[bytes]) -> None:
        headers = {}
        while line := answer.readline().strip():
            name, _, value = line.decode().partition(":")
            headers[name] = value.strip()
        request.status = int(headers.pop("Status", "200").split()[0])
        self.send_response(request.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        while block := answer.read(65536):
            self.wfile.write(block)
            request.sent += len(block)


# ---- by a program for each connection ------------------------------------------------------------


class _ProgramServer:
    """Listens, and gives each connection to a program of its own as stdin and stdout.

    ``connections``: how many there were; ``log``: what the programs said on stderr.
    """

    def __init__(self, command: list[str | Path], log: Path) -> None:
        self.command = command
        self.connections = 0
        self._log = log
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        handler = type("Handler", (_ProgramHandler,), {"server_of_programs": self})
        self._server = socketserver.ThreadingTCPServer((LOOPBACK, 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="git by program")

    def __enter__(self) -> Any:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        with self._lock:
            for program in self._running:
                program.kill()
        self._server.server_close()
        self._thread.join()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def serve(self, connection: Any) -> None:
        """For the handler: one connection, to its end."""
        with self._log.open("ab") as log:
            program = subprocess.Popen(
                self.command, env=environment(), stdin=connection, stdout=connection, stderr=log
            )
        with self._lock:
            self.connections += 1
            self._running.add(program)
        try:
            program.wait(_DEADLINE)
        finally:
            program.kill()
            program.wait()
            with self._lock:
                self._running.discard(program)


class _ProgramHandler(socketserver.BaseRequestHandler):
    server_of_programs: _ProgramServer

    def handle(self) -> None:
        self.server_of_programs.serve(self.request)


class DaemonServer(_ProgramServer):
    """``git daemon`` (``git://…``) for all repositories below a folder; ``folder``: for its log."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root = root
        daemon = ["git", "daemon", "--inetd", "--export-all", "--log-destination=stderr"]
        super().__init__([*daemon, f"--base-path={root}", root], folder / "git-daemon.log")

    def url(self, repository: Repository) -> str:
        return f"git://{LOOPBACK}:{self.port}/{repository.path.relative_to(self.root)}"


class SshServer(_ProgramServer):
    """OpenSSH's own server, which lets one key in, for git alone.

    ``folder``: for its keys, settings and log;
    ``private_key``: the text of the key that it lets in, ``public_key``: its other half;
    ``host_key``: how the server can be known, as ``ssh-ed25519 AAAA…``;
    ``known_hosts``: the same as a line of that file.
    """

    def __init__(self, folder: Path) -> None:
        program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        assert program, "sshd is not installed: run 'scripts/setup tests'"
        self.user = getpass.getuser()
        self.private_key, self.public_key = _new_key(folder / "user_key")
        _, self.host_key = _new_key(folder / "host_key")
        settings = folder / "sshd_config"
        settings.write_text(self._settings(folder))
        if os.geteuid() == 0:  # sshd insists on it; its package's service makes it otherwise.
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        super().__init__([program, "-i", "-e", "-f", settings], folder / "sshd.log")

    def _settings(self, folder: Path) -> str:
        (folder / "authorized_keys").write_text(self.public_key + "\n")
        # A server without PAM lets nobody in whose password is locked, as root's often is.
        return f"""\
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
StrictModes no
UsePAM {"yes" if _password_is_locked(self.user) else "no"}
PidFile none
AcceptEnv GIT_PROTOCOL
DisableForwarding yes
ForceCommand exec git shell -c "$SSH_ORIGINAL_COMMAND"
"""

    @property
    def known_hosts(self) -> str:
        return f"[{LOOPBACK}]:{self.port} {self.host_key}"

    def url(self, repository: Repository) -> str:
        return f"ssh://{self.user}@{LOOPBACK}:{self.port}{repository.path.resolve()}"


def _new_key(path: Path) -> tuple[str, str]:
    """The texts of a new key's private and public half; the private one stays in the file."""
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", path]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=_DEADLINE)
    return path.read_text(), path.with_suffix(".pub").read_text().strip()


def _password_is_locked(user: str) -> bool:
    try:
        lines = Path("/etc/shadow").read_text().splitlines()
    except OSError:
        return False
    return any(line.startswith(f"{user}:!") for line in lines)
