"""How one build in a sandbox ends: decided here, whoever or whatever brings it about."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from buildbot.process.results import CANCELLED, EXCEPTION, FAILURE, RETRY, Results, worst_status
from twisted.internet import defer
from twisted.python import log
from twisted.python.failure import Failure

from sandboxworker.audit import Audit, Event
from sandboxworker.engine.interface import Usage
from sandboxworker.errors import Actor, SandboxworkerError
from sandboxworker.outcome import Known, Verdict, judge
from sandboxworker.policy import SandboxPolicy, show_seconds
from sandboxworker.properties import give
from sandboxworker.retries import FAULT, Fault, former_faults, history, may_retry
from sandboxworker.sandbox import DEADLINE_GRACE, Sandbox
from sandboxworker.struck import Struck
from sandboxworker.unexpected import unexpected

#: Seconds that a finished build waits to be told what it has used.
USAGE_DEADLINE = 5.0
#: Seconds that a step between two commands may take to end by itself when time is over.
INTERRUPT_AFTER = 2.0
#: Seconds until it is looked again whether Buildbot would notice a lost connection.
NOTICED_AFTER = 0.05
#: Seconds past `max_runtime` after which a build is over, though a step on the master is not.
FINISH_DEADLINE = DEADLINE_GRACE + 30.0
#: Characters of a reason that is kept as a property.
_LONGEST_REASON = 500
_SOURCE = "SandboxLatentWorker"

End = tuple[Any, int]


class Ending:
    """The end of one build.

    ``worker``: the worker's name; ``audit``: tells events as this build's;
    ``max_retries``: how often its build request may be built again after faults that are not its.
    ``sandbox`` and ``connection`` are set once they are there.
    """

    sandbox: Sandbox | None = None
    connection: Any = None
    #: Of the running build; what a reconfigure brings is for the next one.
    policy: SandboxPolicy

    def __init__(self, worker: str, build: Any, audit: Audit, max_retries: int) -> None:
        self._worker = worker
        self._build = build
        self._audit = audit
        self._max_retries = max_retries
        #: Its last step is over: what befalls the sandbox now does not change its result.
        self.is_over = False
        self._refused_by: Actor | None = None
        self._fault: str | None = None
        self._failure: str | None = None
        before_finish(build, self._end)

    @property
    def _struck(self) -> Struck | None:
        return None if self.connection is None else self.connection.struck

    # what brings it about

    def attached(self, connection: Any) -> None:
        """Buildbot has the connection now."""
        self.connection = connection
        if self.sandbox is not None and self.sandbox.lost is not None:
            self.lost(self.sandbox.lost)

    async def refused(self, error: SandboxworkerError) -> None:
        """It gets no sandbox. Tell why in the build's own log, in one sentence.

        Buildbot would show the traceback of whatever the start raises, but for a build that is
        stopped already, as this one then is.
        """
        self._refused_by = error.actor
        build, sentence = self._build, f"worker {self._worker!r}: {error}"
        log.msg(f"sandboxworker: {sentence}")
        step = build._preparation_step
        await step.addCompleteLog("sandboxworker", f"{sentence}\n")
        await build.master.data.updates.setStepStateString(step.stepid, "no sandbox could be made")
        is_fault = error.actor is Actor.ENGINE
        if is_fault:
            self._fault = sentence
        _stop(build, sentence, RETRY if is_fault else EXCEPTION)

    def lost(self, reason: Exception) -> None:
        """Its sandbox ended without being asked to."""
        log.msg(f"sandboxworker: worker {self._worker!r} lost its sandbox: {reason}")
        if self.is_over or self.connection is None:  # Told when it is attached.
            return
        if _is_the_builds_doing(reason):
            self._fail(reason)
        else:
            self.connection.suspend()
            looking = defer.ensureDeferred(self._find_out(reason))
            looking.addErrback(unexpected("finding out why a sandbox was lost"))
            looking.addErrback(lambda _: self._lose_connection())

    async def _find_out(self, reason: Exception) -> None:
        """Whether the build brought it about; to be tried again would be no punishment."""
        if self.sandbox is not None:
            reason = await self.sandbox.post_mortem(reason)
        if self.is_over:
            return
        if _is_the_builds_doing(reason):
            self._fail(reason)
        else:
            self._fault = self._sentence(reason)
            self._lose_connection()

    def _lose_connection(self) -> None:
        """Have Buildbot take the build back, as soon as it notices.

        Between its ping and the first step it waits for its database and does not listen; a
        connection that is lost meanwhile leaves the build without an end.
        """
        if self.is_over:
            return
        if self._build.conn is None:
            self._build.master.reactor.callLater(NOTICED_AFTER, self._lose_connection)
        else:
            self.connection.loseConnection()

    def _sentence(self, reason: Exception) -> str:
        return f"worker {self._worker!r} lost its sandbox: {reason}"

    def _fail(self, reason: Exception) -> None:
        """To lose the connection would have it tried again."""
        if self._struck is not None:
            self._struck.died_of(reason)
        sentence = f"sandboxworker: {reason}"
        if self._build.results != CANCELLED:
            self._failure = sentence
            _stop(self._build, sentence, FAILURE)
        self.connection.fail(sentence)

    def expired(self) -> None:
        """Its time is over, which is its own doing: it fails, and is not tried again."""
        build = self._build
        if self.is_over:
            return
        limit = show_seconds(self.policy.max_runtime)
        self._failure = reason = f"sandboxworker: the policy's max_runtime of {limit} is over"
        if self._struck is not None:
            self._struck.expired()
        is_running = self.connection is not None and self.connection.expire(reason)
        _stop(build, reason, FAILURE)
        if not is_running:
            self._interrupt_later(reason)
        build.master.reactor.callLater(FINISH_DEADLINE, self._finish_anyhow, reason)

    def _interrupt_later(self, reason: str) -> None:
        """What a step does on the master's side is soon over, as a rule; a lock may be waited for.

        A step that is about to begin or to end does not take an interruption well.
        """
        self._build.master.reactor.callLater(
            INTERRUPT_AFTER, self._interrupt, reason, self._build.currentStep
        )

    def _interrupt(self, reason: str, step: Any) -> None:
        build = self._build
        if self.is_over:
            return
        if step is None or step.stepid is None or build.currentStep is not step:
            self._interrupt_later(reason)
            return
        stopping = build.stopBuild(reason, results=FAILURE)
        stopping.addErrback(self._not_interrupted, reason)

    def _not_interrupted(self, failure: Failure, reason: str) -> None:
        """It was just ending, as a rule."""
        error = failure.getErrorMessage()
        log.msg(f"sandboxworker: worker {self._worker!r}: a step was not interrupted: {error}")
        self._interrupt_later(reason)

    def _finish_anyhow(self, reason: str) -> None:
        """A step on the master's side does not end; the build does not wait for it."""
        if not self.is_over:
            log.msg(f"sandboxworker: worker {self._worker!r}: a step outlives its build: {reason}")
            self._build.buildFinished(["failed", f"({reason})"], FAILURE)

    # the end

    async def _end(self, text: Any, results: int) -> End:
        """What the build ends as; told as properties, in the audit log and, for faults, its log."""
        self.is_over = True
        if self._failure is not None:
            # An interrupted step counts as an exception, for which Buildbot blames the worker.
            text, results = ["failed", f"({self._failure})"], FAILURE
        if results == RETRY and self._fault is None and _is_unprepared(self._build):
            self._refused_by = Actor.ENGINE
            self._fault = f"worker {self._worker!r} could not be prepared"
        usage = await self._usage()
        verdict = judge(self._known(results))
        if verdict.outcome.is_fault:
            text, results = await self._end_for_a_fault(text)
        await self._tell(verdict, usage)
        return text, results

    def _known(self, results: int) -> Known:
        struck = self._struck
        return Known(
            Results[results],
            refused_by=self._refused_by,
            is_lost=self._fault is not None,
            withheld=frozenset() if struck is None else frozenset(struck.refused),
            cause=None if struck is None else struck.cause,
        )

    async def _usage(self) -> Usage:
        return Usage() if self.sandbox is None else await self.sandbox.usage(USAGE_DEADLINE)

    async def _end_for_a_fault(self, text: Any) -> End:
        """Built again, or not any more."""
        build = self._build
        faults = [*await former_faults(build), Fault(build.number, self._fault or "not known")]
        step = build.executedSteps[-1] if build.executedSteps else build._preparation_step
        if step is not None and step.stepid is not None:
            await step.addCompleteLog("retries", history(faults, self._max_retries))
        if may_retry(len(faults), self._max_retries):
            return text, RETRY
        return ["exception", f"({len(faults)} faults of the infrastructure)"], EXCEPTION

    async def _tell(self, verdict: Verdict, usage: Usage) -> None:
        ended = {
            "outcome": verdict.outcome.value,
            "cause": None if verdict.cause is None else verdict.cause.value,
            "memory_peak": usage.memory_peak,
            "cpu_seconds": usage.cpu_seconds,
        }
        known = {name: value for name, value in ended.items() if value is not None}
        if self.sandbox is not None:
            self.sandbox.conclude(**known)
        else:
            fields = {"worker": self._worker, "outcome": verdict.outcome.value}
            self._audit(Event("build.concluded", fields=fields))
        properties: dict[str, Any] = {f"sandbox_{name}": value for name, value in known.items()}
        if self._struck is not None and self._struck.fields:
            properties["sandbox_limits"] = list(self._struck.fields)
        if verdict.outcome.is_fault and self._fault is not None:
            properties[FAULT] = self._fault[:_LONGEST_REASON]
        await give(self._build, properties, _SOURCE)


def _stop(build: Any, reason: str, results: int) -> None:
    """``stopBuild`` without its interruption of a step, which would make that CANCELLED."""
    build.stopped, build.stopped_reason, build.results = True, reason, results


def _is_the_builds_doing(reason: Exception) -> bool:
    return isinstance(reason, SandboxworkerError) and reason.actor is Actor.BUILD


def _is_unprepared(build: Any) -> bool:
    """Whether Buildbot gave it back before its first step, and nobody had stopped it."""
    return not build.stopped and not build.executedSteps


def before_finish(build: Any, end: Callable[[Any, int], Awaitable[End]]) -> None:
    """Have ``end(text, results)`` say as what this build is marked finished, and do what it likes.

    Buildbot has no hook between a build's last step and its being marked finished, and reporters
    look at the properties right then; so its method is wrapped, for this one build.
    """
    finish = type(build).buildFinished

    @defer.inlineCallbacks
    def build_finished(text: Any, results: int) -> Any:
        results = worst_status(build.results, results)
        ending = defer.ensureDeferred(_awaited(end(text, results)))
        ending.addErrback(unexpected("telling how a build ended"))
        # Where nobody could count the attempts there is no further one.
        not_told = (text, EXCEPTION if results == RETRY else results)
        text, build.results = (yield ending) or not_told
        yield finish(build, text, build.results)

    build.buildFinished = build_finished


async def _awaited(ending: Awaitable[End]) -> End:
    return await ending
