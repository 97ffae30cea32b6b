"""What ``sandboxworker.seccomp`` takes for a profile, and what it refuses."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxworker import seccomp
from sandboxworker.errors import SeccompError

ALLOW_READ = {"names": ["read"], "action": "SCMP_ACT_ALLOW"}


def profile(*rules: object, **fields: object) -> str:
    return json.dumps(
        {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [ALLOW_READ, *rules], **fields}
    )


def allow(name: str, *args: dict[str, Any], **fields: object) -> dict[str, object]:
    return {"names": [name], "action": "SCMP_ACT_ALLOW", "args": list(args), **fields}


def condition(index: int, op: str, value: int, second: int = 0) -> dict[str, Any]:
    return {"index": index, "op": f"SCMP_CMP_{op}", "value": value, "valueTwo": second}


def faults(text: str) -> tuple[str, ...]:
    with pytest.raises(SeccompError) as caught:
        seccomp.parse(text, "mine")
    assert caught.value.profile == "mine"
    return caught.value.faults


class TestText:
    def test_is_canonical_and_named_by_its_digest(self) -> None:
        parsed = seccomp.parse(profile(), "mine")
        assert parsed.text == json.dumps(
            json.loads(parsed.text), sort_keys=True, separators=(",", ":")
        )
        assert parsed.digest == "sha256:" + hashlib.sha256(parsed.text.encode()).hexdigest()

    def test_digest_does_not_depend_on_layout_nor_on_the_name(self) -> None:
        spread = json.dumps(json.loads(profile()), indent=4, sort_keys=True)
        assert seccomp.parse(spread, "one").digest == seccomp.parse(profile(), "other").digest

    def test_digest_depends_on_every_rule(self) -> None:
        other = seccomp.parse(profile(allow("write")), "a")
        assert seccomp.parse(profile(), "a").digest != other.digest

    @pytest.mark.parametrize(
        ("text", "fault"),
        [
            ("", "not JSON: Expecting value (line 1, column 1)"),
            ('{"defaultAction":', "not JSON: Expecting value (line 1, column 18)"),
            ('{"a": NaN}', "not JSON: NaN is no number"),
            ('{"syscalls": [], "syscalls": []}', "not JSON: a key comes twice in one object"),
            ("[" * 200_000, "not JSON: nested too deeply"),
            ("[]", "not a JSON object"),
            ('"build"', "not a JSON object"),
            ("null", "not a JSON object"),
        ],
    )
    def test_that_is_no_profile_is_refused_with_one_fault(self, text: str, fault: str) -> None:
        assert faults(text) == (fault,)

    @given(st.text())
    def test_whatever_it_is_gives_a_seccomp_error_or_a_profile(self, text: str) -> None:
        with pytest.raises(SeccompError):
            seccomp.parse(text, "mine")

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        )
    )
    def test_any_json_in_any_place_is_judged_without_a_crash(self, value: object) -> None:
        texts = [
            json.dumps(value),
            profile(value),
            profile({**ALLOW_READ, "args": value}),
            profile({**ALLOW_READ, "args": [value]}),
            profile({**ALLOW_READ, "includes": value}),
            *(profile({**ALLOW_READ, key: value}) for key in ("names", "name", "action")),
            *(profile(**{key: value}) for key in ("defaultAction", "syscalls", "archMap")),
            profile(archMap=[value], architectures=value),
            profile(archMap=[{"architecture": value, "subArchitectures": value}]),
        ]
        for text in texts:
            with contextlib.suppress(SeccompError):
                seccomp.parse(text, "mine")


class TestShape:
    @pytest.mark.parametrize(
        "action", ["SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE", 1, None]
    )
    def test_default_must_refuse(self, action: object) -> None:
        assert faults(profile(defaultAction=action)) == (
            f"defaultAction is {action!r}, not SCMP_ACT_ERRNO or SCMP_ACT_KILL_PROCESS",
        )

    @pytest.mark.parametrize("action", ["SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS"])
    def test_default_may_be_an_error_or_death(self, action: str) -> None:
        assert seccomp.parse(profile(defaultAction=action), "mine")

    @pytest.mark.parametrize("key", ["DefaultAction", "Syscalls", "listenerPath", "flags", ""])
    def test_a_key_that_an_engine_may_read_otherwise_is_refused(self, key: str) -> None:
        assert faults(profile(**{key: "SCMP_ACT_ALLOW"})) == (
            f"the profile has unknown keys {key!r}",
        )

    def test_unknown_keys_of_architectures_are_refused(self) -> None:
        entry = {"architecture": "SCMP_ARCH_X86_64", "SubArchitectures": ["SCMP_ARCH_X86"]}
        assert faults(profile(archMap=[entry])) == ("archMap has unknown keys 'SubArchitectures'",)

    def test_unknown_keys_of_rules_and_conditions_are_refused(self) -> None:
        rule = {**allow("write", {**condition(0, "EQ", 1), "Op": "x"}), "Names": ["mount"]}
        assert faults(profile(rule)) == (
            "syscalls[1]: the rule has unknown keys 'Names'",
            "syscalls[1]: a condition has unknown keys 'Op'",
        )

    @pytest.mark.parametrize("rules", [None, {}, [], "read"])
    def test_rules_must_be_there(self, rules: object) -> None:
        assert faults(profile(syscalls=rules)) == ("syscalls is not a list of rules",)

    def test_every_fault_is_told_at_once(self) -> None:
        wrong = profile(3, {"names": [], "action": "ALLOW"}, defaultAction="SCMP_ACT_ALLOW")
        assert faults(wrong) == (
            "defaultAction is 'SCMP_ACT_ALLOW', not SCMP_ACT_ERRNO or SCMP_ACT_KILL_PROCESS",
            "syscalls[1]: not an object",
            "syscalls[2]: action is 'ALLOW'",
            "syscalls[2]: names is not a list of system calls",
        )

    @pytest.mark.parametrize(
        "wrong",
        [
            condition(6, "EQ", 0),
            condition(0, "IS", 0),
            condition(0, "EQ", -1),
            condition(0, "EQ", 1 << 64),
            {"index": 0, "op": "SCMP_CMP_EQ", "value": "1"},
            {"index": True, "op": "SCMP_CMP_EQ", "value": 1},
            {},
        ],
    )
    def test_a_condition_must_be_one(self, wrong: dict[str, object]) -> None:
        assert faults(profile(allow("write", wrong))) == (
            f"syscalls[1]: not a condition: {wrong!r}",
        )

    @pytest.mark.parametrize("number", [-1, 4096, 1.5, "EPERM", True])
    def test_an_errno_must_be_one(self, number: object) -> None:
        rule = {"names": ["sync"], "action": "SCMP_ACT_ERRNO", "errnoRet": number}
        assert faults(profile(rule)) == (f"syscalls[1]: errnoRet is {number!r}",)

    def test_only_native_architectures_may_be_named(self) -> None:
        entry = {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}
        assert faults(profile(archMap=[entry])) == (
            "SCMP_ARCH_X86: entry points past the argument filters; only native 64-bit ones may be",
        )
        assert faults(profile(architectures=["SCMP_ARCH_ARM", "SCMP_ARCH_AARCH64"]))
        assert seccomp.parse(profile(architectures=["SCMP_ARCH_AARCH64"]), "mine")


class TestDanger:
    @pytest.mark.parametrize("name", sorted(seccomp.DANGEROUS))
    def test_a_dangerous_call_is_refused(self, name: str) -> None:
        assert faults(profile(allow(name))) == (
            f"syscalls[1]: lets {name} through ({seccomp.DANGEROUS[name]})",
        )

    @pytest.mark.parametrize("action", ["SCMP_ACT_LOG", "SCMP_ACT_TRACE", "SCMP_ACT_NOTIFY"])
    def test_letting_through_has_many_names(self, action: str) -> None:
        assert faults(profile({"names": ["bpf"], "action": action}))

    def test_the_older_form_of_a_rule_is_seen_too(self) -> None:
        assert faults(profile({"name": "bpf", "action": "SCMP_ACT_ALLOW"}))

    def test_arguments_do_not_make_a_dangerous_call_harmless(self) -> None:
        assert faults(profile(allow("mount", condition(3, "EQ", 4096))))

    def test_refusing_a_dangerous_call_is_fine(self) -> None:
        rule = {"names": ["bpf", "clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}
        assert seccomp.parse(profile(rule), "mine")

    def test_a_rule_for_containers_with_a_capability_never_applies(self) -> None:
        rule = allow("mount", includes={"caps": ["CAP_SYS_ADMIN"]})
        assert seccomp.parse(profile(rule), "mine")
        assert faults(profile(allow("mount", includes={"caps": []})))

    def test_ptrace_is_allowed(self) -> None:
        assert seccomp.parse(profile(allow("ptrace")), "mine")

    @pytest.mark.parametrize("name", ["clone", "socket", "ioctl"])
    def test_some_calls_need_a_filter(self, name: str) -> None:
        found = faults(profile(allow(name)))
        assert len(found) == sum(call == name for call, _, _ in seccomp.HOSTILE)

    @pytest.mark.parametrize(
        "rule",
        [
            allow("clone", condition(0, "MASKED_EQ", 0x7E020000)),
            allow("socket", condition(0, "EQ", 1)),
            allow("socket", condition(0, "EQ", 16), condition(2, "EQ", 0)),
            allow("ioctl", condition(1, "EQ", 0x5401)),
        ],
    )
    def test_a_filter_that_keeps_the_hostile_out_is_taken(self, rule: dict[str, object]) -> None:
        assert seccomp.parse(profile(rule), "mine")

    @pytest.mark.parametrize(
        ("rule", "through"),
        [
            (allow("clone", condition(0, "MASKED_EQ", 0x00020000)), "a new user namespace"),
            (allow("clone", condition(1, "EQ", 0)), "a new mount namespace"),
            (allow("socket", condition(0, "NE", 40)), "AF_VSOCK, with a high bit set"),
            (allow("socket", condition(0, "LT", 38)), "AF_PACKET"),
            (allow("socket", condition(0, "LE", 16)), "netlink to netfilter"),
            (allow("socket", condition(0, "GE", 38)), "AF_ALG"),
            (allow("ioctl", condition(1, "NE", 0x5412)), "TIOCSTI, with a high bit set"),
            (allow("ioctl", condition(1, "GT", 0x5412)), "TIOCLINUX"),
        ],
    )
    def test_a_filter_that_does_not_is_refused(self, rule: dict[str, object], through: str) -> None:
        name = str(rule["names"][0])  # type: ignore[index]
        assert f"syscalls[1]: lets {name} through for {through}" in faults(profile(rule))

    def test_two_conditions_on_one_argument_count_as_either(self) -> None:
        rule = allow("socket", condition(0, "NE", 40), condition(0, "NE", 38))
        assert "syscalls[1]: lets socket through for AF_VSOCK" in faults(profile(rule))


class TestLoad:
    @pytest.mark.parametrize("name", seccomp.PACKAGED)
    def test_packaged_profiles_are_found_by_name(self, name: str) -> None:
        assert seccomp.load(name).name == name

    def test_packaged_profiles_differ(self) -> None:
        assert seccomp.load("build").digest != seccomp.load("strict").digest

    def test_a_file_is_found_by_its_path(self, tmp_path: Path) -> None:
        path = tmp_path / "mine"
        path.write_text(profile())
        assert seccomp.load(str(path)) == seccomp.parse(profile(), str(path))

    def test_a_file_beside_is_found_by_its_ending(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "mine.json").write_text(profile())
        monkeypatch.chdir(tmp_path)
        assert seccomp.load("mine.json").name == "mine.json"

    @pytest.mark.parametrize("name", ["", "unconfined", "default", "Build", ".."])
    def test_an_unknown_name_is_refused(self, name: str) -> None:
        with pytest.raises(SeccompError, match="there are build, strict") as caught:
            seccomp.load(name)
        assert caught.value.profile == name

    @pytest.mark.parametrize(
        ("path", "fault"),
        [
            ("/nonexistent/x.json", "cannot be read: No such file or directory"),
            ("/dev", "cannot be read: Is a directory"),
            ("/nul\0", "not UTF-8 text"),
        ],
    )
    def test_a_file_that_cannot_be_read_is_one_fault(self, path: str, fault: str) -> None:
        with pytest.raises(SeccompError) as caught:
            seccomp.load(path)
        assert caught.value.faults == (fault,)

    def test_an_endless_file_is_refused(self) -> None:
        with pytest.raises(SeccompError, match="larger than"):
            seccomp.load("/dev/zero")

    def test_bytes_that_are_no_text_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "x.json").write_bytes(b"\xff\xfe")
        with pytest.raises(SeccompError, match="not UTF-8 text"):
            seccomp.load(str(tmp_path / "x.json"))
