"""The configuration's files themselves: secrets in them, and who may change them."""

from __future__ import annotations

import ast
import stat
from collections.abc import Iterator
from pathlib import Path

from sandboxworker.check.configuration import Configuration
from sandboxworker.check.passwords import SECRET_SHAPE, names_a_secret
from sandboxworker.check.rule import Found, Severity, rule

#: How calls end that take a password, and its place; and those that map users to passwords.
_PLACES = {"Worker": 1, "TelnetManhole": 2, "PasswordManhole": 2}
_NO_PASSWORD = ("SandboxLatentWorker", "LocalWorker")
_USERS = ("UserPasswordAuth", "Try_Userpass")


@rule(
    "literal-secret",
    Severity.HIGH,
    what="a secret is written in the configuration",
    why="It is in version control, in backups, and before everybody who helps with the file",
    cure=(
        "Keep it in a file or a store that c['secretsProviders'] reads (SecretInAFile, "
        "SecretInPass, HashiCorpVaultKvSecretProvider), write util.Secret('name'), and change it"
    ),
)
def _literal_secret(configuration: Configuration) -> Iterator[Found]:
    for file in configuration.sources:
        seen = set()
        for line, what in _literals(ast.parse(file.read_bytes())):
            if line not in seen:
                seen.add(line)
                yield Found(f"{file.name}:{line}", what, str(file), line)


def _literals(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from _in_call(node)
        elif isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            yield from (found for key, value in pairs for found in _named(_text(key), value))
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                yield from _named(_target(target), node.value)
        elif isinstance(node, ast.Constant) and SECRET_SHAPE.search(_text(node) or ""):
            yield node.lineno, "has the form of a token, a key or a login"


def _in_call(node: ast.Call) -> Iterator[tuple[int, str]]:
    called = getattr(node.func, "attr", getattr(node.func, "id", ""))
    for keyword in node.keywords:
        yield from _named(keyword.arg, keyword.value)
        if keyword.arg in ("auth_credentials", "auth") and isinstance(keyword.value, ast.Tuple):
            yield from _password(keyword.value.elts[-1], f"the password in {keyword.arg}")
    for ending, place in _PLACES.items():
        if called.endswith(ending) and called not in _NO_PASSWORD and len(node.args) > place:
            yield from _password(node.args[place], f"the password of a {called}")
    if called in _USERS:
        yield from _users(node, called)


def _users(node: ast.Call, called: str) -> Iterator[tuple[int, str]]:
    """``{"user": "password"}`` and ``[("user", "password")]``, wherever in the call."""
    for part in [*node.args, *(keyword.value for keyword in node.keywords)]:
        if isinstance(part, ast.Dict):
            for value in part.values:
                yield from _password(value, f"a password in {called}")
        if isinstance(part, (ast.List, ast.Tuple)):
            for pair in part.elts:
                if isinstance(pair, ast.Tuple) and len(pair.elts) == 2:
                    yield from _password(pair.elts[1], f"a password in {called}")


def _named(name: str | None, value: ast.AST) -> Iterator[tuple[int, str]]:
    if name is not None and names_a_secret(name) and not _is_a_path(_text(value)):
        yield from _password(value, f"the value of {name!r}")


def _password(value: ast.AST, what: str) -> Iterator[tuple[int, str]]:
    if isinstance(value, ast.Constant) and _text(value):
        yield value.lineno, f"{what} is written there"


def _is_a_path(text: str | None) -> bool:
    return text is not None and text.startswith(("/", "~", "./"))


def _text(node: ast.AST | None) -> str | None:
    value = getattr(node, "value", None) if isinstance(node, ast.Constant) else None
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, str) else None


def _target(node: ast.AST) -> str | None:
    if isinstance(node, ast.Subscript):
        return _text(node.slice)
    name = getattr(node, "id", getattr(node, "attr", None))
    return name if isinstance(name, str) else None


@rule(
    "file-writable",
    Severity.CRITICAL,
    what="every user of the machine may change the configuration",
    why="It is a program that the master runs at its next reconfigure",
    cure="chmod o-w it, and its directory",
)
def _file_writable(configuration: Configuration) -> Iterator[Found]:
    for file in configuration.sources:
        if file.stat().st_mode & stat.S_IWOTH:
            yield Found(str(file), "is writable for others")
    if _anybody_may_replace(configuration.file.parent):
        yield Found(str(configuration.file.parent), "is a directory in which others may write")


def _anybody_may_replace(directory: Path) -> bool:
    mode = directory.stat().st_mode
    return bool(mode & stat.S_IWOTH) and not mode & stat.S_ISVTX
