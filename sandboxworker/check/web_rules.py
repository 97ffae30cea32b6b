"""The web interface, its webhooks, and the manhole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from buildbot.www.auth import RemoteUserAuth
from buildbot.www.authz.endpointmatchers import AnyControlEndpointMatcher, AnyEndpointMatcher

from sandboxworker.check.addresses import listening
from sandboxworker.check.configuration import Configuration, kind
from sandboxworker.check.passwords import weakness
from sandboxworker.check.rule import Found, Severity, rule

#: Dialects that check a secret of their own; every other trusts who calls.
_SIGNED = frozenset({"github", "gitlab", "gitea"})
_WWW = "c['www']"


@rule(
    "web-no-login",
    Severity.HIGH,
    what="the web interface is public and has no authentication",
    why="Nobody can be told from anybody, so that no rule can say who may start or stop a build",
    cure="Set www['auth'], for instance util.GitHubAuth(…), or listen on loopback alone",
)
def _no_login(configuration: Configuration) -> Iterator[Found]:
    if configuration.web_is_public and not configuration.has_login:
        yield Found(_WWW, f"{_where(configuration)} has no auth")


@rule(
    "web-no-rules",
    Severity.HIGH,
    what="the web interface is public and has no authorization rules",
    why=(
        "Without rules everybody may do everything: force, stop and rebuild builds, pause "
        "workers. To be logged in makes no difference"
    ),
    cure=(
        "Set www['authz'] = util.Authz(allowRules=[util.AnyControlEndpointMatcher(role='admins')], "
        "roleMatchers=[…])"
    ),
)
def _no_rules(configuration: Configuration) -> Iterator[Found]:
    if configuration.web_is_public and not configuration.authz_rules:
        yield Found(_WWW, f"{_where(configuration)} has no authz rules")


@rule(
    "web-rules-incomplete",
    Severity.MEDIUM,
    what="authorization rules name some actions and leave all others to everybody",
    why="Buildbot allows what no rule matches",
    cure="Put util.AnyControlEndpointMatcher(role=…) at the end of allowRules",
)
def _rules_incomplete(configuration: Configuration) -> Iterator[Found]:
    rules = configuration.authz_rules
    last = (AnyEndpointMatcher, AnyControlEndpointMatcher)
    if rules and not any(isinstance(each, last) and each.defaultDeny for each in rules):
        yield Found("c['www']['authz']", f"{len(rules)} rules, and none for all other actions")


@rule(
    "web-plain-http",
    Severity.HIGH,
    what="the web interface is public in plain HTTP",
    why="Sessions, passwords and webhooks' payloads can be read and changed on their way",
    cure="Listen on loopback behind a proxy with TLS, or with ssl:…; make buildbotURL https://",
)
def _plain_http(configuration: Configuration) -> Iterator[Found]:
    port = configuration.web_port
    if port is None:
        return
    if port.is_exposed:
        yield Found("c['www']['port']", f"{port.text} listens for other machines, without TLS")
    if configuration.web_url.is_exposed:
        yield Found("c['buildbotURL']", f"{configuration.web_url.text} is not https")


@rule(
    "web-any-origin",
    Severity.MEDIUM,
    what="every web site may use the API in the name of whoever visits it",
    why="A page that an administrator happens to open could start and stop builds",
    cure="List the sites in www['allowed_origins'], without a *",
)
def _any_origin(configuration: Configuration) -> Iterator[Found]:
    origins = configuration.www.get("allowed_origins") or ()
    if "*" in origins:
        yield Found("c['www']['allowed_origins']", "has *")


@rule(
    "web-header-trusted",
    Severity.CRITICAL,
    what="the user's name is taken from a header that anybody can send",
    why="RemoteUserAuth believes who connects; only a proxy in front may be able to",
    cure="Listen on loopback, where nobody but the proxy connects",
)
def _header_trusted(configuration: Configuration) -> Iterator[Found]:
    port = configuration.web_port
    believes = isinstance(configuration.www.get("auth"), RemoteUserAuth)
    if believes and port is not None and port.is_public:
        yield Found("c['www']['auth']", f"RemoteUserAuth, and {port.text} is public")


def _where(configuration: Configuration) -> str:
    port = configuration.web_port
    if port is not None and port.is_public:
        return f"port {port.text}"
    return configuration.web_url.text


# ---- webhooks ------------------------------------------------------------------------------------


@rule(
    "webhook-no-secret",
    Severity.CRITICAL,
    what="a webhook believes whoever calls it",
    why=(
        "Anybody can have any revision of any repository built, or say that it is of a branch "
        "that trusted builders build"
    ),
    cure=(
        "Give github, gitlab or gitea a secret (util.Secret(…)), and the others "
        "www['change_hook_auth']"
    ),
)
def _hook_no_secret(configuration: Configuration) -> Iterator[Found]:
    if configuration.web_port is None or configuration.hooks_have_login:
        return
    for dialect, options in configuration.hooks.items():
        checks_one = dialect in _SIGNED or "custom_class" in options
        if not (checks_one and options.get("secret")):
            reason = "no secret is set" if checks_one else "this dialect checks none"
            yield Found(f"webhook {dialect!r}", f"{reason}, and there is no change_hook_auth")


@rule(
    "webhook-not-strict",
    Severity.CRITICAL,
    what="the GitHub webhook takes calls without a signature",
    why="Without strict Buildbot checks a signature only if the caller has sent one",
    cure="Set 'strict': True beside the secret",
)
def _hook_not_strict(configuration: Configuration) -> Iterator[Found]:
    options = configuration.hooks.get("github", {})
    is_lax = options.get("secret") and not options.get("strict")
    if is_lax and "custom_class" not in options and not configuration.hooks_have_login:
        yield Found("webhook 'github'", "has a secret and is not strict")


@rule(
    "webhook-secret-weak",
    Severity.HIGH,
    what="a webhook's secret is easily guessed",
    why="Who has seen one signed call can try secrets at home, as many as a machine can hash",
    cure="Use a random one, for instance of 'openssl rand -hex 32', from a secrets provider",
)
def _hook_secret_weak(configuration: Configuration) -> Iterator[Found]:
    for dialect, options in configuration.hooks.items():
        secret = options.get("secret")
        reason = weakness(secret) if isinstance(secret, str) and secret else None
        if reason is not None:
            yield Found(f"webhook {dialect!r}", f"its secret {reason}")


# ---- manhole -------------------------------------------------------------------------------------


@rule(
    "manhole-open",
    Severity.CRITICAL,
    what="the manhole can be reached from other machines, or without encryption",
    why="It is a Python prompt inside the master, with everything that the master can do",
    cure="Remove c['manhole'], or use AuthorizedKeysManhole on tcp:PORT:interface=127.0.0.1",
)
def _manhole_open(configuration: Configuration) -> Iterator[Found]:
    for manhole in _manholes(configuration):
        port = listening(getattr(manhole, "port", None))
        if port is not None and port.is_public:
            yield Found(kind(manhole), f"{port.text} listens for other machines")
        elif kind(manhole) == "TelnetManhole":
            yield Found(kind(manhole), "its password goes unencrypted")


def _manholes(configuration: Configuration) -> list[Any]:
    services = configuration.master.services
    found = [*(services.values() if isinstance(services, Mapping) else ())]
    if configuration.master.manhole is not None:
        found.append(configuration.master.manhole)
    return [each for each in found if kind(each).endswith("Manhole")]
