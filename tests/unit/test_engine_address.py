"""Where an engine listens: from ``engine=``, from Docker's environment variables, from ``make``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sandboxworker.engine import address
from sandboxworker.engine.address import EngineAddress, resolve
from sandboxworker.engine.sdk import sdk_client
from sandboxworker.errors import EngineAddressError

PEMS = ("ca.pem", "cert.pem", "key.pem")


@pytest.fixture
def certificates(tmp_path: Path) -> str:
    for name in PEMS:
        (tmp_path / name).write_text("pem")
    return str(tmp_path)


def refusal(engine: Any, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(EngineAddressError) as caught:
        resolve(engine, environ or {})
    return str(caught.value)


class TestUnix:
    def test_socket_is_found(self) -> None:
        found = resolve("unix:///run/engine.sock", {})
        assert found.is_unix
        assert found.socket_path == "/run/engine.sock"
        assert str(found) == "unix:///run/engine.sock"

    @pytest.mark.parametrize("url", ["unix://", "unix://run/engine.sock"])
    def test_relative_path_is_refused(self, url: str) -> None:
        assert "unix:///path" in refusal(url)

    def test_certificates_of_the_environment_do_not_concern_it(self) -> None:
        environ = {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": "/nowhere"}
        assert resolve("unix:///run/engine.sock", environ).cert_path is None


class TestTcp:
    @pytest.mark.parametrize(
        "host", ["localhost:2375", "127.0.0.1:2375", "127.1.2.3:2375", "[::1]:2375"]
    )
    def test_without_tls_only_loopback_is_spoken_to(self, host: str) -> None:
        found = resolve(f"tcp://{host}", {})
        assert not found.is_unix
        assert found.cert_path is None
        assert found.port == 2375

    @pytest.mark.parametrize(
        "host",
        [
            "192.0.2.1:2375",
            "engine.invalid:2375",
            "0.0.0.0:2375",
            "[::]:2375",
            "localhost.invalid:2375",
            "127.0.0.1.invalid:2375",
            "localhost@engine.invalid:2375",
        ],
    )
    def test_without_tls_any_other_host_is_refused(self, host: str) -> None:
        message = refusal(f"tcp://{host}")
        assert "plain TCP" in message
        assert "DOCKER_CERT_PATH" in message

    def test_with_certificates_any_host_will_do(self, certificates: str) -> None:
        found = resolve("tcp://engine.invalid:2376", {"DOCKER_CERT_PATH": certificates})
        assert (found.host, found.port, found.cert_path) == ("engine.invalid", 2376, certificates)

    def test_default_port_is_that_of_tls(self, certificates: str) -> None:
        assert resolve("tcp://engine.invalid", {"DOCKER_CERT_PATH": certificates}).port == 2376

    @pytest.mark.parametrize("missing", PEMS)
    def test_missing_certificate_is_named(self, certificates: str, missing: str) -> None:
        (Path(certificates) / missing).unlink()
        message = refusal("tcp://engine.invalid:2376", {"DOCKER_CERT_PATH": certificates})
        assert missing in message
        assert not any(name in message for name in {*PEMS} - {missing} if name != "ca.pem")

    def test_loopback_with_a_certificate_folder_uses_it(self, certificates: str) -> None:
        found = resolve("tcp://127.0.0.1:2376", {"DOCKER_CERT_PATH": certificates})
        assert found.cert_path == certificates

    def test_tls_verify_alone_means_dockers_own_folder(self, tmp_path: Path) -> None:
        folder = tmp_path / ".docker"
        folder.mkdir()
        for name in PEMS:
            (folder / name).write_text("pem")
        environ = {"DOCKER_TLS_VERIFY": "1", "HOME": str(tmp_path)}
        assert resolve("tcp://engine.invalid", environ).cert_path == str(folder)

    def test_tls_verify_without_certificates_is_not_plain_tcp(self, tmp_path: Path) -> None:
        environ = {"DOCKER_TLS_VERIFY": "1", "HOME": str(tmp_path)}
        assert "ca.pem" in refusal("tcp://127.0.0.1:2376", environ)

    @pytest.mark.parametrize(
        "url", ["tcp://", "tcp://:2376", "tcp://host:0", "tcp://host:99999", "tcp://host:x"]
    )
    def test_host_or_port_that_is_wrong_is_refused(self, url: str, certificates: str) -> None:
        assert "tcp://host:port" in refusal(url, {"DOCKER_CERT_PATH": certificates})


class TestSsh:
    def test_parts_are_found(self) -> None:
        found = resolve("ssh://ci@far.example:2222/run/docker.sock", {})
        assert found.is_ssh
        assert (found.user, found.host, found.ssh_port) == ("ci", "far.example", 2222)
        assert found.remote_socket == "/run/docker.sock"

    def test_what_is_not_said_is_left_to_ssh(self) -> None:
        found = resolve("ssh://far", {})
        assert (found.user, found.ssh_port, found.remote_socket) == ("", None, "")

    @pytest.mark.parametrize(
        "url",
        [
            "ssh://", "ssh://-oProxyCommand=x", "ssh://a b", "ssh://-l@host", "ssh://u:secret@host",
            "ssh://host:0", "ssh://host:99999", "ssh://host/a;b", "ssh://host/$(x)", "ssh://host?x",
            "ssh://host#x", "ssh://u@-host", "ssh://host/a b", "ssh://ho\nst",
        ],
    )  # fmt: skip
    def test_what_could_be_taken_for_anything_else_is_refused(self, url: str) -> None:
        assert "cannot be those of an engine" in refusal(url)

    def test_certificates_do_not_concern_it(self) -> None:
        assert resolve("ssh://far", {"DOCKER_CERT_PATH": "/nowhere"}).cert_path is None

    def test_what_speaks_through_the_sdk_alone_says_that_it_cannot(self) -> None:
        with pytest.raises(EngineAddressError, match="does not speak ssh"):
            sdk_client(resolve("ssh://far", {}))


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:2375", "https://127.0.0.1:2376", "npipe:////./pipe/x",
     "fd://3", "/run/engine.sock", "127.0.0.1:2375", "nonsense"],
)  # fmt: skip
def test_other_kinds_of_address_are_refused(url: str) -> None:
    assert "unix:///path" in refusal(url)


@pytest.mark.parametrize("engine", [7, b"unix:///x", ["unix:///x"], object()])
def test_what_is_no_text_is_refused(engine: object) -> None:
    assert "not a URL" in refusal(engine)


class TestWhichOne:
    def test_argument_comes_before_the_environment(self) -> None:
        environ = {"DOCKER_HOST": "unix:///environment"}
        assert resolve("unix:///argument", environ).url == "unix:///argument"

    def test_environment_is_honoured_without_an_argument(self) -> None:
        assert resolve(None, {"DOCKER_HOST": "unix:///environment"}).url == "unix:///environment"

    def test_process_environment_is_the_one_meant(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DOCKER_HOST", "unix:///of-the-process")
        assert resolve(None).url == "unix:///of-the-process"

    def test_wrong_environment_is_refused(self) -> None:
        assert "http://host" in refusal(None, {"DOCKER_HOST": "http://host"})

    def test_address_passes_and_is_checked(self) -> None:
        good = EngineAddress("unix:///run/engine.sock")
        assert resolve(good, {}) == good
        assert "plain TCP" in refusal(EngineAddress("tcp://192.0.2.1:2375"))

    def test_without_anything_it_is_dockers_own_socket(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        socket = tmp_path / "docker.sock"
        socket.touch()
        monkeypatch.setattr(address, "DEFAULT_SOCKET", str(socket))
        assert resolve(None, {}).url == f"unix://{socket}"

    def test_engine_that_make_noted_stands_in_where_docker_has_none(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        noted = tmp_path / "etc" / "sandboxworker" / "engine"
        noted.parent.mkdir(parents=True)
        noted.write_text("unix:///noted\n")
        monkeypatch.setattr("sys.prefix", str(tmp_path))
        monkeypatch.setattr(address, "DEFAULT_SOCKET", str(tmp_path / "none"))
        assert resolve(None, {}).url == "unix:///noted"
        (tmp_path / "none").touch()
        assert resolve(None, {}).url == f"unix://{tmp_path / 'none'}"


class TestForTheSdk:
    def test_socket_needs_no_tls(self) -> None:
        arguments = EngineAddress("unix:///run/engine.sock").sdk_arguments()
        assert arguments["base_url"] == "unix:///run/engine.sock"
        assert arguments["tls"] is False

    def test_certificates_are_given_and_the_engine_is_verified(self, certificates: str) -> None:
        tls = EngineAddress("tcp://engine.invalid:2376", certificates).sdk_arguments()["tls"]
        assert tls.cert == (f"{certificates}/cert.pem", f"{certificates}/key.pem")
        assert tls.ca_cert == f"{certificates}/ca.pem"
        assert tls.verify is True
