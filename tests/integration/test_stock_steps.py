"""Buildbot's own steps, each on a `LocalWorker` and in a sandbox: nobody can tell which was which.

Differences that are right are in ``docs/compatibility.md``, and here each has a test of its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from buildbot.plugins import steps, util
from buildbot.process.factory import BuildFactory
from buildbot.process.logobserver import LogLineObserver
from buildbot.process.results import FAILURE, SKIPPED, SUCCESS, WARNINGS
from conftest import DEBIAN
from real_master import pause
from runtime import differs
from side_by_side import SideBySide, assert_same, side_by_side

pytestmark = pytest.mark.engine

GO_ON = {"haltOnFailure": False, "flunkOnFailure": False}


@pytest.fixture(autouse=True)
def _no_path_of_the_tests_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `LocalWorker` hands on what this process was started with."""
    monkeypatch.delenv("PYTHONPATH", raising=False)


@pytest_twisted.async_yield_fixture(scope="module")
async def both(engine_client: Any, left_over: Any, tmp_path_factory: Any) -> AsyncIterator[Any]:
    async with side_by_side(tmp_path_factory.mktemp("both"), DEBIAN, left_over) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_logged_errors(both: SideBySide) -> Any:
    yield
    errors, both.master.errors = both.master.errors, []
    assert not errors, "\n".join(errors)


def sh(command: Any, name: str, **more: Any) -> Any:
    return steps.ShellCommand(command=command, name=name, **more)


# ---- properties ----------------------------------------------------------------------------------


def _parsed(rc: int, stdout: str, stderr: str) -> dict[str, Any]:
    return {"rc": rc, "first": stdout.split()[0], "errors": stderr.count("\n")}


@util.renderer
def _renderer(properties: Any) -> str:
    return f"<{properties.getProperty('one')}>"


def property_steps(_out: Path) -> list[Any]:
    show = [
        "printf", "%s\\n",
        util.Property("one"), util.Property("none", default="by default"),
        util.Interpolate("%(prop:one)s %(prop:gone:-absent)s %(prop:one:+present)s"),
        util.Interpolate("%(kw:a)s %(src::branch)s", a=util.Property("first")),
        util.WithProperties("%(one)s-%(none:-no)s"),
        _renderer,
        util.FlattenList(["a", ["b", util.Property("one")]]),
        util.Transform(str.upper, util.Property("one")),
        util.Interpolate("%(worker:system)s"),
    ]  # fmt: skip
    return [
        steps.SetPropertyFromCommand(command="echo '  hello  '", property="one"),
        steps.SetPropertyFromCommand(command="echo x", property="kept", strip=False, name="kept"),
        steps.SetPropertyFromCommand(
            command="echo a b; echo e >&2; exit 2", extract_fn=_parsed, name="parsed",
            **GO_ON,
        ),
        steps.SetPropertyFromCommand(command="exit 1", property="never", name="fails", **GO_ON),
        steps.SetProperty(property="set", value=util.Interpolate("%(prop:one)s!")),
        steps.SetProperties(properties={"p": util.Property("set"), "q": [1, {"a": None}]}),
        steps.SetPropertiesFromEnv(variables=["SIDE_BY_SIDE", "NO_SUCH_VARIABLE"]),
        steps.SetPropertiesFromEnv(variables="SIDE_BY_SIDE", source="elsewhere", name="again"),
        steps.Assert(util.Property("p"), name="assert"),
        steps.LogRenderable(util.Property("q"), name="rendered"),
        sh(show, "show"),
        sh(["echo", util.Property("q")], "a dictionary in a list", **GO_ON),
        steps.JSONPropertiesDownload(workerdest="p.json"),
        sh("python3 -c 'import json; print(sorted(json.load(open(\"p.json\"))[\"properties\"]))' | "
           "tr ' ' '\\n' | grep -v sandbox_", "downloaded"),
    ]  # fmt: skip


# ---- observers -----------------------------------------------------------------------------------


class Lines(LogLineObserver):
    """Keeps the exact lines."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str]] = []

    def outLineReceived(self, line: str) -> None:
        self.seen.append(("out", line))

    def errLineReceived(self, line: str) -> None:
        self.seen.append(("err", line))


class Observed(steps.ShellCommand):
    """Tells in a property what its observer has seen of each stream."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.lines = Lines()
        self.addLogObserver("stdio", self.lines)

    async def run(self) -> int:
        result: int = await super().run()
        for stream in ("out", "err"):
            seen = [line for channel, line in self.lines.seen if channel == stream]
            self.setProperty(f"{self.name} {stream}", seen, "observer")
        return result


COMPILED = r"""cat <<'EOF'
make: Entering directory '/src'
make[1]: Entering directory '/src/lib'
a.c:1: warning: unused variable x
b.c:22: warning: deprecated thing
make[1]: Leaving directory '/src/lib'
c.c:3: warning: kept
c.c:33: WARNING: another case
c.c:4: error: not a warning
EOF
"""
SUPPRESSIONS = r"""# comment
lib/a.c : unused variable
b.c : deprecated : 20-30
"""
PYFLAKES = r"""cat <<'EOF'
echo pyflakes
a.py:1: 'os' imported but unused
b.py:2: redefinition of unused 'x' from line 1
c.py:3: 'from m import *' used; unable to detect undefined names
d.py:4: something else
EOF
exit 1
"""
PYLINT = r"""cat <<'EOF'
************* Module m
C:  1, 0: Missing module docstring (missing-docstring)
W:  3, 4: Unused variable 'x' (unused-variable)
E:  5, 0: Undefined variable 'y' (undefined-variable)
EOF
exit 22
"""
PERL = r"""cat <<'EOF'
t/00.t .. ok
t/01.t .. Failed 1/3 subtests
Test Summary Report
t/01.t (Wstat: 256 Tests: 3 Failed: 1)
  Failed test:  2
Files=2, Tests=5,  1 wallclock secs
Result: FAIL
EOF
exit 1
"""
#: Stands in for the program, which is not in the image.
SPHINX = r"""cat >sphinx-build <<'EOF'
#!/bin/sh
echo "updating environment: 2 added"
echo "index.rst:3: WARNING: Title underline too short." >&2
echo "index.rst:9: ERROR: Unknown directive." >&2
EOF
chmod +x sphinx-build; mkdir -p out doctrees
"""


def observing_steps(_out: Path) -> list[Any]:
    suppressed = steps.WarningCountingShellCommand(
        command=COMPILED,
        warningPattern="^(.*?):([0-9]+): warning: (.*)$",
        warningExtractor=steps.WarningCountingShellCommand.warnExtractFromRegexpGroups,
        name="suppressed",
    )
    suppressed.addSuppression([(None, "deprecated", None, None), ("c.c", None, 1, 10)])
    return [
        steps.StringDownload(SUPPRESSIONS, workerdest="supp.txt"),
        steps.Compile(
            command=COMPILED,
            warningPattern="(.*?):([0-9]+): [Ww]arning: (.*)$",
            warningExtractor=steps.Compile.warnExtractFromRegexpGroups,
            directoryEnterPattern="make.*: Entering directory [\"`'](.*)['`\"]",
            directoryLeavePattern="make.*: Leaving directory",
            suppressionFile="supp.txt",
        ),
        steps.WarningCountingShellCommand(
            command="echo warning: one; sleep 0.2; echo Warning: two >&2; sleep 0.2; echo fine",
            maxWarnCount=1,
            name="too many warnings",
            **GO_ON,
        ),
        suppressed,
        Observed(
            command=r"printf 'a\nb\r\nc\rd\n'; sleep .3; printf 'e\nf' >&2; sleep .3; printf '\ng'",
            name="lines",
        ),
        Observed(command=["printf", "%s", "x" * 4000 + "\nlast"], name="long lines"),
        Observed(
            command=r"for i in 1 2 3; do printf $i; sleep 0.2; done; echo; printf '\342\202'; "
            r"sleep 0.3; printf '\254\n'",
            name="in pieces",
        ),
        steps.Test(command="exit 1", name="test", **GO_ON),
        steps.PyFlakes(command=PYFLAKES),
        steps.PyFlakes(command="echo \"a.py:1: undefined name 'x'\"; exit 1", name="undefined"),
        steps.PyLint(command=PYLINT, **GO_ON),
        steps.PerlModuleTest(command=PERL, **GO_ON),
        sh(SPHINX, "sphinx is there"),
        steps.Sphinx(sphinx_builddir="out", sphinx_sourcedir=".", sphinx="./sphinx-build", **GO_ON),
        steps.Configure(command="echo configured"),
    ]


# ---- results and order ---------------------------------------------------------------------------


def _is_warned(step: Any) -> bool:
    return bool(step.build.results == WARNINGS)


def _hide_success(results: int, _step: Any) -> bool:
    return results == SUCCESS


LOCK = util.MasterLock("side by side")
WORKER_LOCK = util.WorkerLock("side by side, each worker")


def flow_steps(_out: Path) -> list[Any]:
    return [
        sh("exit 3", "decoded", decodeRC={3: WARNINGS, 0: FAILURE}),
        sh("exit 4", "skipped by its code", decodeRC={4: SKIPPED}),
        sh("true", "nothing means failure", decodeRC={}, **GO_ON),
        sh("exit 1", "warned", warnOnFailure=True, flunkOnFailure=False),
        sh("true", "hidden", hideStepIf=True),
        sh("true", "hidden if good", hideStepIf=_hide_success),
        sh("exit 1", "not hidden", hideStepIf=_hide_success, **GO_ON),
        sh("true", "skipped", doStepIf=False),
        sh("echo ran", "after warnings", doStepIf=_is_warned),
        sh("echo ran", "on a property", doStepIf=util.Property("wanted", default=True)),
        sh("true", "locked", locks=[LOCK.access("exclusive"), WORKER_LOCK.access("counting")]),
        sh(
            "echo described",
            "described",
            description="doing",
            descriptionDone="done",
            descriptionSuffix="indeed",
        ),
        sh("exit 1", "flunks", flunkOnFailure=True, haltOnFailure=False),
        sh("true", "still runs"),
        sh("exit 2", "halts", haltOnFailure=True),
        sh("echo never", "never"),
        sh("echo always", "always", alwaysRun=True),
        sh("exit 1", "always fails", alwaysRun=True, **GO_ON),
        steps.StringDownload("x", workerdest="f", name="always downloads", alwaysRun=True),
    ]


def sequence_steps(_out: Path) -> list[Any]:
    def arg(command: Any, **more: Any) -> Any:
        return util.ShellArg(command=command, **more)

    return [
        steps.ShellSequence(
            name="all",
            commands=[
                arg(["echo", "one"], logname="one"),
                arg("echo two; exit 1", logname="two", flunkOnFailure=False, warnOnFailure=True),
                arg(util.Interpolate("echo %(prop:buildername:#?|y|n)s"), logname="three"),
            ],
        ),
        steps.ShellSequence(
            name="halts",
            commands=[
                arg("exit 1", logname="a", haltOnFailure=True),
                arg("echo never", logname="b"),
            ],
            **GO_ON,
        ),
        steps.ShellSequence(
            name="elsewhere", workdir="else where", env={"A": "b"}, commands=[arg("pwd; echo $A")]
        ),
    ]


# ---- shell ---------------------------------------------------------------------------------------


def limit_steps(_out: Path) -> list[Any]:
    trap = "exec 2>/dev/null; trap 'echo caught; exit 0' TERM; while :; do sleep 0.1; done"
    quiet = "exec 2>/dev/null; trap 'exit 0' TERM; while :; do sleep 0.1; done"
    deaf = "trap '' TERM; echo deaf; while :; do sleep 0.1; done"
    return [
        sh("echo a; sleep 30", "timeout", timeout=1, **GO_ON),
        sh("while :; do sleep 0.2; done", "max time", maxTime=1, **GO_ON),
        sh(trap, "asked first", maxTime=2, sigtermTime=20, **GO_ON),
        sh(deaf, "asked in vain", maxTime=1, sigtermTime=2, **GO_ON),
        sh(quiet, "terminated", timeout=1, interruptSignal="TERM", **GO_ON),
        sh("seq 3", "few lines", max_lines=3),
        sh("while :; do echo y; sleep 0.1; done", "many lines", max_lines=2, **GO_ON),
    ]


def output_steps(_out: Path) -> list[Any]:
    one = {"l": "l.log"}
    two = {"l": {"filename": "l.log", "follow": True}, "none": "none.log"}
    words = ["", " ", "*", "$HOME", "-n", "'", '"', "\\"]
    return [
        sh("echo out; sleep 0.2; echo err >&2", "both"),
        sh("echo out; echo err >&2", "no stdout", want_stdout=False),
        sh("echo out; echo err >&2", "no stderr", want_stderr=False),
        sh("tty | cut -c1-9; stty -a | head -1 | cut -d';' -f1", "terminal", usePTY=True),
        sh("tty", "no terminal", usePTY=False, **GO_ON),
        sh("cat; echo", "stdin", initialStdin="a\nb \xe9"),
        sh(["cat"], "empty stdin", initialStdin=""),
        sh("cat", "no stdin"),
        sh("seq 3 >l.log; sleep 3; seq 4 6 >>l.log; sleep 3", "log file", logfiles=one),
        sh("sleep 3; seq 4 6 >>l.log; sleep 3", "followed", logfiles=two, lazylogfiles=True),
        sh("true", "quiet", logEnviron=False),
        sh(["sh", "-c", "printf '<%s>' \"$@\"", "sh", *words], "words"),
        sh([["echo", ["nested", "list"]], "end"], "nested"),
        sh(["echo", ("hidden", "secret", "shown")], "obfuscated"),
        sh(r"printf '\001\002\377\376'; printf 'a\bb\n'; printf '\033[1mbold\033[0m'", "bytes"),
        sh("kill -9 $$", "killed", **GO_ON),
        sh("kill -USR1 $$", "signalled", **GO_ON),
        sh("exit 255", "255", **GO_ON),
        sh("sleep 60 >/dev/null 2>&1 & echo $! >pid", "leaves a child"),
        sh("kill -0 $(cat pid) && kill $(cat pid) && echo was there", "the child lives"),
    ]


def environment_steps(_out: Path) -> list[Any]:
    show = 'echo "$A|$B|$C|$D|$E|$SIDE_BY_SIDE"'
    rendered = {
        "A": util.Interpolate("%(prop:buildername:+set)s"),
        "B": util.Property("branch", default="none"),
    }
    return [
        sh(show, "text", env={"A": "x y", "B": "${SIDE_BY_SIDE}", "C": "$HOME", "D": ""}),
        sh(show, "lists", env={"A": ["/x", "/y"], "B": ["${SIDE_BY_SIDE}", "z"], "C": []}),
        sh(show, "removed", env={"SIDE_BY_SIDE": None, "A": "${SIDE_BY_SIDE}", "E": "${A}${NO}"}),
        sh(show, "rendered", env=rendered),
        sh("echo $PYTHONPATH", "pythonpath", env={"PYTHONPATH": "/mine"}),
        sh("PATH=/none; echo ${PATH}", "path", env={"PATH": ["/extra", "${PATH}"]}),
        sh('echo "$A"', "strange", env={"A": "l1\nl2=\t'\"\\ \xe9"}),
        sh('pwd; echo "$PWD"', "pwd"),
    ]


def workdir_steps(out: Path) -> list[Any]:
    pwd = "pwd; ls -A . | wc -l"
    return [
        sh(pwd, "default"),
        sh(pwd, "plain", workdir="w"),
        sh(pwd, "nested", workdir="a/b/c"),
        sh("pwd", "dot", workdir="."),
        sh("pwd", "empty", workdir=""),
        sh("pwd", "above", workdir=".."),
        sh(pwd, "beside", workdir="../beside"),
        sh(pwd, "spaces", workdir="with  space\t'q'"),
        sh(pwd, "dash", workdir="-rf"),
        sh(pwd, "rendered", workdir=util.Interpolate("%(prop:builddir)s/abs/olute")),
        sh(pwd, "a property", workdir=util.Property("nowhere", default="by/default")),
        steps.MakeDirectory(dir="x/y/z"),
        steps.MakeDirectory(dir=util.Interpolate("%(prop:builddir)s/x/abs"), name="absolute"),
        sh("touch t; ls ../../y", "in it", workdir="x/y/z"),
        steps.StringDownload("s", workerdest="in/s", workdir="x/y"),
        steps.FileUpload(workersrc="z/t", masterdest=str(out / "t"), workdir="x/y"),
        steps.FileExists(file="x/y/in/s"),
    ]


# ---- files ---------------------------------------------------------------------------------------

TREE = r"""mkdir -p t/sub/deep t/none ./-d; cd t; echo a >a.txt; echo b >sub/b.txt; : >empty.txt
echo c >sub/deep/c.txt; echo d >'d e.txt'; echo f >"$(printf 'n\nl.txt')"; echo h >.hidden
echo dash >./-x.txt; chmod 600 a.txt; chmod 755 sub/b.txt; echo pyc >sub/m.pyc
ln -s a.txt link.txt; echo above >../above.txt; touch -d @1000000000 sub/b.txt
"""


def upload_steps(out: Path) -> list[Any]:
    def upload(name: str, to: str, **more: Any) -> Any:
        return steps.FileUpload(workersrc=name, masterdest=str(out / to), name=name, **more)

    def several(name: str, *files: str, **more: Any) -> Any:
        return steps.MultipleFileUpload(
            workersrcs=list(files), masterdest=str(out / name), name=name, **more
        )

    return [
        sh(TREE, "tree"),
        upload("t/a.txt", "new/dir/a", mode=0o640),
        upload("t/d e.txt", "d", blocksize=1),
        upload("t/link.txt", "link"),
        upload("t/-x.txt", "x"),
        upload("t/empty.txt", "empty"),
        upload("t/no", "no", **GO_ON),
        upload("t/none", "no", **GO_ON),
        upload("t/.hidden", "cut", maxsize=1, **GO_ON),
        upload("t/sub/b.txt", "stamp", keepstamp=True),
        several("globbed", "t/*.txt", "t/s*", "t/nothing*", glob=True, **GO_ON),
        several("deep", "t/**/*.txt", glob=True),
        several("named", "t/a.txt", "t/sub", compress="bz2", mode=0o600),
        several("stamped", "t/sub/b.txt", keepstamp=True),
        several("absent", "t/absent", **GO_ON),
        several("too big", "t/a.txt", "t/sub", maxsize=1, **GO_ON),
    ]


def file_steps(_out: Path) -> list[Any]:
    def download(name: str, source: str, to: str, **more: Any) -> Any:
        return steps.FileDownload(mastersrc=source, workerdest=to, name=name, **more)

    def remove(name: str, directory: str) -> Any:
        return steps.RemoveDirectory(dir=directory, name=name, **GO_ON)

    return [
        sh(TREE, "tree"),
        steps.FileExists(file="build/t/a.txt"),
        steps.FileExists(file="build/t", name="a directory is no file", **GO_ON),
        steps.FileExists(file="build/t/nothing", name="nothing is no file", **GO_ON),
        download("to a new directory", __file__, "down/here.py", mode=0o751),
        download("too big", __file__, "cut.py", maxsize=100, **GO_ON),
        download("no source", "/nowhere/at/all", "x", **GO_ON),
        steps.StringDownload("t\xe9xt\n", workerdest="string", mode=0o600),
        steps.StringDownload(util.Interpolate("%(prop:none:-x)s"), workerdest="rendered"),
        steps.StringDownload("", workerdest="empty", name="empty string"),
        steps.JSONStringDownload({"a": [1, None, "\xe9"]}, workerdest="json"),
        sh("stat -c '%n %a %s' down/here.py string empty json; cat rendered json cut.py; "
           "md5sum down/here.py", "downloaded"),
        steps.CopyDirectory(src="build/t/sub", dest="build/copy/of/it"),
        steps.CopyDirectory(src="build/none", dest="build/copy/none", name="no copy", **GO_ON),
        sh("find copy -type f | sort; stat -c %a copy/of/it/b.txt", "copied"),
        steps.RemovePYCs(),
        sh("find . -name '*.pyc' | sort", "no pycs"),
        remove("remove", "build/copy"),
        remove("remove nothing", "build/copy"),
        remove("remove a file", "build/above.txt"),
        sh("chmod 0 t/sub", "shut"),
        steps.RemoveDirectory(dir=["build/t", "build/down"], name="remove several"),
        steps.MakeDirectory(dir="build/-d/x"),
        steps.MakeDirectory(dir="build/-d/x", name="made before"),
        steps.MakeDirectory(dir="build/string/x", name="below a file", **GO_ON),
        remove("remove a dash", "build/-d"),
        sh("ls -A", "left"),
    ]  # fmt: skip


SCENARIOS = {
    "properties": property_steps,
    "observers": observing_steps,
    "flow": flow_steps,
    "sequences": sequence_steps,
    "limits": limit_steps,
    "output": output_steps,
    "environment": environment_steps,
    "workdirs": workdir_steps,
    "uploads": upload_steps,
    "files": file_steps,
}


#: What their own commands ask of the system differs there.
UNDER_GVISOR = {"workdirs": "statx", "files": "statx", "output": "terminal"}


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[differs(UNDER_GVISOR[name])] if name in UNDER_GVISOR else [])
        for name in SCENARIOS
    ],
)
async def test_stock_steps_do_the_same(both: SideBySide, name: str) -> None:
    sides = await both.both(SCENARIOS[name])
    # Python's glob gives names in the order of the file system.
    assert_same(sides, unordered={"globbed", "deep"})
    assert both.written("sandbox") == both.written("local")


# ---- more than one build -------------------------------------------------------------------------


def trigger_steps(kind: str) -> list[Any]:
    def trigger(name: str, **more: Any) -> Any:
        return steps.Trigger(
            schedulerNames=[f"{kind}-child"],
            waitForFinish=True,
            set_properties={"told": util.Interpolate("%(prop:mine)s, child")},
            name=name,
            **more,
        )

    return [
        steps.SetProperty(property="mine", value="hello"),
        trigger("triggers"),
        trigger("fails", copy_properties=["fail"], **GO_ON),
    ]


CHILD = [
    sh(["echo", util.Property("told")], "told"),
    sh("exit 1", "fails", doStepIf=util.Property("fail", default=False)),
]


@pytest_twisted.ensureDeferred
async def test_triggered_builds_end_the_same(both: SideBySide) -> None:
    sides = []
    for kind in ("local", "sandbox"):
        builders = both.master.master.botmaster.builders
        builders[f"{kind}-child"].config.factory.steps = BuildFactory(CHILD).steps
        request = await both.master.begin(kind, trigger_steps(kind), fail=True)
        sides.append(await both.side(kind, request))
    local, sandbox = sides
    shown = [
        [(step["name"], step["state_string"].replace(f"{side.kind}-", ""), len(step["urls"]))
         for step in side.steps[1:]]
        for side in sides
    ]  # fmt: skip
    assert shown[0] == shown[1]
    assert shown[1][1][2] == 2  # To the request and the build.
    assert sandbox.build["triggers"].result == "success"
    assert sandbox.build["fails"].result == "failure"
    assert sandbox.build.result == local.build.result


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("step", ["running", "waiting"])
async def test_an_interrupted_build_ends_the_same(both: SideBySide, step: str) -> None:
    """A step that runs, one that waits for a lock; what must always run, runs."""
    waiting = {"locks": [LOCK.access("exclusive")]} if step == "waiting" else {}
    build = [
        sh("sleep 60", "interrupted", **waiting),
        sh("echo never", "never"),
        sh("echo always; exit 1", "always", alwaysRun=True),
        steps.StringDownload("x", workerdest="always", alwaysRun=True),
        sh("cat always", "has it", alwaysRun=True),
    ]
    holding = await _held(both) if waiting else None
    sides = []
    for kind in ("local", "sandbox"):
        request = await both.master.begin(kind, build)
        await both.master.step_started(request, "interrupted")
        await pause(1)
        await both.master.stop_build(request)
        sides.append(await both.side(kind, request))
    if holding is not None:
        await both.master.stop_build(holding)
        await both.master.finished(holding)
    assert_same((sides[0], sides[1]))
    assert sides[1].build["always"].out == "always"


async def _held(both: SideBySide) -> int:
    """A build on another worker that has the lock."""
    request = await both.master.begin(
        "local-child", [sh("sleep 60", "holds", locks=[LOCK.access("exclusive")])]
    )
    await both.master.step_started(request, "holds")
    await pause(1)
    return request


@pytest_twisted.ensureDeferred
async def test_a_virtual_builder_has_the_build(both: SideBySide) -> None:
    for kind in ("local", "sandbox"):
        request = await both.master.begin(
            kind,
            [sh("pwd", "pwd"), sh(["echo", util.Property("buildername")], "name")],
            virtual_builder_name=f"virtual-{kind}",
            virtual_builder_tags=["virtual"],
        )
        side = await both.side(kind, request)
        assert side.build.result == "success"
        assert side.build["pwd"].out == f"{both.base(kind)}/{kind}/build"
        data = both.master.master.data
        build = await data.get(("builds", side.build.id))
        builder = await data.get(("builders", build["builderid"]))
        assert builder["name"] == f"virtual-{kind}"
        assert side.build["name"].out == kind


def _where(sourcestamps: Any) -> str:
    return f"chosen/{len(sourcestamps)}"


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("workdir", ["of/factory", "/tmp/of factory", _where])
async def test_a_factory_s_workdir_is_kept(both: SideBySide, workdir: Any) -> None:
    def factory(_out: Path) -> BuildFactory:
        made = BuildFactory(
            [sh("pwd", "pwd"), steps.StringDownload("x", workerdest="f"), sh("cat f", "cat")]
        )
        made.workdir = workdir
        return made

    sides = []
    for kind in ("local", "sandbox"):
        builder = both.master.master.botmaster.builders[kind]
        before, builder.config.factory = builder.config.factory, factory(both.out(kind))
        try:
            sides.append(await both.side(kind, await both.master.submit(kind)))
        finally:
            builder.config.factory = before
    assert_same((sides[0], sides[1]))
    assert sides[1].build.result == "success"


# ---- source --------------------------------------------------------------------------------------

AUTHOR = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in {"NAME": "A", "EMAIL": "a@b", "DATE": "2024-01-01T00:00:00Z"}.items()
}
REPOSITORY = r"""git init -q -b main ../repo && cd ../repo && echo one >file && git add file &&
git commit -q -m one && git tag v1 && echo two >file && git commit -q -a -m two &&
git checkout -q -b side && echo side >other && git add other && git commit -q -m side &&
git checkout -q main"""
PATCH = "--- a/file\n+++ b/file\n@@ -1 +1 @@\n-two\n+patched\n"
NO_PATCH = "no patch at all\n"


def git_steps(_out: Path) -> list[Any]:
    def git(name: str, **more: Any) -> Any:
        return steps.Git(
            repourl=util.Interpolate("%(prop:builddir)s/repo"), branch="main", name=name, **more
        )

    show = "git rev-parse HEAD; git status --short; git describe --tags --always; cat file"
    return [
        sh(REPOSITORY, "repository", env=AUTHOR),
        git("clone"),
        sh(show, "cloned"),
        git("again", mode="incremental", getDescription={"tags": True}),
        git("clobber", mode="full", method="clobber"),
        git("fresh", mode="full", method="fresh"),
        sh(show, "all done"),
        steps.GitCommit(paths=["file"], messages=["mine"], emptyCommits="ignore", env=AUTHOR),
        steps.GitDiffInfo(compareToRef="v1", **GO_ON),
        git("submodules", submodules=True, workdir="else where"),
        steps.Git(repourl="/no/such/repository", name="absent", workdir="absent", **GO_ON),
    ]


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("patch", [None, PATCH, NO_PATCH], ids=["plain", "try", "bad"])
async def test_git_takes_a_repository_in_the_sandbox_and_a_try_patch(
    both: SideBySide, patch: str | None
) -> None:
    sourcestamp: dict[str, Any] = {}
    if patch is not None:
        sourcestamp = {
            "patch_body": patch.encode(), "patch_level": 1, "patch_subdir": "",
            "patch_author": "me", "patch_comment": "mine",
        }  # fmt: skip
    sides = await both.both(git_steps, stamps=[sourcestamp])
    assert_same(sides)
    if patch == NO_PATCH:
        assert sides[1].build["clone"].result == "failure"
    else:
        assert ("patched" in sides[1].build["cloned"].out) == (patch is not None)
