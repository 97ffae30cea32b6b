"""The docker SDK's client for an address, deaf to what the environment says about the web."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import docker
from docker.transport import UnixHTTPAdapter
from docker.utils import decode_json_header

from sandboxworker.engine.address import EngineAddress
from sandboxworker.errors import EngineAddressError


class _OnePool(UnixHTTPAdapter):
    """Uses a kept-alive connection for whatever is asked next; upstream keeps some for each URL."""

    def get_connection(self, url: str | bytes, proxies: Any = None) -> Any:
        return super().get_connection(self.socket_path, proxies)


class _Client(docker.APIClient):
    """Takes proxies and certificates from its arguments only.

    ``requests`` would let ``REQUESTS_CA_BUNDLE`` take the place of the engine's own CA, and send
    calls to an engine through ``HTTPS_PROXY``.
    """

    def mount(self, prefix: str | bytes, adapter: Any) -> None:
        if isinstance(adapter, UnixHTTPAdapter):
            adapter = _OnePool(
                adapter.socket_path, adapter.timeout, max_pool_size=adapter.max_pool_size
            )
        super().mount(prefix, adapter)

    def merge_environment_settings(self, *args: Any, **kwargs: Any) -> Any:
        self.trust_env = False
        return super().merge_environment_settings(*args, **kwargs)

    def send(self, request: Any, **kwargs: Any) -> Any:
        """As upstream's, but that nothing is waited for without an end, as it does for events."""
        if kwargs.get("timeout") is None:
            kwargs["timeout"] = self.timeout
        return super().send(request, **kwargs)

    def path_stat(self, container: str, path: str) -> Mapping[str, Any]:
        """The facts of a path alone; ``get_archive`` would fetch what is there as well."""
        upstream: Any = self  # Its stubs, where there are any, have no private names.
        url = upstream._url("/containers/{0}/archive", container)
        answer = self.head(url, params={"path": path})
        upstream._raise_for_status(answer)
        told = answer.headers["X-Docker-Container-Path-Stat"]
        found: Mapping[str, Any] = decode_json_header(told)
        return found


def sdk_client(address: EngineAddress, **options: Any) -> Any:
    """A client of the SDK's; making it asks the engine for its version, and blocks meanwhile.

    ``options`` are ``docker.APIClient``'s own.
    Raises `EngineAddressError` for ``ssh://``, which goes through a `relay.SshRelay`.
    """
    if address.is_ssh:
        raise EngineAddressError(
            address.url,
            "this command does not speak ssh",
            "Run it on the engine's own machine, or through its unix:// or tcp:// address",
        )
    return _Client(**address.sdk_arguments(), **options)


def root_cause(error: BaseException) -> BaseException:
    """The innermost error: SDKs wrap "connection refused" several times over."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return error
