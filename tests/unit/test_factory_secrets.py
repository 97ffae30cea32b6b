"""Which secrets of a factory come to the worker, as far as the configuration shows."""

from __future__ import annotations

from typing import Any

import pytest
from buildbot.plugins import steps, util
from buildbot.process.buildstep import BuildStep
from buildbot.process.factory import BuildFactory
from buildbot.util.git_credential import GitCredentialOptions

from sandboxworker.factory_secrets import Use, secret_paths, secrets_in, uses

A = util.Secret("a")
IN_TEXT = util.Interpolate("x %(secret:a)s %(prop:b)s")


def builder(*build: Any, files: Any = (), **more: Any) -> Any:
    factory = BuildFactory()
    factory.addSteps(build, withSecrets=list(files))
    return util.BuilderConfig(name="b", workernames=["w"], factory=factory, **more)


def own_function(properties: Any) -> str:
    return "text"


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("text", set()),
        ("%(secret:a)s", set()),
        (None, set()),
        (A, {"a"}),
        (IN_TEXT, {"a"}),
        (util.Interpolate("%(secret:a)s%(secret:b|c)s"), {"a", "b|c"}),
        (util.Interpolate("%(secret:a:-none)s"), {"a"}),
        (util.Interpolate("%(prop:x:-%(secret:a)s)s"), {"a"}),
        (util.Interpolate("%(prop:x:?|%(secret:a)s|%(secret:b)s)s"), {"a", "b"}),
        (util.Interpolate("%(kw:x)s", x=A), {"a"}),
        (util.Interpolate("%s", A), {"a"}),
        (util.Property("x", default=A), {"a"}),
        (util.Transform(str, A, other=util.Secret("b")), {"a", "b"}),
        (util.FlattenList([["x"], [A]]), {"a"}),
        (IN_TEXT + "more", {"a"}),
        (util.renderer(own_function).withArgs(A), {"a"}),
        (util.renderer(own_function), set()),
        ([("x", [A])], {"a"}),
        ({"X": {A}}, {"a"}),
        (util.ShellArg(command=["x", A]), {"a"}),
    ],
)
def test_a_secret_is_found_however_deep(value: Any, names: set[str]) -> None:
    assert secrets_in(value) == names


def test_a_value_that_holds_itself_has_an_end() -> None:
    value: list[Any] = [A]
    value.append(value)
    assert secrets_in(value) == {"a"}


class _WithClassAttribute(steps.ShellCommand):
    command = IN_TEXT


class _OnMaster(BuildStep):
    name = "tell"
    sandbox_on_master = True

    def __init__(self, token: Any, **more: Any) -> None:
        super().__init__(**more)


class _Post(steps.POST):
    """Without the package that upstream's own asks for when it is made."""

    def __init__(self, url: str, headers: Any) -> None:
        BuildStep.__init__(self)


class _OwnGit(steps.GitHub):
    pass


@pytest.mark.parametrize(
    "step",
    [
        steps.ShellCommand(command=["x", A], name="s"),
        steps.ShellCommand(command="x", env={"T": A}, name="s"),
        steps.ShellCommand(command="x", workdir=IN_TEXT, name="s"),
        steps.ShellSequence([util.ShellArg(command=IN_TEXT)], name="s"),
        steps.StringDownload(A, workerdest="x", name="s"),
        steps.SetPropertyFromCommand(command=IN_TEXT, property="x", name="s"),
        steps.Git("https://x.example/y", config={"x": A}, name="s"),
        steps.Git("https://x.example/y", 22, A, name="s"),
        steps.Mercurial(repourl=A, mode="full", name="s"),
        _WithClassAttribute(name="s"),
    ],
)
def test_a_secret_in_a_steps_arguments_comes_to_the_worker(step: Any) -> None:
    assert uses(builder(step)) == [Use("step 's'", "a")]


@pytest.mark.parametrize(
    "step",
    [
        steps.MasterShellCommand(command=["x", A]),
        steps.SetProperty(property="x", value=A),
        steps.SetProperties(properties={"x": A}),
        steps.LogRenderable(A),
        steps.Assert(IN_TEXT == "x"),
        steps.Trigger(schedulerNames=["x"], set_properties={"x": A}),
        _Post("https://x.example/", headers={"T": A}),
        steps.Git(IN_TEXT),
        steps.Git(repourl="git@x.example:y", sshPrivateKey=A, sshHostKey=A),
        steps.Git(repourl="git@x.example:y", sshPrivateKey=A, sshKnownHosts=A),
        steps.GitHub(repourl="https://x.example/y", auth_credentials=("me", A)),
        _OwnGit(
            repourl="https://x.example/y", git_credentials=GitCredentialOptions(credentials=[A])
        ),
        _OnMaster(A),
        _OnMaster(token=A),
        _WithClassAttribute(command="true"),
    ],
)
def test_a_secret_that_stays_on_the_master_does_not_count(step: Any) -> None:
    assert uses(builder(step)) == []


def test_with_secrets_counts_once_and_as_files() -> None:
    found = uses(builder(steps.ShellCommand(command="x"), files=[("t", A), ("u", IN_TEXT)]))
    assert [(use.secret, use.as_file) for use in found] == [("a", True)]


def test_the_builders_environment_counts() -> None:
    assert uses(builder(env={"T": A})) == [Use("its env", "a")]


def test_paths_that_are_text_are_known_and_others_not() -> None:
    files = [("t", A), (util.Interpolate("x"), A), ("/build/u", A)]
    assert [path for _, path in secret_paths(builder(files=files))] == ["t", "/build/u"]
    assert list(secret_paths(builder(steps.ShellCommand(command="x")))) == []
