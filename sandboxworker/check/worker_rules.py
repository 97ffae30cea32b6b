"""What workers and the ports for them open."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
from buildbot.changes.pb import PBChangeSource
from buildbot.schedulers.trysched import Try_Userpass

from sandboxworker.check.addresses import is_loopback, listening
from sandboxworker.check.configuration import Configuration, arguments, kind
from sandboxworker.check.passwords import weakness
from sandboxworker.check.rule import Found, Severity, rule

_DOCKER_HOST_PLAIN = ("tcp://", "http://")


@attrs.frozen
class Account:
    """Somebody who may log into a port of the master, with a password that the file shows."""

    where: str
    user: str
    password: str


def accounts(configuration: Configuration) -> Iterator[Account]:
    """Every account whose password is plain text once the configuration is loaded."""
    for where, user, password in _logins(configuration):
        if isinstance(password, bytes):
            password = password.decode(errors="replace")
        if isinstance(password, str):
            yield Account(where, str(user), password)


def _logins(configuration: Configuration) -> Iterator[tuple[str, Any, Any]]:
    for worker in _connecting(configuration):
        yield f"worker {worker.workername!r}", worker.workername, worker.password
    for user, password in _web_users(configuration.www.get("auth")):
        yield f"web user {user!r}", user, password
    for scheduler in _try_schedulers(configuration):
        for user, password in arguments(scheduler).get("userpass", ()):
            yield f"try user {user!r} of {scheduler.name!r}", user, password
    for source in _pb_sources(configuration):
        yield f"PBChangeSource user {source.user!r}", source.user, source.passwd


def _connecting(configuration: Configuration) -> list[Any]:
    """Workers that log in."""
    return [each for each in configuration.open_workers if kind(each) != "LocalWorker"]


def _try_schedulers(configuration: Configuration) -> list[Any]:
    schedulers = configuration.master.schedulers.values()
    return [each for each in schedulers if isinstance(each, Try_Userpass)]


def _pb_sources(configuration: Configuration) -> list[Any]:
    sources = configuration.master.change_sources
    return [each for each in sources if isinstance(each, PBChangeSource)]


def _web_users(auth: Any) -> Iterator[tuple[str, Any]]:
    for checker in getattr(auth, "checkers", ()):
        users = getattr(checker, "users", {})
        for user, password in users.items() if isinstance(users, Mapping) else ():
            yield (user.decode() if isinstance(user, bytes) else str(user)), password


@rule(
    "password-weak",
    Severity.HIGH,
    what="a password of a worker, web user, try user or change source is easily guessed",
    why=(
        "Whoever logs in as a worker is given the next build with its secrets, and may say that "
        "it succeeded; a web or try user starts builds"
    ),
    cure="Use a random one, for instance of 'openssl rand -hex 16', from a file of its own",
)
def _weak(configuration: Configuration) -> Iterator[Found]:
    for account in accounts(configuration):
        reason = weakness(account.password, account.user)
        if reason is not None:
            yield Found(account.where, f"its password {reason}")


@rule(
    "password-repeated",
    Severity.MEDIUM,
    what="two accounts have the same password",
    why="Who has one machine, or one person's password, has the other as well",
    cure="Give each its own",
)
def _repeated(configuration: Configuration) -> Iterator[Found]:
    places: defaultdict[str, list[str]] = defaultdict(list)
    for account in accounts(configuration):
        places[account.password].append(account.where)
    for same in places.values():
        if len(same) > 1:
            yield Found(same[0], f"has the password of {', '.join(same[1:])}")


@rule(
    "worker-port-open",
    Severity.HIGH,
    what="a port for workers or try users is open beyond loopback without TLS",
    why="Passwords, sources and secrets go over the network as they are",
    cure=(
        "Listen with ssl:PORT:privateKey=…:certKey=…, or on loopback behind a tunnel "
        "(tcp:PORT:interface=127.0.0.1); a master of SandboxLatentWorkers needs no port at all"
    ),
)
def _port_open(configuration: Configuration) -> Iterator[Found]:
    for name, port in _ports(configuration):
        opened = listening(port)
        if opened is not None and opened.is_exposed:
            yield Found(name, f"{opened.text} listens for other machines, without TLS")


def _ports(configuration: Configuration) -> Iterator[tuple[str, Any]]:
    for name, options in configuration.master.protocols.items():
        if isinstance(options, Mapping):
            yield f"c['protocols'][{name!r}]", options.get("port")
    for scheduler in _try_schedulers(configuration):
        yield f"scheduler {scheduler.name!r}", arguments(scheduler).get("port")
    for source in _pb_sources(configuration):
        yield "PBChangeSource", source.port


@rule(
    "worker-port-needless",
    Severity.LOW,
    what="a port for workers is open, and no worker connects",
    why="What listens can be attacked",
    cure="Set c['protocols'] = {}",
)
def _port_needless(configuration: Configuration) -> Iterator[Found]:
    if configuration.workers and not _connecting(configuration):
        for name, options in configuration.master.protocols.items():
            if isinstance(options, Mapping) and listening(options.get("port")):
                yield Found(f"c['protocols'][{name!r}]", "every worker does without it")


# ---- stock containers ----------------------------------------------------------------------------

_OPENED = {
    "privileged": (True,),
    "network_mode": ("host",),
    "pid_mode": ("host",),
    "ipc_mode": ("host",),
    "userns_mode": ("host",),
}


@rule(
    "container-opened",
    Severity.HIGH,
    what="a DockerLatentWorker hands its host to the build",
    why=(
        "privileged, the host's namespaces, the engine's socket or added capabilities make root "
        "of the host of whoever is in the container"
    ),
    cure="Take it out of hostconfig and volumes; SandboxLatentWorker has no field for any of them",
)
def _container_opened(configuration: Configuration) -> Iterator[Found]:
    for worker in configuration.open_workers:
        for opening in _openings(arguments(worker)):
            yield Found(f"worker {worker.workername!r}", f"{kind(worker)} with {opening}")


def _openings(given: Mapping[str, Any]) -> Iterator[str]:
    hostconfig = given.get("hostconfig")
    options = hostconfig if isinstance(hostconfig, Mapping) else {}
    for name, values in _OPENED.items():
        if options.get(name) in values:
            yield f"{name}={options[name]!r}"
    for name in ("cap_add", "devices"):
        if options.get(name):
            yield name
    if "unconfined" in str(options.get("security_opt", "")):
        yield "security_opt unconfined"
    mounts = [given.get("volumes"), options.get("binds")]
    if any("docker.sock" in str(each) for each in mounts):
        yield "the engine's socket inside"


@rule(
    "engine-unprotected",
    Severity.CRITICAL,
    what="a worker's container engine is asked over plain TCP",
    why="Whoever reaches that port is root on the engine's host",
    cure="Use unix://, or tcp:// with client certificates (tls=), and close the plain port",
)
def _engine_unprotected(configuration: Configuration) -> Iterator[Found]:
    for worker in configuration.open_workers:
        given = arguments(worker)
        host = given.get("docker_host")
        if isinstance(host, str) and host.startswith(_DOCKER_HOST_PLAIN) and not given.get("tls"):
            name = host.split("://")[1].rpartition(":")[0]
            where = "which other machines reach" if not is_loopback(name) else "on this machine"
            yield Found(f"worker {worker.workername!r}", f"docker_host has no TLS, {where}")
