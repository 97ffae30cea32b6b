"""What of Buildbot's own inner workings we build upon: told here first when it changes.

Our classes override or call names that upstream documents little or not at all.
A failure here names what to look at in the new version; the integration tests say what broke.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import buildbot
import docker
import pytest
import pytest_twisted
from buildbot.changes.gitpoller import GitPoller
from buildbot.config.master import MasterConfig
from buildbot.data import properties as build_properties
from buildbot.data import workers
from buildbot.db.logs import LogsConnectorComponent
from buildbot.db.model import Model
from buildbot.db.pool import DBThreadPool
from buildbot.master import BuildMaster
from buildbot.plugins import schedulers
from buildbot.process import remotecommand
from buildbot.process.build import Build
from buildbot.process.builder import Builder
from buildbot.process.buildstep import BuildStep
from buildbot.process.factory import BuildFactory
from buildbot.process.properties import Interpolate, Properties, Secret
from buildbot.process.remotetransfer import DirectoryWriter, FileReader
from buildbot.scripts.upgrade_master import upgradeDatabase
from buildbot.steps import transfer as transfer_steps
from buildbot.steps.download_secret_to_worker import (
    DownloadSecretsToWorker,
    RemoveWorkerFileSecret,
)
from buildbot.steps.source import git as git_steps
from buildbot.steps.source.base import Source
from buildbot.util import git as git_util
from buildbot.util import runprocess as masters_runprocess
from buildbot.util.git_credential import GitCredentialOptions
from buildbot.util.service import (
    AsyncMultiService,
    BuildbotService,
    ReconfigurableServiceMixin,
    SharedService,
)
from buildbot.worker import Worker
from buildbot.worker.base import AbstractWorker
from buildbot.worker.latent import AbstractLatentWorker
from buildbot.worker.protocols import base as protocols
from buildbot.worker.protocols import null
from buildbot.www.authz import Authz
from buildbot.www.hooks.github import GitHubEventHandler
from buildbot.www.hooks.gitlab import GitLabHandler
from buildbot_worker import runprocess
from buildbot_worker.base import BotBase
from buildbot_worker.commands import base as commands
from buildbot_worker.commands import fs, registry, transfer
from buildbot_worker.commands.shell import WorkerShellCommand
from buildbot_worker.pb import ProtocolCommandPb
from twisted.internet import defer

from sandboxworker import connection
from sandboxworker.check.configuration import arguments
from sandboxworker.commands import COMMANDS
from sandboxworker.commands import base as ours
from sandboxworker.commands.shell import SandboxRunProcess, Shell
from sandboxworker.housekeeping import Housekeeping, SandboxAudit
from sandboxworker.reconfigured import Reconfigured
from sandboxworker.source import git as our_git
from sandboxworker.steps import SandboxGit
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


def test_a_directory_is_unpacked_by_a_method_that_needs_no_reactor() -> None:
    assert parameters(ProtocolCommandPb.protocol_update_upload_directory) == ["writer"]
    assert parameters(DirectoryWriter.remote_unpack) == []
    called = source(DirectoryWriter.remote_unpack)
    assert "tarfile.open(name=self.tarname" in called
    assert "defer" not in called
    assert "reactor" not in called


def test_our_buffers_are_upstreams() -> None:
    bot = BotBase("unused")
    assert bot.buffer_size == ours._BUFFER_SIZE
    assert bot.buffer_timeout == ours.BUFFER_SECONDS
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


def test_the_steps_for_secrets_name_the_files_by_arguments_that_we_know() -> None:
    assert parameters(DownloadSecretsToWorker.__init__)[0] == "populated_secret_list"
    assert "downloadFileContentToWorker" in source(DownloadSecretsToWorker.runPopulateSecrets)
    assert "runRmFile" in source(RemoveWorkerFileSecret.runRemoveWorkerFileSecret)


def test_a_factory_keeps_its_steps_as_class_and_arguments() -> None:
    (kept,) = BuildFactory([BuildStep(name="s")]).steps
    assert (kept.step_class, kept.args, kept.kwargs) == (BuildStep, (), {"name": "s"})


def test_a_factorys_step_is_made_by_a_method_that_can_be_stood_before() -> None:
    (kept,) = BuildFactory([BuildStep(name="s")]).steps
    made = kept.buildStep()
    assert made.name == "s"
    assert made.get_step_factory() is kept


@pytest.mark.parametrize(
    ("step", "place"),
    [
        (transfer_steps.FileUpload("a", "here"), "masterdest"),
        (transfer_steps.DirectoryUpload("a", "here"), "masterdest"),
        (transfer_steps.MultipleFileUpload(["a"], "here"), "masterdest"),
        (transfer_steps.FileDownload("here", "a"), "mastersrc"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_transfer_renders_its_place_on_the_master_when_it_runs(step: Any, place: str) -> None:
    assert getattr(step, place) == "here"
    assert place in type(step).renderables


def test_a_throw_away_master_has_its_database_made_and_let_go_of() -> None:
    assert parameters(upgradeDatabase) == ["config", "master_cfg"]
    assert callable(DBThreadPool.stop)
    assert parameters(LogsConnectorComponent.getLogLines) == ["logid", "first_line", "last_line"]


def test_renderables_tell_the_secrets_that_they_will_ask_for() -> None:
    assert Secret("a").secret_name == "a"
    assert list(Interpolate("%(secret:a:-b)s %(prop:c)s").interpolations) == [
        "secret:a:-b",
        "prop:c",
    ]


def test_a_build_knows_its_builders_configuration() -> None:
    assert "builder" in attributes(Build.__init__)
    assert "config" in attributes(Builder.setup_properties)


def test_the_check_of_builders_is_one_method_that_comes_after_the_workers() -> None:
    assert parameters(MasterConfig.check_builders) == []
    loading = source(MasterConfig.loadFromDict)
    assert loading.index("load_workers") < loading.index("check_builders")


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


def test_a_build_hears_of_a_lost_connection_once_it_has_taken_it_and_not_before() -> None:
    starting = source(Build.startBuild)
    assert "self.conn = None" in starting
    taken = starting.index("self.conn = workerforbuilder.worker.conn")
    assert starting.index("workerforbuilder.ping()") < taken
    assert taken < starting.index("self.conn.notifyOnDisconnect(self.lostRemote)")
    assert "yield" not in starting[taken : starting.index("self.conn.notifyOnDisconnect")]


def test_a_build_is_finished_by_one_method_that_stores_the_result_first() -> None:
    """`ending.before_finish` stands in for it."""
    assert parameters(Build.buildFinished) == ["text", "results"]
    for caller in ("allStepsDone", "startBuild", "_start_next_step_impl"):
        assert "buildFinished" in attributes(getattr(Build, caller)), caller
    text = source(Build.buildFinished)
    assert text.index("updates.finishBuild") < text.index("workerforbuilder.buildFinished")


def test_a_service_is_compared_with_the_arguments_of_its_making() -> None:
    """`reconfigured.Reconfigured` writes them anew; superfluous once upstream does."""
    method = BuildbotService.reconfigServiceWithSibling
    assert parameters(method) == ["sibling"]
    assert {"_config_args", "_config_kwargs"} <= set(BuildbotService.compare_attrs)
    assert "self._config_kwargs =" not in source(method)
    assert issubclass(SandboxLatentWorker, Reconfigured)


def test_a_build_puts_its_worker_into_quarantine_in_two_places() -> None:
    """Before its first step, where we let it, and when it is finished, where we do not."""
    places = [
        name
        for name, value in vars(Build).items()
        if inspect.isfunction(value) and "putInQuarantine" in source(value)
    ]
    assert sorted(places) == ["buildFinished", "buildPreparationFailure"]
    for name in ("putInQuarantine", "resetQuarantine", "stopQuarantineTimer"):
        assert parameters(getattr(AbstractWorker, name)) == []
    assert AbstractWorker.quarantine_initial_timeout == 10
    assert "quarantine_max_timeout" in attributes(AbstractWorker.putInQuarantine)
    assert "_fireSubstantiationNotifier" in attributes(AbstractLatentWorker._substantiation_failed)


def test_a_build_that_is_given_back_keeps_its_request() -> None:
    """`retries` finds the former attempts by it."""
    text = source(Builder.buildFinished)
    assert text.index("results == RETRY") < text.index("_resubmit_buildreqs")
    assert "unclaimBuildRequests" in source(Builder._resubmit_buildreqs)
    assert "self.requests[0].id" in source(Build.startBuild)


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


# ---- services ------------------------------------------------------------------------------------


def test_a_shared_service_is_made_once_and_stopped_after_all_others() -> None:
    assert "namedServices" in source(SharedService.getService)
    assert parameters(SharedService.getService) == ["parent", "args", "kwargs"]
    stop = source(AsyncMultiService.stopService)
    assert stop.index("not isinstance(svc, SharedService)") < stop.index("yield svc.stopService()")


def test_a_master_reconfigures_its_services_by_priority() -> None:
    assert issubclass(BuildMaster, ReconfigurableServiceMixin)
    assert "-svc.reconfig_priority" in source(
        ReconfigurableServiceMixin.reconfigServiceWithBuildbotConfig
    )
    assert Housekeeping.reconfig_priority > BuildbotService.reconfig_priority


def test_a_configuration_has_the_services_by_name() -> None:
    assert parameters(MasterConfig.load_services) == ["filename", "config_dict"]
    service = SandboxAudit(keep=3)
    loaded = MasterConfig()
    loaded.load_services("f", {"services": [service]})
    assert loaded.services == {SandboxAudit.name: service}
    assert service.settings.keep == 3


def test_a_build_knows_its_number_and_id_before_its_worker_starts() -> None:
    start = source(Build.startBuild)
    assert start.index("self.buildid, self.number = ") < start.index("substantiate_if_needed")


def test_a_worker_is_told_of_a_build_when_it_is_its_builders_last_and_before_it_starts() -> None:
    """`early` takes it from there."""
    start = source(Builder._startBuildFor)
    listed, told = start.index("self.building.append(build)"), start.index(".buildStarted()")
    assert listed < told < start.index("build.startBuild")
    assert "yield" not in start[listed:told]
    start = source(Build.startBuild)
    assert start.index("self.do_build = ") < start.index("yield") < start.index("_buildid_notifier")
    assert "_buildid_notifier.wait" in source(Build.get_buildid)


# ---- properties ----------------------------------------------------------------------------------


def test_a_builds_properties_are_rows_with_these_columns_and_their_event_has_this_key() -> None:
    columns = {column.name for column in Model.build_properties.columns}
    assert columns == {"buildid", "name", "value", "source"}
    source = inspect.getsource(build_properties.Properties.generateUpdateEvent)
    assert '("builds", str(buildid), "properties", "update")' in source.replace("'", '"')


# ---- what comes next -----------------------------------------------------------------------------


def test_a_build_takes_its_next_step_from_the_front_of_its_list() -> None:
    build = SimpleNamespace(steps=[], conn=object(), terminate=False, stopped=False)
    build.steps = ["first", "second"]
    assert Build.getNextStep(build) == "first"
    assert build.steps == ["second"]


# ---- git steps -----------------------------------------------------------------------------------


def test_a_git_step_keeps_its_keys_where_we_take_them_from() -> None:
    options = GitCredentialOptions(credentials=["url=https://h/x"], use_http_path=True)
    step = git_steps.Git(
        repourl="https://h/x",
        sshPrivateKey="key",
        sshHostKey="host",
        auth_credentials=("user", "word"),
        git_credentials=options,
    )
    auth = step._git_auth
    assert auth.is_auth_needed
    assert (auth.ssh_private_key, auth.ssh_host_key, auth.ssh_known_hosts) == ("key", "host", None)
    assert auth.git_credential_options.use_http_path is True
    assert len(auth.git_credential_options.credentials) == 2
    assert not git_steps.Git(repourl="https://h/x")._git_auth.is_auth_needed


def test_a_git_step_keeps_them_in_a_directory_that_we_know() -> None:
    for kind in (git_steps.Git, git_steps.GitPush):
        assert parameters(kind._get_auth_data_workdir) == []
    auth = git_util.GitStepAuth
    assert parameters(auth._get_auth_data_path) == ["data_workdir"]
    # Every file, and the directory itself, is named through that one method.
    for method in (auth.download_auth_files_if_needed, auth.remove_auth_files_if_needed):
        assert "_get_auth_data_path" in source(method)
    files = source(git_util.AbstractGitAuth._download_ssh_files)
    assert files.count("_download_file(") == 3
    assert "downloadFileContentToWorker" in source(auth._download_file)


def test_a_git_steps_passwords_go_by_a_command_that_we_know() -> None:
    login = source(git_util.AbstractGitAuth._download_credentials)
    assert "['credential', 'approve']" in login
    assert "initial_stdin=creds" in login


def test_what_ssh_reads_is_written_as_upstream_writes_it() -> None:
    assert git_util.ensureSshKeyNewline("key") == "key\n"
    assert git_util.ensureSshKeyNewline("key\n") == "key\n"
    assert git_util.getSshKnownHostsContents("ssh-rsa AAAA") == "* ssh-rsa AAAA"
    assert git_util.scp_style_to_url_syntax("git@h:x", 22) == "ssh://git@h:22/x"


def test_a_git_step_runs_git_by_an_argv_that_we_can_read() -> None:
    run = source(git_util.GitStepMixin._dovccmd)
    assert "full_command = ['git']" in run
    assert "RemoteShellCommand(" in run
    assert "full_command.append('-c')" in run
    for kind in (git_steps.GitPush, git_steps.GitTag, git_steps.GitCommit):
        assert "_dovccmd" in vars(git_util.GitStepMixin)
        assert issubclass(kind, git_util.GitStepMixin)
        assert "_dovccmd" not in vars(kind)
    assert "_dovccmd" not in vars(git_steps.Git)


def test_a_git_steps_url_and_branch_are_attributes() -> None:
    assert {"repourl", "port"} <= attributes(git_util.GitStepMixin.setup_repourl)
    assert {"branch", "revision", "stdio_log"} <= attributes(git_steps.Git.run_vc)
    assert git_steps.Git(repourl="/x").get_step_factory().buildStep().repourl == "/x"


def test_our_own_git_step_has_what_the_stock_one_gives_it() -> None:
    assert parameters(SandboxGit.run_vc) == parameters(git_steps.Git.run_vc)
    step = SandboxGit(repourl="/x", retry=(3, 2), submodules=True, getDescription=True)
    assert (step.retry, step.submodules, step.getDescription) == ((3, 2), True, True)
    assert parameters(Source.updateSourceProperty)[:2] == ["name", "value"]


def test_the_options_of_describe_are_words_made_of_a_value() -> None:
    words = {name: make for name, make in git_steps.git_describe_flags if name != "dirty"}
    assert words["tags"](True) == ["--tags"]
    assert words["tags"](None) is None
    assert words["match"]("v*") == ["--match", "v*"]
    assert words["abbrev"](0) == ["--abbrev=0"]
    dirty = [make for name, make in git_steps.git_describe_flags if name == "dirty"]
    assert [make(True) for make in dirty] == [["--dirty"], None]
    for _, make in git_steps.git_describe_flags:
        assert all(word.startswith("-") for word in (make(True) or ())[:1])


# ---- programs on the master's side ---------------------------------------------------------------


def test_the_masters_processes_are_made_as_we_make_them() -> None:
    upstream = masters_runprocess.RunProcess
    assert parameters(upstream.__init__) == [
        "reactor", "command", "workdir", "env", "collect_stdout", "collect_stderr",
        "stderr_is_error", "io_timeout", "runtime_timeout", "sigterm_timeout", "initial_stdin",
        "use_pty",
    ]  # fmt: skip
    assert parameters(upstream.get_os_env) == parameters(our_git._Process.get_os_env) == []
    assert parameters(upstream.send_signal) == parameters(our_git._Process.send_signal)
    assert parameters(upstream.kill) == ["msg"]
    assert {"killed", "send_signal", "sigterm_timeout"} <= attributes(upstream.kill)
    assert "get_os_env" in attributes(upstream.resolve_environment)
    assert "send_signal" in attributes(upstream.check_process_was_killed)


def test_the_masters_environment_comes_by_one_method_alone() -> None:
    process = our_git._Process(None, ["true"])
    assert process.resolve_environment({"A": "1", "B": None}) == {"A": "1"}
    uses = [name for name, each in vars(masters_runprocess.RunProcess).items()
            if inspect.isfunction(each) and "os.environ" in source(each)]  # fmt: skip
    assert uses == ["get_os_env"]


@pytest_twisted.ensureDeferred
async def test_a_command_that_has_not_started_yet_can_be_interrupted() -> None:
    """Fetching goes on before the command begins; the Stop button must reach it."""

    class Connection:
        interrupted: list[str] = []
        starting: defer.Deferred[None] = defer.Deferred()

        def remoteStartCommand(self, *_: Any) -> defer.Deferred[None]:
            return self.starting

        def remoteInterruptCommand(self, builder: str, command: str, why: str) -> Any:
            self.interrupted.append(why)
            return defer.succeed(None)

    command, conn = remotecommand.RemoteCommand("shell", {}), Connection()
    ended = command.run(None, conn, "builder")
    ended.addErrback(lambda _: None)
    await command.interrupt("stop")
    assert conn.interrupted == ["stop"]
    assert not conn.starting.called
    command.active = False
    conn.starting.callback(None)


# ---- what `sandboxworker check` takes for granted ------------------------------------------------


def test_a_service_keeps_the_arguments_it_was_given() -> None:
    given = schedulers.AnyBranchScheduler(name="s", builderNames=["b"], categories=["c"])
    assert arguments(given) == {"builderNames": ["b"], "categories": ["c"]}
    assert arguments(Worker("w", "secret", max_builds=2)) == {
        "name": "w", "password": "secret", "max_builds": 2
    }  # fmt: skip


def test_a_github_webhook_looks_at_a_missing_signature_only_when_it_is_strict() -> None:
    found = source(GitHubEventHandler._get_payload)
    assert "if not signature and self._strict:" in found
    assert "if self._secret and signature:" in found


def test_gitlab_tells_of_a_merge_request_by_its_target_and_its_category() -> None:
    found = source(GitLabHandler._process_merge_request_change)
    assert "'branch': attrs['target_branch']" in found
    assert "'category': event" in found


def test_what_no_authorization_rule_matches_is_allowed() -> None:
    assert source(Authz.assertUserAllowed).rstrip().endswith("return None")


def test_the_limit_on_a_logs_size_is_read_and_enforced_nowhere() -> None:
    folder = Path(buildbot.__file__).parent
    users = [
        file.name
        for file in folder.rglob("*.py")
        if "test" not in file.parts and "logMaxSize" in file.read_text()
    ]
    assert users == ["master.py"]


def test_branches_true_of_a_git_poller_means_branches_alone() -> None:
    assert 'refs=["refs/heads/*"]' in source(GitPoller._get_refs)


# ---- files that are sent -------------------------------------------------------------------------


def test_a_reader_holds_its_file_where_we_look_for_its_size() -> None:
    file = io.BytesIO(b"text")
    assert null.FileReaderProxy(FileReader(file)).impl.fp is file


# ---- the SDK -------------------------------------------------------------------------------------


def test_the_sdk_looks_at_a_path_by_the_names_that_we_call() -> None:
    """It has no call for the facts alone."""
    found = source(docker.APIClient.get_archive)
    assert {"_url", "_raise_for_status"} <= attributes(docker.APIClient.get_archive)
    assert "self._url('/containers/{0}/archive', container)" in found
    assert "'x-docker-container-path-stat'" in found
