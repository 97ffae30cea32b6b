#!/usr/bin/env python3
"""What the profile costs: one C project built with it, and with a profile that allows everything.

The two builds alternate in pairs, the order within a pair changing, so that a machine that slows
down slows both; what is told is the median of the pairs' ratios, by the clock and by the
processor time of the build.  Each build runs alone in a fresh container of the same limits; only
the profile differs.  On a loaded machine the processor time alone says something.

    .venv/bin/python benchmarks/seccomp.py [--pairs 9] [--files 60] [--image IMAGE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import docker

from sandboxworker.engine.address import resolve
from sandboxworker.policy import SandboxPolicy
from sandboxworker.seccomp import load
from sandboxworker.spec import Identity, ImageFacts, build_spec, create_body

#: Files with headers of many lines, each compiled by a process of its own, and linked.
BUILD = """\
mkdir -p /build/p && cd /build/p
i=0; while [ $i -lt {files} ]; do
printf '#include <%s.h>\\n' stdio stdlib string math >f$i.c
j=0; while [ $j -lt 40 ]; do
echo "double f${{i}}_$j(double x) {{ return sqrt(x + $j) * sin(x) + atof(\\"$j.5\\"); }}" >>f$i.c
j=$((j + 1)); done
i=$((i + 1)); done
echo 'int main(void) {{ return 0; }}' >main.c
printf 'all: $(patsubst %%.c,%%.o,$(wildcard *.c))\\n\\t$(CC) -o program *.o -lm\\n' >Makefile
begin=$(date +%s%N); make -s -j2 CFLAGS=-O1 all; end=$(date +%s%N)
times >t; ./program && echo took $((end - begin)) $(tail -n 1 t)
"""


def measure(client: Any, body: dict[str, Any]) -> tuple[float, float]:
    """Seconds that the build itself took, by the clock and of processors."""
    made = client.create_container_from_config(body, body["Labels"]["name"])
    try:
        client.start(made["Id"])
        client.wait(made["Id"], timeout=300)
        words = client.logs(made["Id"]).decode().split()
    finally:
        client.remove_container(made["Id"], force=True)
    if words[-4:-3] != ["took"]:
        raise SystemExit(f"the build failed: {' '.join(words)[-300:]}")
    return int(words[-3]) / 1e9, sum(map(_seconds, words[-2:]))


def _seconds(text: str) -> float:
    """``0m1.250s``, as the shell's ``times`` has it."""
    minutes, _, seconds = text.rstrip("s").partition("m")
    return 60 * int(minutes) + float(seconds)


def bodies(client: Any, image: str, files: int) -> dict[str, dict[str, Any]]:
    """The create requests: the sandbox's own, and the same with everything allowed."""
    facts = ImageFacts(image, client.inspect_image(image)["Id"])
    spec = build_spec(SandboxPolicy(image, cpus=2.0, memory="2g"), facts, load("build"))
    found = {}
    for name in ("with", "without"):
        body = create_body(spec, Identity("", 20500, 20500))
        body |= {"User": "20500:20500", "Cmd": [BUILD.format(files=files)], "OpenStdin": False}
        body |= {"Entrypoint": ["/bin/sh", "-c"], "Labels": {"name": f"benchmark-seccomp-{name}"}}
        body["HostConfig"] |= {"AutoRemove": False, "LogConfig": {"Type": "json-file"}}
        if name == "without":
            body["HostConfig"]["SecurityOpt"] = ["no-new-privileges:true", "seccomp=unconfined"]
        found[name] = body
    return found


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--files", type=int, default=60)
    parser.add_argument("--image", default="sandboxworker/debian:bookworm")
    options = parser.parse_args()
    client = docker.APIClient(**resolve(None).sdk_arguments(), timeout=300)
    requests = bodies(client, options.image, options.files)
    took: dict[str, list[tuple[float, float]]] = {"with": [], "without": []}
    for number in range(options.pairs):
        order = list(requests) if number % 2 else list(requests)[::-1]
        for name in order:
            took[name].append(measure(client, requests[name]))
            time.sleep(0.2)
    print(json.dumps({"clock": told(took, 0), "processor": told(took, 1)}))


def told(took: dict[str, list[tuple[float, float]]], which: int) -> dict[str, Any]:
    """Median seconds of both, and of the pairs' ratios, with all of these."""
    sides = {name: [pair[which] for pair in values] for name, values in took.items()}
    ratios = [a / b for a, b in zip(sides["with"], sides["without"], strict=True)]
    medians = {name: round(statistics.median(values), 3) for name, values in sides.items()}
    return {
        **medians,
        "ratio": round(statistics.median(ratios), 4),
        "ratios": [round(ratio, 3) for ratio in sorted(ratios)],
    }


if __name__ == "__main__":
    main()
