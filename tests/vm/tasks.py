"""What the machine is told to do, in lines for the shell of `inside/init`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

#: The exit code that says that there is no engine to test.
NO_ENGINE = 120
#: Fills the disk that Docker starts with, from the archives on further disks.
PREPARE = """\
mkfs.xfs -q -f /dev/vdb && docker_engine || return 1
for archive in /dev/vd[e-z]; do
    docker load --quiet --input "$archive" || return 1
done
kill "$(cat /run/dockerd.pid)"
wait
umount /var/lib/docker
"""
_TESTS = """\
docker_engine || return {no_engine}
cd /payload/project || return 1
export {environ}
pytest -p no:cacheprovider {arguments} </dev/null 2>&1
"""


def tests(arguments: Sequence[str], environ: Mapping[str, object]) -> str:
    """Run pytest with these arguments and variables; its exit code, or `NO_ENGINE`."""
    lines = [f"{name}={value}" for name, value in environ.items()]
    return _TESTS.format(
        no_engine=NO_ENGINE, environ=shlex.join(lines), arguments=shlex.join(arguments)
    )
