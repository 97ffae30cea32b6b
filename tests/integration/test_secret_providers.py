"""Buildbot's secret providers, for real: a folder, a password store, Vault's protocol."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import password_store as password_stores
import pytest
import pytest_twisted
from buildbot.plugins import util
from buildbot.process.factory import BuildFactory
from buildbot.secrets.providers.file import SecretInAFile
from buildbot.secrets.providers.passwordstore import SecretInPass
from buildbot.secrets.providers.vault_hvac import (
    HashiCorpVaultKvSecretProvider,
    VaultAuthenticatorToken,
)
from json_server import JsonHandler, serving
from real_master import RealMaster, one_builder_each, running_master, shell
from runtime import SandboxPolicy

from sandboxworker import SandboxLatentWorker

pytestmark = pytest.mark.engine

BUSYBOX = "sandboxworker/busybox:latest"

RELEASED, KEPT = "released-b7d2e9", "kept-04c1aa"


@attrs.frozen
class Provider:
    """One provider with two secrets: their names there, and what Buildbot asks."""

    released: str
    kept: str
    provider: Any


# ---- SecretInAFile -------------------------------------------------------------------------------


@contextlib.contextmanager
def folder() -> Iterator[Provider]:
    with tempfile.TemporaryDirectory() as place:
        for name, value in (("token", RELEASED), ("other", KEPT)):
            (Path(place) / name).write_text(f"{value}\n")
            (Path(place) / name).chmod(0o600)
        yield Provider("token", "other", SecretInAFile(place))


# ---- SecretInPass --------------------------------------------------------------------------------


@contextlib.contextmanager
def password_store() -> Iterator[Provider]:
    entries = {"ci/token": f"{RELEASED}\nuser: ci\n", "ci/other": f"{KEPT}\n"}
    with password_stores.password_store(entries) as store:
        assert RELEASED.encode() not in (store / "ci" / "token.gpg").read_bytes()
        yield Provider("ci/token", "ci/other", SecretInPass(dirname=str(store)))


# ---- HashiCorpVaultKvSecretProvider --------------------------------------------------------------

_VAULT_TOKEN = "a-token-of-vaults"


class _Vault(JsonHandler):
    """What Vault's HTTP API answers to a token's look-up and to reads of KV version 2."""

    def do_GET(self) -> None:
        if self.headers.get("X-Vault-Token") != _VAULT_TOKEN:
            self.answer(403, {"errors": ["permission denied"]})
        elif self.path == "/v1/auth/token/lookup-self":
            self.answer(200, {"data": {"id": _VAULT_TOKEN}})
        elif self.path == "/v1/secret/data/ci/deploy":
            data = {"token": RELEASED, "other": KEPT}
            self.answer(200, {"data": {"data": data, "metadata": {"version": 1}}})
        else:
            self.answer(404, {"errors": []})


@contextlib.contextmanager
def vault() -> Iterator[Provider]:
    with serving(_Vault) as url:
        provider = HashiCorpVaultKvSecretProvider(
            vault_server=url,
            authenticator=VaultAuthenticatorToken(_VAULT_TOKEN),
            secrets_mount="secret",
        )
        yield Provider("ci/deploy|token", "ci/deploy|other", provider)


# ---- the same for each ---------------------------------------------------------------------------


@attrs.frozen
class Running:
    """A master with one of the providers."""

    master: RealMaster
    secrets: Provider


@pytest_twisted.async_yield_fixture(
    scope="module", params=[folder, password_store, vault], ids=lambda made: made.__name__
)
async def running(
    request: Any, engine_client: Any, left_over: Any, tmp_path_factory: Any
) -> AsyncIterator[Running]:
    made: Callable[[], contextlib.AbstractContextManager[Provider]] = request.param
    with made() as secrets:
        policy = SandboxPolicy(BUSYBOX, disk="8m", memory="64m", secrets=[secrets.released])
        config = one_builder_each(
            [SandboxLatentWorker("w", policy=policy)], secretsProviders=[secrets.provider]
        )
        async with running_master(tmp_path_factory.mktemp("m"), config, left_over) as master:
            yield Running(master, secrets)
    assert not any(name in os.environ for name in ("GNUPGHOME", "PASSWORD_STORE_DIR"))


def with_secret(value: Any, *build: Any) -> BuildFactory:
    factory = BuildFactory()
    factory.addSteps(build, withSecrets=[("x", value)])
    return factory


@pytest_twisted.ensureDeferred
async def test_a_released_secret_arrives_whole_and_is_redacted(running: Running) -> None:
    name = running.secrets.released
    build = await running.master.run(
        "w",
        with_secret(
            util.Interpolate(f"<%(secret:{name})s>"),
            shell("tr a-z b-za </run/secrets/x", "read"),
            shell("cat /run/secrets/x; echo; base64 /run/secrets/x", "shown"),
        ),
    )
    assert build.result == "success", build.log
    turned = bytes.maketrans(
        b"abcdefghijklmnopqrstuvwxyz",
        b"bcdefghijklmnopqrstuvwxyza",
    )
    assert build["read"].out == f"<{RELEASED}>".encode().translate(turned).decode()
    assert f"<<{name}>>" in build["shown"].out
    assert RELEASED not in build.log
    told = [
        (entry["secret"], entry["event"])
        for entry in running.master.audit
        if entry["event"].startswith("secret.")
    ]
    assert told[-1] == (name, "secret.released")


@pytest_twisted.ensureDeferred
async def test_a_secret_that_is_not_released_stays_on_the_master(running: Running) -> None:
    look = "cat /run/secrets/*; echo looked"
    build = await running.master.run(
        "w",
        with_secret(util.Secret(running.secrets.kept), shell(look, "look", alwaysRun=True)),
    )
    assert build.result == "failure"
    assert f"secret {running.secrets.kept} is refused" in build.log
    assert build["look"].out == "looked"
    assert KEPT not in build.log


@pytest_twisted.ensureDeferred
async def test_a_secret_that_the_provider_does_not_have_fails_its_step(running: Running) -> None:
    build = await running.master.run(
        "w", with_secret(util.Secret(f"{running.secrets.released}x"), shell("true", "never"))
    )
    assert build.result == "exception"
    assert "never" not in [step.name for step in build.steps]
    assert RELEASED not in build.log
