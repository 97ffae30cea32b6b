"""``make demo``: one real Buildbot master, one honest and one hostile pull request.

Builds a real C project in sandboxes, and shows what a pull request that tries to break out of
its sandbox gets. Exit code: 0 when all went as it must, 1 when not, 2 when it could not be tried.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import click
import docker
from buildbot.process.results import FAILURE, SUCCESS, Results
from demo_master import Master
from demo_project import DemoError, Project, fetch_source, honest_change, hostile_change
from docker.errors import DockerException
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent / ".engine" / "demo-source"

PATIENCE_SECONDS = 900
HEARTBEAT_SECONDS = 10
#: How soon after the last build its container must be gone.
VANISH_SECONDS = 10
#: The policy's `max_step_output`, give or take what a log's own first and last lines add.
FLOOD_BYTES = range(2 * 1024 * 1024, 4 * 1024 * 1024 + 64 * 1024)

ATTEMPT = re.compile(r"ATTEMPT (\S+): (refused|GOT THROUGH|unclear) \((.*)\)")
#: How the sandbox says, in a step's log, why it ended the step.
REASON = re.compile(r"^sandboxworker: ([^;,]*)", re.MULTILINE)
ATTEMPT_COUNT = re.compile(r"^ATTEMPTS (\d+)$", re.MULTILINE)

#: In a log file nobody knows the width; the longest lines are the table's.
console = Console(
    highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 130, record=True
)


def say(text: str) -> None:
    console.print(f"[bold]==>[/bold] {text}")


@attrs.frozen
class PullRequest:
    """One of the two, and the ref that it was pushed as."""

    name: str
    ref: str


@attrs.frozen
class Attempt:
    """What one attempt of the hostile build got."""

    name: str
    verdict: str
    why: str

    @property
    def refused(self) -> bool:
        return self.verdict == "refused"


@attrs.frozen
class Check:
    """Something that must be so, whether it is, and whose logs tell why if it is not."""

    claim: str
    holds: bool
    logs: str = ""


# ---- following the builds ------------------------------------------------------------------------


@attrs.define
class Follower:
    """Prints every step of the builds as it ends, and a sign of life in between."""

    master: Master
    containers: Containers
    requests: list[PullRequest]
    _printed: set[int] = attrs.field(factory=set)
    _started: float = attrs.field(factory=time.monotonic)
    _last_sign: float = attrs.field(factory=time.monotonic)

    def follow(self) -> None:
        """Return when the build of every pull request is complete."""
        with console.status("building") as status:
            while not self._look():
                if time.monotonic() - self._started > PATIENCE_SECONDS:
                    raise DemoError(f"The builds did not end within {PATIENCE_SECONDS} s.")
                status.update(self._now())
                self._sign_of_life()
                time.sleep(0.5)

    def _look(self) -> bool:
        self.containers.look(self.master)
        builds = self.master.builds()
        for request in self.requests:
            if request.ref in builds:
                self._print_ended(request, builds[request.ref])
        return all(
            request.ref in builds and builds[request.ref]["complete"] for request in self.requests
        )

    def _print_ended(self, request: PullRequest, build: dict[str, Any]) -> None:
        for step in self.master.steps(build):
            if step["complete"] and step["stepid"] not in self._printed:
                self._printed.add(step["stepid"])
                console.print(f"    {request.name:8} {_step_line(step)}")
                self._last_sign = time.monotonic()

    def _now(self) -> str:
        """What is going on: the running step of each build."""
        builds = self.master.builds()
        running = [
            f"{request.name}: {step['name']}"
            for request in self.requests
            if request.ref in builds
            for step in self.master.steps(builds[request.ref])
            if step["started_at"] and not step["complete"]
        ]
        seconds = time.monotonic() - self._started
        return f"{seconds:.0f} s, {', '.join(running) or 'waiting for the poller'}"

    def _sign_of_life(self) -> None:
        """For a log file, where no spinner turns."""
        if not console.is_terminal and time.monotonic() - self._last_sign > HEARTBEAT_SECONDS:
            self._last_sign = time.monotonic()
            console.print(f"    … {self._now()}")


def _step_line(step: dict[str, Any]) -> str:
    seconds = step["complete_at"] - step["started_at"]
    text = f"{step['name']:18} {Results[step['results']]:9} {seconds:4d} s"
    return text if step["results"] == SUCCESS else f"{text}   {escape(step['state_string'])}"


# ---- judging -------------------------------------------------------------------------------------


@attrs.frozen
class Outcome:
    """One complete build, with the texts that it is judged by."""

    result: int
    steps: dict[str, dict[str, Any]]
    compile_log: str
    test_log: str


def outcome_of(master: Master, request: PullRequest) -> Outcome:
    build = master.builds()[request.ref]
    steps = {step["name"]: step for step in master.steps(build)}

    def log(name: str) -> str:
        return master.step_log(steps[name]) if name in steps else ""

    return Outcome(build["results"], steps, log("compile"), log("test"))


def attempts_of(outcome: Outcome) -> list[Attempt]:
    """What the attempts themselves said, then what became of the flooded log."""
    said = [Attempt(*found) for found in ATTEMPT.findall(outcome.compile_log)]
    return [*said, _flood(outcome)]


def _flood(outcome: Outcome) -> Attempt:
    step = outcome.steps.get("test")
    if step is None:
        return Attempt("exhaust/log", "unclear", "it was not tried")
    size = len(outcome.test_log)
    cut = size in FLOOD_BYTES and not ATTEMPT.search(outcome.test_log)
    reasons = REASON.findall(outcome.test_log) or [step["state_string"]]
    why = f"after {size / 2**20:.1f} MiB: {reasons[-1]}"
    return Attempt("exhaust/log", "refused" if cut else "GOT THROUGH", why)


def checks_of(honest: Outcome, hostile: Outcome) -> Iterator[Check]:
    attempts = attempts_of(hostile)
    refused = sum(attempt.refused for attempt in attempts)
    promised = ATTEMPT_COUNT.search(hostile.compile_log)
    complete = promised is not None and int(promised[1]) == len(attempts) - 1
    compiled = hostile.steps.get("compile", {}).get("results") == SUCCESS
    failed = hostile.result == FAILURE
    yield Check("the honest pull request was built and tested", honest.result == SUCCESS, "honest")
    yield Check("the hostile one tried all that it knows", complete, "hostile")
    yield Check(f"{refused} of {len(attempts)} attempts were refused", refused == len(attempts))
    yield Check("its build went on after the attempts", compiled, "hostile")
    yield Check("its flooded log made it a failure, not a retry", failed, "hostile")


def print_attempts(attempts: list[Attempt]) -> None:
    frame = box.SIMPLE if console.is_terminal else None
    say("what the hostile pull request got:")
    table = Table("attempt", "outcome", "what it got", box=frame, pad_edge=True)
    for attempt in attempts:
        colour = "green" if attempt.refused else "bold red"
        verdict = f"[{colour}]{attempt.verdict}[/{colour}]"
        table.add_row(escape(attempt.name), verdict, escape(attempt.why))
    console.print(table)


def print_checks(checks: list[Check]) -> None:
    for check in checks:
        mark = "[green]  ok  [/green]" if check.holds else "[bold red]FAILED[/bold red]"
        console.print(f"{mark}  {check.claim}")


def print_ends(name: str, outcome: Outcome) -> None:
    """The last lines of what went wrong, for whoever has to find out why."""
    for step, text in (("compile", outcome.compile_log), ("test", outcome.test_log)):
        say(f"the end of the {name} build's {step} log:")
        for line in text.splitlines()[-20:]:
            console.print(f"    {escape(line[:200])}")


# ---- the engine ----------------------------------------------------------------------------------


class Containers:
    """The engine's containers, as far as they are of the demo's master."""

    def __init__(self) -> None:
        #: Else that none is left would show nothing.
        self.seen: set[str] = set()
        try:
            self._engine = docker.from_env(timeout=30)
            self._engine.ping()
        except DockerException as error:
            raise DemoError(
                f"The container engine does not answer: {error}\n"
                "Start one with `make engine`, or name yours in DOCKER_HOST."
            ) from error

    def look(self, master: Master) -> None:
        """Note what there is now."""
        self.seen |= set(self._names(master))

    def left(self, master: Master) -> list[str]:
        """Whatever is still there after the time that it has to vanish."""
        deadline = time.monotonic() + VANISH_SECONDS
        while names := self._names(master):
            if time.monotonic() > deadline:
                return names
            time.sleep(0.2)
        return []

    def _names(self, master: Master) -> list[str]:
        label = f"sandboxworker.master={master.id}"
        found = self._engine.containers.list(
            all=True, ignore_removed=True, filters={"label": label}
        )
        return [str(container.name) for container in found]


# ---- the demo ------------------------------------------------------------------------------------


def submit(project: Project) -> list[PullRequest]:
    titles = {
        "honest": "Correct two slips in the help",
        "hostile": "Speed up the build",
    }
    changes = {"honest": honest_change, "hostile": hostile_change}
    requests = []
    for number, (name, title) in enumerate(titles.items(), start=1):
        ref = project.submit(number, title, changes[name])
        say(f"pull request {number}, {name}: “{title}” ({ref})")
        requests.append(PullRequest(name, ref))
    return requests


def build(master: Master, project: Project, containers: Containers) -> list[Check]:
    """Both pull requests, from the push to the last line of the tables."""
    requests = submit(project)
    Follower(master, containers, requests).follow()
    outcomes = {request.name: outcome_of(master, request) for request in requests}
    print_attempts(attempts_of(outcomes["hostile"]))
    checks = list(checks_of(outcomes["honest"], outcomes["hostile"]))
    for name in sorted({check.logs for check in checks if check.logs and not check.holds}):
        print_ends(name, outcomes[name])
    return checks


def run(directory: Path) -> list[Check]:
    containers = Containers()
    say("fetching the source package of a real C project")
    source = fetch_source(CACHE)
    project = Project(directory)
    project.create(source)
    say(f"{source.name} is the main branch of a git repository")
    master = Master(directory / "master", project.bare)
    try:
        master.start()
        say(f"a Buildbot master runs: {master.url}")
        checks = build(master, project, containers)
    finally:
        say("stopping the master")
        stopped = master.stop()
    left, seen = containers.left(master), len(containers.seen)
    checks.append(Check("each had a container of its own", seen >= 2))
    checks.append(Check("the master stopped when it was asked to", stopped))
    checks.append(Check(f"no container is left{': ' * bool(left)}{', '.join(left)}", not left))
    return checks


@click.command(help="Build an honest and a hostile pull request, and show what each got.")
@click.option("--picture", type=click.Path(dir_okay=False), help="Write the output as SVG, too.")
def main(picture: str | None) -> None:
    code = demo()
    if picture is not None:
        # The reader's own monospaced font will do: nothing is to be fetched for a picture.
        svg = re.sub(r"@font-face \{.*?\}", "", console.export_svg(title="make demo"), flags=re.S)
        Path(picture).write_text(svg)
    sys.exit(code)


def demo() -> int:
    directory = Path(tempfile.mkdtemp(prefix="sandboxworker-demo-"))
    keep = False
    try:
        checks = run(directory)
        print_checks(checks)
        keep = not all(check.holds for check in checks)
        return int(keep)
    except DemoError as error:
        keep = (directory / "master").exists()
        console.print(f"[bold red]error:[/bold red] {escape(str(error))}")
        return 2
    except KeyboardInterrupt:
        console.print("interrupted")
        return 130
    finally:
        if keep:
            say(f"the master's directory is kept: {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
