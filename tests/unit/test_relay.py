"""The command that reaches an engine over ssh."""

from __future__ import annotations

from sandboxworker.engine.address import resolve
from sandboxworker.engine.relay import ssh_command


def words(url: str) -> list[str]:
    return ssh_command(resolve(url, {}))


def test_host_alone_leaves_the_rest_to_the_users_configuration() -> None:
    command = words("ssh://far-engine")
    assert command[command.index("--") :] == ["--", "far-engine", "docker", "system", "dial-stdio"]
    assert "-p" not in command
    assert "-l" not in command


def test_user_port_and_socket_are_passed_on() -> None:
    command = words("ssh://ci@far:2222/run/user/1000/docker.sock")
    assert command[command.index("-p") + 1] == "2222"
    assert command[command.index("-l") + 1] == "ci"
    assert command[command.index("--") + 1 :] == [
        "far", "docker", "--host", "unix:///run/user/1000/docker.sock", "system", "dial-stdio"
    ]  # fmt: skip


def test_nothing_is_asked_of_a_terminal_and_nothing_waits_for_ever() -> None:
    command = words("ssh://far")
    for option in ("BatchMode=yes", "ConnectTimeout=10", "ServerAliveInterval=15"):
        assert command[command.index(option) - 1] == "-o"
