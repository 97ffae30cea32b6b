"""What of Buildbot's own inner workings we build upon: told here first when it changes.

Our classes override or call names that upstream documents little or not at all.
A failure here names what to look at in the new version; the integration tests say what broke.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from typing import Any

import pytest
from buildbot.config.master import MasterConfig
from buildbot.data import properties as build_properties
from buildbot.data import workers
from buildbot.process import remotecommand
from buildbot.process.build import Build
from buildbot.process.buildstep import BuildStep
from buildbot.process.properties import Properties
from buildbot.steps.download_secret_to_worker import DownloadSecretsToWorker
from buildbot.worker.base import AbstractWorker
from buildbot.worker.latent import AbstractLatentWorker
from buildbot.worker.protocols import base as protocols
from buildbot.worker.protocols import null
from buildbot_worker import runprocess
from buildbot_worker.base import BotBase
from buildbot_worker.commands import base as commands
from buildbot_worker.commands import fs, registry, transfer
from buildbot_worker.commands.shell import WorkerShellCommand
from buildbot_worker.pb import ProtocolCommandPb

from sandboxworker import connection
from sandboxworker.commands import COMMANDS
from sandboxworker.commands import base as ours
from sandboxworker.commands.shell import SandboxRunProcess, Shell
from sandboxworker.worker import SandboxLatentWorker


def parameters(function: Any) -> list[str]:
    """A function's parameter names in their order, without ``self``."""
    return [name for name in inspect.signature(function).parameters if name != "self"]


def source(function: Any) -> str:
    return textwrap.dedent(inspect.getsource(function))


def attributes(function: Any) -> set[str]:
    """The names of ``self`` that a function uses or sets."""
    return {
        node.attr
        for node in ast.walk(ast.parse(source(function)))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }


# ---- the worker's side ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "_spawnProcess",
            ["processProtocol", "executable", "args", "env", "path", "uid", "gid", "usePTY",
             "childFDs"],
        ),
        ("_startCommand", []),
        ("finished", ["sig", "rc"]),
        ("failed", ["why"]),
        ("sendSig", ["interruptSignal"]),
        ("doBackupTimeout", []),
        ("isDead", []),
        ("kill", ["msg"]),
        ("addStdout", ["data"]),
        ("addStderr", ["data"]),
        ("log_msg", ["msg"]),
    ],
)  # fmt: skip
def test_run_process_has_the_methods_that_we_override(name: str, expected: list[str]) -> None:
    assert parameters(getattr(runprocess.RunProcess, name)) == expected
    if name in vars(SandboxRunProcess):
        assert parameters(getattr(SandboxRunProcess, name)) == expected


def test_run_process_takes_the_arguments_that_we_pass() -> None:
    assert parameters(runprocess.RunProcess.__init__) == [
        "command_id", "command", "workdir", "unicode_encoding", "send_update", "environ",
        "sendStdout", "sendStderr", "sendRC", "timeout", "maxTime", "max_lines", "sigtermTime",
        "initialStdin", "keepStdout", "keepStderr", "logEnviron", "logfiles", "usePTY",
        "useProcGroup",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "calls"),
    [
        # Where signals, time limits and the end of a command come by.
        ("kill", {"pp", "sendSig", "cleanUp", "sigtermTime", "checkProcess", "_cancelTimers"}),
        ("checkProcess", {"isDead", "sendSig", "interruptSignal", "cleanUp"}),
        ("cleanUp", {"pp", "BACKUP_TIMEOUT", "doBackupTimeout", "deferred"}),
        ("doTimeout", {"kill"}),
        ("doMaxTimeout", {"kill"}),
        ("_check_max_lines", {"pp", "do_max_lines"}),
        ("_startCommand", {"_spawnProcess", "environ", "workdir", "logFileWatchers", "usePTY"}),
        ("finished", {"deferred", "_cancelTimers", "sendRC"}),
    ],
)
def test_run_process_goes_the_ways_that_we_redirect(name: str, calls: set[str]) -> None:
    assert calls <= attributes(getattr(runprocess.RunProcess, name))


def test_run_process_looks_at_the_masters_disk_only_where_we_know_it() -> None:
    """`SandboxPath` is ``/`` for these, so that nothing is made or found on the master."""
    uses = {
        name: sorted(
            ast.unparse(node.func)
            for node in ast.walk(ast.parse(source(getattr(runprocess.RunProcess, name))))
            if isinstance(node, ast.Call)
            and re.match(r"os\.(path\.|makedirs)", ast.unparse(node.func))
        )
        for name in ("__init__", "_startCommand")
    }
    assert uses == {
        "__init__": ["os.makedirs", "os.path.exists", "os.path.join"],
        "_startCommand": ["os.makedirs", "os.path.abspath", "os.path.isabs", "os.path.isdir"],
    }


def test_the_process_protocol_knows_that_it_was_killed() -> None:
    assert "killed" in attributes(runprocess.RunProcessPP.processEnded)
    assert "closeStdin" in source(runprocess.RunProcessPP.connectionMade)
    assert "pgid" in source(runprocess.RunProcessPP.connectionMade)


def test_the_shell_command_reads_the_arguments_that_we_read() -> None:
    def read(function: Any) -> set[str]:
        tree = ast.parse(source(function))
        subscripts = {
            node.slice.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant)
        }
        gets = {
            node.args[0].value
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "get"
            and isinstance(node.args[0], ast.Constant)
        }
        return subscripts | gets

    assert read(Shell.start) == read(WorkerShellCommand.start)
    assert "max_lines" in read(Shell.start)


def test_a_protocol_command_is_made_as_we_make_it() -> None:
    assert parameters(ProtocolCommandPb.__init__) == [
        "unicode_encoding", "worker_basedir", "basedir", "buffer_size", "buffer_timeout",
        "max_line_length", "newline_re", "builder_is_running", "on_command_complete",
        "on_lost_remote_step", "command", "command_id", "args", "command_ref",
    ]  # fmt: skip
    assert parameters(ProtocolCommandPb.protocol_args_setup) == ["command", "args"]
    assert parameters(ProtocolCommandPb.command_complete) == ["failure"]
    assert parameters(ProtocolCommandPb.send_update) == ["data"]
    assert {"builder_is_running", "is_complete", "on_command_complete"} <= attributes(
        ProtocolCommandPb.command_complete
    )


@pytest.mark.parametrize(
    "name",
    [
        "protocol_update_upload_file_close",
        "protocol_update_upload_file_utime",
        "protocol_update_upload_file_write",
        "protocol_update_read_file",
        "protocol_update_read_file_close",
    ],
)
def test_a_protocol_command_reaches_the_masters_files(name: str) -> None:
    first = {"upload": "writer", "read": "reader"}[name.split("_")[2]]
    assert parameters(getattr(ProtocolCommandPb, name))[0] == first


def test_our_buffers_are_upstreams() -> None:
    bot = BotBase("unused")
    assert bot.buffer_size == ours._BUFFER_SIZE
    assert bot.buffer_timeout == ours._BUFFER_SECONDS
    assert bot.max_line_length == ours._MAX_LINE_LENGTH
    assert bot.newline_re == ours._NEWLINE_RE


def test_our_commands_are_upstreams_by_name_and_required_arguments() -> None:
    for name, command in COMMANDS.items():
        upstream = registry.getFactory(name)
        wanted = set(getattr(upstream, "requiredArgs", ()))
        assert wanted <= set(command.requiredArgs), name


def test_the_version_of_the_commands_is_the_one_that_we_announce() -> None:
    assert connection.command_version is commands.command_version
    assert commands.command_version == "3.3"


@pytest.mark.parametrize(
    ("command", "names"),
    [
        (transfer.WorkerFileUploadCommand,
         {"path", "writer", "remaining", "blocksize", "keepstamp", "stderr", "rc"}),
        (transfer.WorkerFileDownloadCommand,
         {"path", "reader", "bytes_remaining", "blocksize", "mode", "stderr", "rc"}),
    ],
)  # fmt: skip
def test_transfers_set_up_what_we_use(command: Any, names: set[str]) -> None:
    assert names <= attributes(command.setup)
    assert {"rc", "stderr"} <= attributes(transfer.TransferCommand.finished)
    assert {"rc", "interrupted"} <= attributes(transfer.TransferCommand.interrupt)


def test_rmdir_removes_one_directory_at_a_time() -> None:
    assert parameters(fs.RemoveDirectory.removeSingleDir) == ["path"]
    assert {"removeSingleDir", "timeout", "maxTime"} <= attributes(fs.RemoveDirectory.start)


# ---- the master's side ---------------------------------------------------------------------------


def test_the_connection_without_a_wire_is_the_null_one() -> None:
    methods = {
        "remotePrint": ["message"],
        "remoteGetWorkerInfo": [],
        "remoteSetBuilderList": ["builders"],
        "remoteStartCommand": ["remoteCommand", "builderName", "commandId", "commandName", "args"],
        "remoteShutdown": [],
        "remoteStartBuild": ["builderName"],
        "remoteInterruptCommand": ["builderName", "commandId", "why"],
        "loseConnection": [],
        "get_peer": [],
    }
    for name, expected in methods.items():
        assert parameters(getattr(null.Connection, name)) == expected, name
        assert parameters(getattr(connection.SandboxConnection, name)) == expected, name
    for name in ("createArgsProxies", "notifyDisconnected", "notifyOnDisconnect"):
        assert callable(getattr(null.Connection, name))
    told = {name for name in vars(protocols.Connection) if name.startswith("remote")}
    assert told == set(methods) - {"loseConnection", "get_peer"}


def test_a_remote_command_can_be_told_its_end() -> None:
    assert parameters(remotecommand.RemoteCommand.remote_update) == ["updates"]
    assert parameters(remotecommand.RemoteCommand.remote_complete) == ["failure"]
    assert "step" in attributes(remotecommand.RemoteCommand.__init__)
    assert parameters(null.ProxyMixin.callRemote) == ["message", "args", "kw"]


def test_a_build_remembers_the_secrets_that_it_used() -> None:
    properties = Properties()
    assert properties._used_secrets == {}
    properties.useSecret("value", "name")
    assert properties._used_secrets == {"value": "<name>"}


def test_the_step_for_secrets_keeps_what_it_will_write() -> None:
    step = DownloadSecretsToWorker([("/run/secrets/x", "value")])
    assert step.secret_to_be_populated == [("/run/secrets/x", "value")]


def test_the_check_for_ports_is_one_method() -> None:
    assert parameters(MasterConfig.check_ports) == []
    assert "check_ports" in source(MasterConfig.loadFromDict)


def test_a_latent_worker_calls_the_methods_that_we_override() -> None:
    assert parameters(AbstractLatentWorker.start_instance) == ["build"]
    assert parameters(AbstractLatentWorker.stop_instance) == ["fast"]
    assert parameters(SandboxLatentWorker.start_instance) == ["build"]
    assert parameters(SandboxLatentWorker.stop_instance) == ["fast"]
    names = parameters(AbstractLatentWorker.checkConfig)
    assert names[:2] == ["name", "password"]
    assert "build_wait_timeout" in names
    assert callable(AbstractLatentWorker.attached)
    assert "_deferwaiter" in source(AbstractLatentWorker)


def test_a_build_is_finished_by_one_method_that_stores_the_result_first() -> None:
    """`ending.before_finish` stands in for it."""
    assert parameters(Build.buildFinished) == ["text", "results"]
    for caller in ("allStepsDone", "startBuild", "_start_next_step_impl"):
        assert "buildFinished" in attributes(getattr(Build, caller)), caller
    text = source(Build.buildFinished)
    assert text.index("updates.finishBuild") < text.index("workerforbuilder.buildFinished")


def test_the_worker_info_of_the_web_interface_is_four_fields_unless_we_store_more() -> None:
    text = source(AbstractWorker.attached)
    stored = re.findall(r"'(\w+)': conn\.info\.get", text)
    assert stored == ["admin", "host", "access_uri", "version"]
    assert parameters(workers.Worker.workerConnected) == ["workerid", "masterid", "workerinfo"]
    assert parameters(build_properties.Properties.setBuildProperties) == ["buildid", "properties"]


def test_a_build_can_be_stopped_with_a_reason_and_a_result() -> None:
    assert parameters(Build.stopBuild) == ["reason", "results"]
    assert parameters(BuildStep.interrupt) == ["reason"]
    # Where this is None a step cannot be interrupted.
    assert "stepid" in attributes(BuildStep.addCompleteLog)
