"""The arguments of Buildbot's own workers, one by one: what takes the place of each here, and why.

Data. ``docs/migrating.md`` says the same sentences to people; a test compares the two with each
other and with the arguments that Buildbot's workers take.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Taken here too, with the same meaning.
SAME = (
    "notify_on_missing",
    "missing_timeout",
    "properties",
    "defaultProperties",
    "locks",
    "machine_name",
)

#: Taken with one value only: that value, and why.
FIXED: Mapping[str, tuple[Any, str]] = {
    "build_wait_timeout": (0, "a sandbox is never reused, so builds cannot share one"),
    "max_builds": (1, "one sandbox is one build's; configure more workers for more builds"),
}

_NOTHING_CONNECTS = "nothing connects to the master from inside, so it is of no use; leave it out"
_BUILD_BEFORE = (
    "no image is built for a build; build it on the engine beforehand and name it in "
    "policy=SandboxPolicy(image=…)"
)
_NO_PULL = (
    "nothing is pulled for a build; pull the image on the engine beforehand, and again when it "
    "shall change"
)
_NO_KUBERNETES = (
    "Kubernetes is not spoken; engine= is the URL of a Docker Engine, unix:///path or "
    "tcp://host:2376"
)

#: Not taken: what takes its place, or why there is nothing.
REFUSED: Mapping[str, str] = {
    "password": "there is none, since nothing logs in; leave it out",
    "keepalive_interval": "there is no connection to keep alive; leave it out",
    "check_instance_interval": (
        "a sandbox that ends is noticed at once, without asking; leave it out"
    ),
    "workdir": (
        "nothing of a build is on the master's disk; where it works inside the sandbox is "
        "policy=SandboxPolicy(workspace=…)"
    ),
    "image": (
        "it belongs into the policy: policy=SandboxPolicy(image=…), as plain text, since a build "
        "must not choose its own image (T19); the image needs no buildbot-worker"
    ),
    "masterFQDN": _NOTHING_CONNECTS,
    "master_protocol": _NOTHING_CONNECTS,
    "docker_host": (
        "now engine=, with the same URL; without one DOCKER_HOST is taken, and without that "
        "Docker's own socket"
    ),
    "command": (
        "the container runs our keeper and nothing of the image's own; what shall run is a step"
    ),
    "volumes": (
        "nothing of the host is mounted into a sandbox (T2, T13); bring files in and out with "
        "steps such as FileDownload and DirectoryUpload"
    ),
    "dockerfile": _BUILD_BEFORE,
    "custom_context": _BUILD_BEFORE,
    "encoding": _BUILD_BEFORE,
    "target": _BUILD_BEFORE,
    "buildargs": _BUILD_BEFORE,
    "autopull": _NO_PULL,
    "alwaysPull": _NO_PULL,
    "version": "the version of the engine's API is asked of the engine; leave it out",
    "tls": (
        "give engine='tcp://host:2376', and in DOCKER_CERT_PATH of the master's environment the "
        "folder with ca.pem, cert.pem and key.pem"
    ),
    "followStartupLogs": (
        "nothing starts up inside that could log; the audit lines in twistd.log tell each "
        "transition of a sandbox"
    ),
    "hostconfig": (
        "no raw create request passes (T2, T3, T4); limits are fields of the policy, such as "
        "memory=, cpus= and shm="
    ),
    "hostname": "every sandbox has the same host name, which tells nothing of the host (T16)",
    "namespace": _NO_KUBERNETES,
    "kube_config": _NO_KUBERNETES,
}

#: For a second argument without a name, where Buildbot's workers take the password.
POSITIONAL = (
    "only the name is given without a keyword: policy=…, engine=…; there is no password, "
    "since nothing logs in"
)


def argument_faults(positional: tuple[Any, ...], given: Mapping[str, Any]) -> list[str]:
    """A sentence for each argument that is not taken; never shows a value that may be secret."""
    return [
        *([POSITIONAL] if positional else []),
        *(
            f"{name}={given[name]!r}: always {value!r} here; {why}"
            for name, (value, why) in FIXED.items()
            if given.get(name, value) != value
        ),
        *(
            f"{name}=: {REFUSED.get(name, 'no such argument; limits belong into policy=')}"
            for name in sorted(set(given) - {*SAME, *FIXED})
        ),
    ]


def worker_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """What of it is handed to Buildbot's own class."""
    fixed = {name: value for name, (value, _) in FIXED.items()}
    return {**{name: given[name] for name in SAME if name in given}, **fixed}
