"""``sandboxworker image``: makes and lists the project's own images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from sandboxworker import images
from sandboxworker.cli import build_image
from sandboxworker.cli.failures import own_failures
from sandboxworker.errors import EngineRefused, EngineUnreachable, SandboxworkerError
from sandboxworker.images import Recipe

_engine_option = click.option(
    "--engine", metavar="URL", help="The engine to use instead of DOCKER_HOST or the default."
)


@click.group()
def image() -> None:
    """Make and list the images that come with sandboxworker."""


@image.command("build")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--from",
    "origin",
    type=click.Choice(build_image.ORIGINS),
    default=build_image.AUTO,
    show_default=True,
    help="auto: packages where root has mmdebstrap, else registry.",
)
@click.option("--force", is_flag=True, help="Make it anew even if it is up to date.")
@_engine_option
def build(names: tuple[str, ...], origin: str, force: bool, engine: str | None) -> None:
    """Make the images NAME..., by default all usual ones, where they are missing or outdated."""
    with own_failures(), _engine_client(engine) as client:
        for recipe in _chosen(names):
            _build_if_needed(client, recipe, origin, force)


@image.command("list")
@_engine_option
def list_images(engine: str | None) -> None:
    """Show each image, its tag, and whether the engine has it."""
    with own_failures(), _engine_client(engine) as client:
        for recipe in images.recipes().values():
            click.echo(f"{recipe.name:10} {recipe.tag:32} {_state(client, recipe)}")
            click.echo(f"{'':10} {recipe.description}")


def _chosen(names: Sequence[str]) -> list[Recipe]:
    known = images.recipes()
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SandboxworkerError(
            f"unknown image {', '.join(map(repr, unknown))}", details=f"known: {', '.join(known)}"
        )
    usual = [recipe for recipe in known.values() if not recipe.on_request]
    return [known[name] for name in dict.fromkeys(names)] or usual


def _build_if_needed(client: Any, recipe: Recipe, origin: str, force: bool) -> None:
    before = _inspect(client, recipe)
    if not force and _is_current(before, recipe):
        click.echo(f"==> {recipe.tag}: up to date")
        return
    chosen = build_image.choose_origin(origin)
    click.echo(f"==> {recipe.tag}: making it from {chosen}")
    progress = build_image.Progress(click.echo)
    build_image.build(client, recipe, chosen, progress)
    after = _inspect(client, recipe)
    if after is None or not _is_current(after, recipe):
        raise SandboxworkerError(f"the engine does not have {recipe.tag} after the build")
    _forget(client, before, after)
    progress.step(f"ready: {_size(after)}, {after['Id'][:19]}")


def _state(client: Any, recipe: Recipe) -> str:
    found = _inspect(client, recipe)
    if found is None:
        return "not built"
    return f"{_size(found)}{'' if _is_current(found, recipe) else ', outdated'}"


def _size(found: dict[str, Any]) -> str:
    return f"{found['Size'] / 1e6:.0f} MB"


def _inspect(client: Any, recipe: Recipe) -> dict[str, Any] | None:
    from docker.errors import ImageNotFound

    try:
        found: dict[str, Any] = client.inspect_image(recipe.tag)
    except ImageNotFound:
        return None
    return found


def _is_current(found: dict[str, Any] | None, recipe: Recipe) -> bool:
    labels = ((found or {}).get("Config") or {}).get("Labels") or {}
    return bool(labels.get(images.RECIPE_LABEL) == recipe.digest())


def _forget(client: Any, before: dict[str, Any] | None, after: dict[str, Any]) -> None:
    """Removes the image that lost its tag to the new one, unless something still uses it."""
    from docker.errors import APIError

    if before is None or before["Id"] == after["Id"]:
        return
    try:
        client.remove_image(before["Id"])
    except APIError:
        return


@contextmanager
def _engine_client(engine: str | None) -> Iterator[Any]:
    """A client of the engine; what goes wrong with it is told in the project's own words."""
    from docker.errors import APIError, DockerException
    from requests.exceptions import RequestException

    from sandboxworker.engine.address import resolve
    from sandboxworker.engine.sdk import root_cause, sdk_client

    address = resolve(engine)
    try:
        client = sdk_client(address)
        try:
            yield client
        finally:
            client.close()
    except APIError as error:
        raise EngineRefused(
            address.url, "image build", error.status_code or 0, str(error.explanation or error)
        ) from None
    except (DockerException, RequestException) as error:
        raise EngineUnreachable(address.url, str(root_cause(error))) from None
