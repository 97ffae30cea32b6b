"""Repository URLs, as somebody would write them who wants the master to go elsewhere."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import attrs
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from sandboxworker.errors import SourceRefused
from sandboxworker.source.urls import (
    Repository,
    Written,
    is_allowed,
    is_inside,
    read,
    submodule_url,
)

GOOD = "good.example.org"


def covers(pattern: str, url: str) -> bool:
    return is_allowed(read(url).repository, [pattern])


# ---- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://good.example.org/team/x.git", "https://good.example.org/team/x.git"),
        ("https://GOOD.example.org/team/x.git/", "https://good.example.org/team/x.git"),
        ("https://good.example.org:443/x", "https://good.example.org/x"),
        ("https://good.example.org:00443/x", "https://good.example.org/x"),
        ("http://good.example.org:443/x", "http://good.example.org:443/x"),
        ("git://good.example.org:9418/x", "git://good.example.org/x"),
        ("ssh://git@good.example.org:22/x", "ssh://git@good.example.org/x"),
        ("ssh://git@good.example.org:2222/x", "ssh://git@good.example.org:2222/x"),
        ("git@good.example.org:team/x.git", "ssh://git@good.example.org/team/x.git"),
        ("good.example.org:/team/x", "ssh://good.example.org/team/x"),
        ("https://[::1]:8080/x", "https://[::1]:8080/x"),
        ("https://[2001:DB8::1]/x", "https://[2001:db8::1]/x"),
        ("https://good.example.org/My%20Project/_git/x", None),
        ("https://good.example.org/gr%C3%BCn", None),
        ("https://good.example.org", ""),
        ("https://good.example.org/", "https://good.example.org/"),
        ("/srv/git/x.git", "file:///srv/git/x.git"),
        ("file:///srv/git/x.git/", "file:///srv/git/x.git"),
    ],
)
def test_a_repository_has_one_url_however_it_is_written(text: str, url: str | None) -> None:
    if url == "":
        with pytest.raises(SourceRefused):
            read(text)
    else:
        assert read(text).repository.url == (text if url is None else url)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-c",
        "--upload-pack=x",
        "HTTPS://good.example.org/x",
        "ftp://good.example.org/x",
        "ext::sh",
        "ext::sh -c x",
        "fd::3",
        "https::https://good.example.org/x",
        "file://good.example.org/x",
        "https:///x",
        "https://good.example.org/x\n",
        "\nhttps://good.example.org/x",
        "https://good.example.org/x\0",
        "https://good.example.org/x y",
        "https://good.example.org/x?y",
        "https://good.example.org/x#y",
        "https://good.example.org\\@evil.example.org/x",
        "https://good.example.org/\\..\\x",
        # One program ends the host before these, another after them.
        "https://good.example.org?@evil.example.org/x",
        "https://good.example.org#@evil.example.org/x",
        "https://good.example.org\t@evil.example.org/x",
        "https://a@good.example.org@evil.example.org/x",
        "https://a:[::1]@evil.example.org/x",
        "https://good%2eexample.org/x",
        "https://göod.example.org/x",
        # git takes the escapes in a whole ssh URL for what they stand for.
        "ssh://evil.example.org%2Fx@good.example.org/x",
        "ssh://a%40evil.example.org%2fx@good.example.org/x",
        "ssh://a:b%40evil.example.org%2fx@good.example.org/x",
        # ssh would take these for options.
        "ssh://-oProxyCommand=x@good.example.org/x",
        "ssh://-oProxyCommand=x/x",
        "ssh://git@-x/x",
        "-x@good.example.org:x",
        "-x:y",
        "git@-x:y",
        # Up, in whatever spelling.
        "https://good.example.org/team/../x",
        "https://good.example.org/./x",
        "https://good.example.org/..",
        "https://good.example.org/team/%2e%2e/x",
        "https://good.example.org/team/.%2E/x",
        "https://good.example.org/team%2f..%2fx",
        "https://good.example.org/team%5c..%5cx",
        "https://good.example.org/team/%c0%ae%c0%ae/x",
        "https://good.example.org/%252e%252e/x",
        "https://good.example.org/x%0ahost=evil",
        "https://good.example.org/x%00",
        "https://good.example.org/%",
        "git@good.example.org:../x",
        "git@good.example.org:a%20b",
        "file:///srv/git/../x",
        "file:///srv/%2e%2e/x",
        "/srv/git/..",
        # A port that programs cut to 16 bits is another's.
        "https://good.example.org:65979/x",
        "https://good.example.org:0/x",
        "https://good.example.org:/x",
        "https://good.example.org:²/x",
        "https://[::1/x",
        "https://[good.example.org]/x",
    ],
)
def test_a_url_that_two_programs_may_read_differently_is_refused(text: str) -> None:
    with pytest.raises(SourceRefused):
        read(text)


def test_a_file_and_a_host_of_the_same_name_are_two_repositories() -> None:
    assert read("/a").repository != read("https://a/").repository
    assert read("https://good.example.org./x").repository != read(f"https://{GOOD}/x").repository
    assert read(f"https://{GOOD}/X").repository != read(f"https://{GOOD}/x").repository
    assert read(f"ssh://a@{GOOD}/x").repository != read(f"ssh://b@{GOOD}/x").repository


@given(st.text(max_size=60) | st.from_regex(r"(https|ssh)://[!-~]{0,20}@?[a-z.]{1,9}/[!-~]{0,20}"))
def test_what_is_read_is_read_again_as_the_same(text: str) -> None:
    try:
        written = read(text)
    except SourceRefused:
        return
    assert read(written.repository.url).repository == written.repository
    assert read(written.clean).repository == written.repository
    assert not read(written.clean).username
    assert not set(text) & set("\n\r\0 \\")


@given(st.from_regex(r"\A(https|http|ssh|git)://[!-~]{0,30}\Z"))
def test_the_host_is_the_one_that_others_read(text: str) -> None:
    try:
        written = read(text)
    except SourceRefused:
        return
    split = urlsplit(text)
    host = written.repository.host
    assert split.hostname == (host[1 : host.index("]")] if host[0] == "[" else host.split(":")[0])
    assert (split.username or "") == (written.username or written.repository.user)


LOGINS = st.sampled_from(
    ["", "git@", "g_1@", "evil.example%2F@", "a%40evil.example%2f@", "-o@", "u:p@", ":@", "a+b@"]
)
HOSTS = st.sampled_from(["h", "a.example", "[::1]", "-h", "h%2Fx", "h:2222", "[::1]:2222", "h:22"])
PATHS = st.from_regex(r"\A[A-Za-z0-9.~:@=%-]{1,12}\Z")


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(LOGINS, HOSTS, st.sampled_from(["ssh://{}{}/{}", "{}{}:{}"]), PATHS)
def test_ssh_goes_to_the_host_that_was_compared(
    login: str, host: str, form: str, path: str
) -> None:
    try:
        repository = read(form.format(login, host, path)).repository
    except SourceRefused:
        assume(False)
    at = f"{repository.user}@" if repository.user else ""
    name, _, port = repository.host.partition(":") if "[" not in host else ("::1", "", "")
    told = _what_git_tells_ssh(repository.url)
    assert at + name in told, told
    assert not port or port in told


def _what_git_tells_ssh(url: str) -> list[str]:
    ssh = "f() { printf '%s\\n' \"$@\" >&2; false; }; f"
    environ = {"PATH": os.environ["PATH"], "GIT_SSH_COMMAND": ssh, "GIT_SSH_VARIANT": "ssh"}
    done = subprocess.run(
        ["git", "ls-remote", "--", url], env=environ, capture_output=True, text=True, check=False
    )
    return done.stderr.splitlines()


# ---- logins --------------------------------------------------------------------------------------


def everywhere(written: Written) -> str:
    return f"{written!r} {written.clean} {written.repository!r} {written.repository.url}"


@given(st.from_regex(r"\A[a-zA-Z0-9%!$&'()*+,;=:._~-]{1,12}\Z"))
def test_a_login_stays_out_of_all_that_is_shown(word: str) -> None:
    login = f"<{word}>"
    written = read(f"https://user:{login}@{GOOD}/x")
    assert written.password == login
    assert login not in everywhere(written)
    assert login not in read(f"https://{login}@{GOOD}/x").clean
    if "%" not in word:
        assert login not in everywhere(read(f"ssh://git:{login}@{GOOD}/x"))


def test_only_the_login_goes() -> None:
    assert read(f"https://u:p@{GOOD}:8080/x@y").clean == f"https://{GOOD}:8080/x@y"
    assert read(f"https://token@{GOOD}/x").clean == f"https://{GOOD}/x"
    assert read(f"https://u:p:q@{GOOD}/x").password == "p:q"
    assert read(f"ssh://22:22@{GOOD}:22/x").clean == f"ssh://22@{GOOD}:22/x"
    assert read(f"ssh://git:p:q@{GOOD}/x").clean == f"ssh://git@{GOOD}/x"
    assert read(f"git@{GOOD}:x").clean == f"git@{GOOD}:x"


@pytest.mark.parametrize(
    "text",
    [
        f"HTTPS://user:TOPSECRET@{GOOD}/x",
        f"https://user:p@TOPSECRET@{GOOD}/x",
        f"https://user:p/TOPSECRET@{GOOD}/x",
        f"https://user:p?TOPSECRET@{GOOD}/x",
        f"https://user:p#TOPSECRET@{GOOD}/x",
        f"https://user:p\nTOPSECRET@{GOOD}/x",
        f"https://user:TOPSECRET@{GOOD}/../x",
        f"https://user:TOPSECRET@{GOOD}:99999/x",
        f"https://{GOOD}/x?token=TOPSECRET",
        f"https://{GOOD}/x#TOPSECRET",
        f"ssh://git:TOPSECRET%2f@{GOOD}/x",
        f"ftp://user:TOPSECRET@{GOOD}/x",
    ],
)
def test_a_refusal_shows_no_login(text: str) -> None:
    with pytest.raises(SourceRefused) as caught:
        read(text)
    assert "TOPSECRET" not in str(caught.value)
    assert GOOD in str(caught.value)


# ---- the operator's patterns ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "url"),
    [
        (f"https://{GOOD}/team/*", f"https://{GOOD}/team/x.git"),
        (f"https://{GOOD}/team/*", f"https://{GOOD}/team/deep/x"),
        (f"https://{GOOD}/team/*", f"https://user:word@{GOOD}:443/team/x"),
        (f"https://{GOOD}:443/x", f"https://{GOOD}/x"),
        (f"https://{GOOD}/x/", f"https://{GOOD}/x"),
        (f"https://{GOOD.upper()}/x", f"https://{GOOD}/x"),
        ("https://*.example.org/*", f"https://{GOOD}/x"),
        ("https://127.0.0.1:*/*", "https://127.0.0.1:8080/x"),
        ("https://[::1]/*", "https://[::1]/x"),
        ("https://[::1]:8080/*", "https://[::1]:8080/x"),
        (f"ssh://{GOOD}/*", f"ssh://git@{GOOD}/x"),
        (f"ssh://*@{GOOD}/*", f"git@{GOOD}:x"),
        (f"ssh://git@{GOOD}/*", f"git@{GOOD}:x"),
        ("file:///srv/git/*", "/srv/git/x"),
        ("*", f"git://{GOOD}/x"),
    ],
)
def test_a_pattern_covers(pattern: str, url: str) -> None:
    assert covers(pattern, url)


@pytest.mark.parametrize(
    ("pattern", "url"),
    [
        # ``*`` does not cross from one part of a URL to the next.
        (f"https://*{GOOD}/*", f"https://evil.example/{GOOD}/x"),
        (f"https://*{GOOD}/*", f"https://evil.example/@{GOOD}/x"),
        ("https://*/team/x", "https://evil.example/evil/team/x"),
        (f"https://{GOOD}*/x", f"https://{GOOD}/y/x"),
        (f"ssh://*@{GOOD}/*", f"ssh://{GOOD}@evil.example/x"),
        (f"ssh://*@{GOOD}/*", f"ssh://a@evil.example/@{GOOD}/x"),
        (f"*://{GOOD}/x", f"https://{GOOD}/x"),
        (f"*{GOOD}/x", f"https://{GOOD}/x"),
        # A prefix is no whole name.
        (f"https://{GOOD}/team", f"https://{GOOD}/team/x"),
        (f"https://{GOOD}/team/*", f"https://{GOOD}/team"),
        (f"https://{GOOD}/team/*", f"https://{GOOD}/teamster/x"),
        (f"https://{GOOD}/*", f"https://{GOOD}.evil.example/x"),
        ("https://*.example.org/*", "https://evilexample.org/x"),
        ("https://*.example.org/*", "https://goodXexample.org/x"),
        (f"https://{GOOD}", f"https://{GOOD}/x"),
        # Another scheme, port, user or letter is another place.
        (f"https://{GOOD}/*", f"http://{GOOD}/x"),
        (f"https://{GOOD}/*", f"https://{GOOD}:8443/x"),
        (f"https://{GOOD}:443/*", f"https://{GOOD}:8443/x"),
        (f"https://{GOOD}:80/*", f"https://{GOOD}/x"),
        (f"ssh://git@{GOOD}/*", f"ssh://root@{GOOD}/x"),
        (f"ssh://git@{GOOD}/*", f"ssh://{GOOD}/x"),
        (f"https://{GOOD}/Team/*", f"https://{GOOD}/team/x"),
        # Nothing but ``*`` is special.
        ("https://[::1]/*", "https://1/x"),
        (f"https://{GOOD}/[ab]", f"https://{GOOD}/a"),
        ("https://a.b/*", "https://aXb/x"),
        # The master's own files must be listed as such.
        ("*", "/srv/git/x"),
        ("https://*/*", "/srv/git/x"),
        ("file:///srv/git/*", "/srv/secret/x"),
        ("file:///srv/git/*", "/srv/git"),
        ("", f"https://{GOOD}/x"),
    ],
)
def test_a_pattern_does_not_cover(pattern: str, url: str) -> None:
    assert not covers(pattern, url)


PARTS = st.from_regex(r"\A[a-z0-9.-]{1,8}\Z").filter(lambda text: text[0] not in ".-")


@given(PARTS, PARTS, st.from_regex(r"\A[A-Za-z0-9._~/+,=@:!()-]{0,20}\Z"))
def test_no_path_makes_up_for_another_host(host: str, other: str, path: str) -> None:
    assume(host != other)
    try:
        repository = read(f"https://{other}/{path}").repository
    except SourceRefused:
        assume(False)
    assert not is_allowed(repository, [f"https://{host}/*", f"ssh://{host}/*"])


# ---- inside or outside ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["/srv/x", "file:///srv/x", "../x", "./x", "~/x", "x", "x/y:z", "/a:b", "./a:b"]
)
def test_a_place_is_inside(text: str) -> None:
    assert is_inside(text)


@pytest.mark.parametrize(
    "text", ["https://h/x", "git@h:x", "h:x", ".h:x", "~h:x", "FILE:///x", "ext::x", "-x:y"]
)
def test_another_machine_is_not_inside(text: str) -> None:
    assert not is_inside(text)


# ---- submodules ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parent", "url", "whole"),
    [
        ("https://h/team/x.git", "../y.git", "https://h/team/y.git"),
        ("https://h/team/x.git/", "../../other/y", "https://h/other/y"),
        ("https://h/team/x", "./y", "https://h/team/x/y"),
        ("https://h/team/x", "./../y", "https://h/team/y"),
        ("git@h:team/x.git", "../y.git", "git@h:team/y.git"),
        ("git@h:x.git", "../y.git", "git@h:y.git"),
        ("git@h:/srv/x.git", "../y.git", "git@h:/srv/y.git"),
        ("https://h/x", "../y", "https://h/y"),
        ("https://h/", "./y", "https://h/y"),
        ("/srv/git/x", "../y", "/srv/git/y"),
        ("https://h/x", "https://elsewhere/y", "https://elsewhere/y"),
    ],
)
def test_a_submodules_url_counts_from_its_parents(parent: str, url: str, whole: str) -> None:
    assert submodule_url(parent, url) == whole


@pytest.mark.parametrize(
    "parent", ["https://h/x", "https://h/a/x", "ssh://u@h/x", "git@h:x", "git@h:/a/x", "/x"]
)
@pytest.mark.parametrize("end", ["evil.example/x", "@evil.example/x", ":80/x", ""])
def test_a_relative_submodule_stays_on_its_server(parent: str, end: str) -> None:
    with pytest.raises(SourceRefused):
        submodule_url(parent, "../../../" + end)


@given(st.from_regex(r"\A(\.\.?/){1,4}[!-~]{0,20}\Z"))
def test_whatever_a_submodule_says_its_host_is_the_parents(url: str) -> None:
    try:
        written = read(submodule_url(f"https://{GOOD}/a/b/c", url))
    except SourceRefused:
        return
    assert (written.repository.scheme, written.repository.host) == ("https", GOOD)


# ---- where a mirror lies -------------------------------------------------------------------------


@given(st.from_regex(r"\A/[A-Za-z0-9._~/+,=@:!()-]{0,80}\Z"))
def test_a_mirrors_directory_is_one_plain_name(path: str) -> None:
    name = Repository("https", GOOD, path).directory
    assert "/" not in name
    assert len(name) < 100
    assert Path("/root", name).resolve() == Path("/root", name)
    assert name.endswith(".git")


def test_two_repositories_have_two_directories() -> None:
    one = Repository("ssh", GOOD, "/team/x", "git")
    others = [
        attrs.evolve(one, scheme="https"),
        attrs.evolve(one, host="h"),
        attrs.evolve(one, path="/other/x"),
        attrs.evolve(one, path="/team/x.git"),
        attrs.evolve(one, user="root"),
    ]
    assert len({each.directory for each in (one, *others)}) == 6
