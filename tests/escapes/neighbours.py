"""T13, T14: the keeper, and another build at the same time."""

from __future__ import annotations

from escapes.attempt import Attempt, Otherwise, got_through, hostile, python, shell

_DENIED, _NOT_PERMITTED = "2 processes: Permission denied", "2 processes: Operation not permitted"
_KEEPER_SHOWN = (
    "gVisor lets it be read, and it holds nothing: the keeper's environment and program are known"
)

ATTEMPTS = (
    hostile("T14", "processes/ptrace", "trace the keeper", _NOT_PERMITTED, brief=True),
    hostile("T14", "processes/copy-memory", "copy the keeper's memory", _NOT_PERMITTED,
            Otherwise("2 processes: Function not implemented")),
    hostile("T14", "processes/open-memory", "open the keeper's memory", _DENIED, got_through(
        "processes/open-memory", r"process \d+", _KEEPER_SHOWN)),
    hostile("T14", "processes/environment", "read the keeper's environment", _DENIED, got_through(
        "processes/environment", r"process \d+", _KEEPER_SHOWN)),
    hostile("T14", "processes/root", "enter the keeper's root", _DENIED),
    hostile("T14", "processes/keeper-stdin", "hold the keeper's stdin open", _DENIED, brief=True),
    hostile("T14", "processes/descriptors", "take the keeper's descriptors",
            "2 processes: Function not implemented"),
    hostile("T14", "processes/kill", "stop or kill the keeper", _NOT_PERMITTED, brief=True),
    Attempt("T14-kill-everybody", "kill every process that there is", shell(
        "trap '' TERM; kill -TERM 1; kill -STOP 1; kill -KILL 1; echo tried"),
        "(.*Operation not permitted\n+){3}tried"),
    Attempt("T14-limits-of-keeper", "change the keeper's limits", python(
        "import resource\ntell(resource.prlimit, 1, resource.RLIMIT_CPU, (1, 1))"), "EPERM",
        Otherwise("EPERM|ENOSYS")),
    Attempt("T14-nice-keeper", "slow the keeper down", python(
        "tell(os.setpriority, os.PRIO_PROCESS, 1, 19)"), "EPERM|EACCES", Otherwise(
            "DONE None", "gVisor keeps the number and does nothing by it")),
    hostile("T13", "processes/neighbours", "see a neighbour's processes",
            "only the build's and the keeper's processes", brief=True),
    Attempt("T13-files", "find what a neighbour wrote", python(
        "found = []\n"
        "for place in ('/build', '/tmp', '/dev/shm', '/run', '/var', '/dev/mqueue'):\n"
        "    for folder, _, names in os.walk(place):\n"
        "        found += [n for n in names if FACTS['token'] in n]\n"
        "print(found)"), r"\[\]", brief=True),
    Attempt("T13-shared-memory", "attach to a neighbour's shared memory", python(
        "tell(lambda: check(libc.shmget(FACTS['key'], 0, 0o600)))"), "ENOENT"),
    Attempt("T13-semaphore", "use a neighbour's semaphore", python(
        "tell(lambda: check(libc.semget(FACTS['key'], 1, 0)))"), "ENOENT"),
    Attempt("T13-queue", "use a message queue", python(
        "tell(lambda: check(libc.msgget(FACTS['key'], 0)))\n"
        "tell(call, 'mq_open', b'/q', 0o102, 0o600, None)"), "ENOENT\nENOSYS", Otherwise(
            "ENOENT\n(ENOSYS|EACCES)", "refused by gVisor's own kernel")),
    Attempt("T13-abstract-socket", "connect to a neighbour's abstract socket", python(
        "tell(connect, socket.AF_UNIX, chr(0) + FACTS['token'])"), "ECONNREFUSED"),
    Attempt("T13-port", "connect to a neighbour's port", python(
        "tell(connect, socket.AF_INET, ('127.0.0.1', FACTS['neighbour_port']))"), "ECONNREFUSED",
        brief=True),
    Attempt("T13-signal", "kill a neighbour by its pid", python(
        "tell_all(lambda p: os.kill(p, 9), FACTS['neighbour_pids'])"), "ESRCH", Otherwise("ESRCH")),
    Attempt("T13-user", "take a neighbour's uid", python(
        "tell(os.setresuid, *[FACTS['neighbour_uid']] * 3)"), "EPERM"),
)  # fmt: skip
