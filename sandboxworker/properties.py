"""Properties that a build is given by its worker, stored in one transaction.

Buildbot takes a transaction for each, some milliseconds of a build that has to wait for them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


async def give(build: Any, properties: Mapping[str, Any], source: str) -> None:
    """Set them on a build that runs, when they are stored.

    In this order, since Buildbot stores what a build has whenever a step ends: what is stored
    already it leaves alone.
    """
    await _store(build.master, build.buildid, properties, source)
    for name, value in properties.items():
        build.setProperty(name, value, source)


async def _store(master: Any, buildid: int, properties: Mapping[str, Any], source: str) -> None:
    table = master.db.model.build_properties
    rows = [
        {"buildid": buildid, "name": name, "value": json.dumps(value), "source": source}
        for name, value in properties.items()
    ]

    def write(connection: Any) -> None:
        # Whoever asked for the build may have given it one of these names.
        ours = (table.c.buildid == buildid) & table.c.name.in_(list(properties))
        connection.execute(table.delete().where(ours))
        connection.execute(table.insert(), rows)

    await master.db.pool.do_with_transaction(write)
    told = {name: (value, source) for name, value in properties.items()}
    master.mq.produce(("builds", str(buildid), "properties", "update"), told)
