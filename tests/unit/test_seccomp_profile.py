"""The profiles in ``seccomp/``: up to date, free of the known traps, and deciding as meant.

Which calls they refuse on a real engine is the business of ``tests/containment``.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxworker import seccomp

FOLDER = Path(__file__).resolve().parents[2] / "seccomp"
ERRNO, ALLOW = "SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW"
EPERM, EINVAL, ENOSYS, EAFNOSUPPORT = 1, 22, 38, 97
HIGH = 1 << 32
REFUSED_IOCTLS = (0x5412, 0x541C, 0x5423, 0x40086602, 0x401C5820)


def tool(name: str) -> ModuleType:
    """A script of the folder, which is no package, as a module."""
    spec = importlib.util.spec_from_file_location(f"seccomp_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


generate = tool("generate")
lint = tool("lint")
KNOWN = lint.known_calls()


def packaged(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return content


BUILD, STRICT = packaged("build"), packaged("strict")


def decide(profile: dict[str, Any], name: str, *arguments: int) -> object:
    """What a profile answers to a call; that two rules differ on it is an error."""
    rules = [rule for rule in profile["syscalls"] if name in rule["names"]]
    answers = {lint.result(rule) for rule in rules if seccomp._passes(rule, arguments)}
    assert len(answers) <= 1, f"{name}{arguments} has several answers"
    if not answers:
        return EPERM
    action, number = answers.pop()
    return ALLOW if action == ALLOW else number


class TestFiles:
    def test_are_what_the_source_says(self) -> None:
        files = generate.make_files(lambda name: (FOLDER / name).read_text())
        assert generate.stale(files) == []

    @pytest.mark.parametrize("name", ["build", "strict"])
    def test_are_taken_by_our_own_parser(self, name: str) -> None:
        assert seccomp.parse((FOLDER / f"{name}.json").read_text(), name)

    @pytest.mark.parametrize("name", ["build", "strict"])
    def test_have_no_finding(self, name: str) -> None:
        assert lint.lint(packaged(name), KNOWN) == []

    def test_the_package_carries_them(self) -> None:
        for name in seccomp.PACKAGED:
            assert seccomp.load(name) == seccomp.parse((FOLDER / f"{name}.json").read_text(), name)

    def test_have_the_digests_of_their_last_version(self) -> None:
        head, *lines = (FOLDER / "versions.tsv").read_text().splitlines()
        versions = [dict(zip(head.split("\t"), line.split("\t"), strict=True)) for line in lines]
        numbers = [version.pop("version") for version in versions]
        assert numbers == [str(number + 1) for number in range(len(versions))]
        assert versions[-1] == {name: seccomp.load(name).digest for name in seccomp.PACKAGED}

    def test_every_group_has_a_reason(self) -> None:
        for section in generate.read_sections((FOLDER / "source.ini").read_text()):
            assert section.why.endswith("."), section.title
            assert all(line.why for lines in section.lines.values() for line in lines)

    def test_strict_allows_less_and_nothing_more(self) -> None:
        assert allowed(STRICT) < allowed(BUILD)
        assert allowed(BUILD) - allowed(STRICT) == {"ptrace", "get_robust_list"}

    def test_allow_fewer_calls_than_docker(self) -> None:
        calls = generate.read_calls((FOLDER / "syscalls.tsv").read_text())
        docker = {name for name, row in calls.items() if row["docker-20.10"] == "allow"}
        assert len(allowed(BUILD)) < len(docker)

    def test_the_source_must_decide_each_call_once(self) -> None:
        sections = generate.read_sections("[allow:a]\nwhy = x\ncalls = read read frobnicate\n")
        with pytest.raises(generate.SourceError) as caught:
            generate.check_complete(sections, ["read", "write"])
        expected = "decided twice: read; undecided call: write; unknown call: frobnicate"
        assert str(caught.value) == expected


def allowed(profile: dict[str, Any]) -> set[str]:
    rules = profile["syscalls"]
    return {name for rule in rules if rule["action"] == ALLOW for name in rule["names"]}


class TestDecisions:
    @pytest.mark.parametrize("name", ["read", "execve", "futex", "openat", "ptrace", "mseal"])
    def test_ordinary_calls_pass(self, name: str) -> None:
        assert decide(BUILD, name) == ALLOW

    @pytest.mark.parametrize("name", sorted(seccomp.DANGEROUS))
    def test_dangerous_calls_do_not(self, name: str) -> None:
        assert decide(BUILD, name) in (EPERM, EINVAL, ENOSYS)

    @pytest.mark.parametrize(
        "name", ["clone3", "io_uring_setup", "fsopen", "tee", "vmsplice", "userfaultfd"]
    )
    def test_calls_with_a_fall_back_seem_not_to_exist(self, name: str) -> None:
        assert decide(BUILD, name) == ENOSYS

    def test_splice_seems_to_find_no_file_that_it_could_splice(self) -> None:
        assert decide(BUILD, "splice") == decide(STRICT, "splice") == EINVAL

    def test_strict_refuses_ptrace(self) -> None:
        assert decide(STRICT, "ptrace") == EPERM

    @pytest.mark.parametrize("name", ["sync", "syncfs"])
    def test_flushing_the_host_seems_to_succeed(self, name: str) -> None:
        assert decide(BUILD, name) == 0

    @given(st.integers(0, (1 << 64) - 1))
    def test_clone_makes_no_namespace(self, flags: int) -> None:
        expected = EPERM if flags & 0x7E020000 else ALLOW
        assert decide(BUILD, "clone", flags) == expected

    @given(st.integers(0, 80) | st.integers(0, (1 << 64) - 1))
    def test_only_four_families_make_sockets(self, family: int) -> None:
        expected = ALLOW if family in (1, 2, 10, 16) else EAFNOSUPPORT
        assert decide(BUILD, "socket", family, 1, 0) == expected
        assert decide(BUILD, "socketpair", family) == (ALLOW if family == 1 else EAFNOSUPPORT)

    @given(st.sampled_from([2, 10]), st.integers(0, 15), st.integers(0, 300))
    def test_internet_sockets_are_tcp_or_udp(self, family: int, kind: int, protocol: int) -> None:
        usual = (kind, protocol) in {(1, 0), (1, 6), (2, 0), (2, 17)}
        for flags in (0, 0x800, 0x80000, 0x80800):
            answer = decide(BUILD, "socket", family, kind | flags, protocol)
            assert answer == (ALLOW if usual else EPERM)

    @given(st.integers(0, (1 << 64) - 1))
    def test_netlink_is_only_for_routes(self, protocol: int) -> None:
        expected = EPERM if protocol % HIGH else ALLOW
        assert decide(BUILD, "socket", 16, 3, protocol) == expected

    @given(st.sampled_from(REFUSED_IOCTLS), st.integers(0, HIGH - 1))
    def test_refused_ioctls_are_refused_with_any_high_bits(self, command: int, high: int) -> None:
        assert decide(BUILD, "ioctl", 3, high * HIGH | command) == EPERM

    @given(st.integers(0, (1 << 64) - 1) | st.integers(0x5400, 0x5500))
    def test_all_other_ioctls_pass(self, command: int) -> None:
        expected = EPERM if command % HIGH in REFUSED_IOCTLS else ALLOW
        assert decide(BUILD, "ioctl", 3, command) == expected

    @pytest.mark.parametrize("value", [0x400000, 0x40000, 0x20000, HIGH | 0x400000, 0x100000])
    def test_personality_weakens_nothing(self, value: int) -> None:
        assert decide(BUILD, "personality", value) == EPERM

    @pytest.mark.parametrize("value", [0, 8, 0xFFFFFFFF, (1 << 64) - 1])
    def test_personality_may_be_asked(self, value: int) -> None:
        assert decide(BUILD, "personality", value) == ALLOW

    @given(st.integers(0, 0xFFFFFFFF))
    def test_mknod_makes_no_device(self, mode: int) -> None:
        expected = ALLOW if mode & 0xF000 in (0, 0x8000, 0x1000, 0xC000) else EPERM
        assert decide(BUILD, "mknod", 0, mode) == expected
        assert decide(BUILD, "mknodat", 0, 0, mode) == expected


class TestComplement:
    @given(st.sets(st.integers(0, 255), min_size=1))
    def test_covers_everything_but_the_values_once(self, values: set[int]) -> None:
        pairs = list(generate.complement(values, 0xFF))
        for number in range(256):
            hits = sum(number & mask == value for mask, value in pairs)
            assert hits == (0 if number in values else 1)

    def test_two_terminal_commands_need_34_rules(self) -> None:
        assert len(list(generate.complement([0x5412, 0x541C], 0xFFFFFFFF))) == 34


def rule(name: str, action: str, *args: tuple[int, str, int], **fields: object) -> dict[str, Any]:
    conditions = [{"index": i, "op": f"SCMP_CMP_{op}", "value": v} for i, op, v in args]
    return {"names": [name], "action": action, "args": conditions, **fields}


def findings(*rules: dict[str, Any], **fields: object) -> list[str]:
    found: list[str] = lint.lint({"defaultAction": ERRNO, "syscalls": [*rules], **fields}, KNOWN)
    return found


TIOCSTI = (1, "EQ", 0x5412)


class TestLint:
    """Each trap that engines accept in silence."""

    def test_a_clean_profile_has_no_finding(self) -> None:
        assert findings(rule("read", ALLOW), rule("clone3", ERRNO, errnoRet=ENOSYS)) == []

    @pytest.mark.parametrize("order", [1, -1])
    def test_allowing_outright_beats_refusing_an_argument(self, order: int) -> None:
        rules = [rule("ioctl", ALLOW), rule("ioctl", ERRNO, TIOCSTI, errnoRet=13)]
        assert findings(*rules[::order]) == ["ioctl: allowed outright, which beats its other rules"]

    def test_two_conditions_on_one_argument_hold_as_or(self) -> None:
        found = findings(rule("socket", ALLOW, (0, "NE", 40), (0, "NE", 38)))
        assert "syscalls[0]: 2 conditions on argument 0 hold as 'or'" in found

    def test_two_not_equal_rules_allow_everything(self) -> None:
        found = findings(rule("socket", ALLOW, (0, "NE", 40)), rule("socket", ALLOW, (0, "NE", 38)))
        assert "socket: 2 'not equal' rules on argument 0 allow everything" in found

    def test_a_misspelt_name_makes_no_rule(self) -> None:
        assert findings(rule("io_uring_setpu", ERRNO, errnoRet=ENOSYS)) == [
            "io_uring_setpu: no such call on x86-64 or arm64, so this makes no rule"
        ]

    @pytest.mark.parametrize("fields", [{}, {"errnoRet": EPERM}])
    def test_a_rule_that_says_what_the_default_says_is_skipped(self, fields: Any) -> None:
        assert findings(rule("bpf", ERRNO, **fields)) == [
            "syscalls[0]: answers what the default answers, so it is skipped"
        ]

    def test_a_default_errno_is_ignored_by_older_engines(self) -> None:
        assert findings(rule("read", ALLOW), defaultErrnoRet=ENOSYS) == [
            "defaultErrnoRet: older engines ignore it; give rules an errnoRet"
        ]

    @pytest.mark.parametrize(
        "fields",
        [
            {"architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]},
            {
                "archMap": [
                    {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}
                ]
            },
        ],
    )
    def test_a_second_architecture_passes_the_filters(self, fields: Any) -> None:
        assert findings(rule("read", ALLOW), **fields) == [
            "SCMP_ARCH_X86: its entry points pass the filters on arguments"
        ]

    def test_two_lists_of_architectures_are_refused_by_docker(self) -> None:
        named = "SCMP_ARCH_X86_64"
        found = findings(
            rule("read", ALLOW), architectures=[named], archMap=[{"architecture": named}]
        )
        assert found == ["architectures and archMap: engines take one of them"]

    def test_multiplexers_carry_other_calls(self) -> None:
        assert "socketcall: carries other calls that no filter sees" in findings(
            rule("socketcall", ALLOW)
        )

    def test_the_same_conditions_with_different_answers(self) -> None:
        found = findings(rule("ioctl", ALLOW, TIOCSTI), rule("ioctl", ERRNO, TIOCSTI, errnoRet=13))
        assert found == ["ioctl: two rules with the same conditions and different answers"]

    def test_a_refusal_by_exclusion_is_passed_with_high_bits(self) -> None:
        (found,) = findings(rule("ioctl", ALLOW, (1, "NE", 0x5412)))
        assert found.startswith("syscalls[0]: allows numbers with high bits set")

    @pytest.mark.parametrize(
        ("argument", "problem"),
        [
            ({"index": 0, "op": "SCMP_CMP_IS", "value": 1}, "no such comparison: SCMP_CMP_IS"),
            ({"index": 6, "op": "SCMP_CMP_EQ", "value": 1}, "there is no argument 6"),
            ({"index": 0, "op": "SCMP_CMP_EQ", "value": -1}, "a value does not fit 64 bits"),
            (
                {"index": 0, "op": "SCMP_CMP_MASKED_EQ", "value": 0xF0, "valueTwo": 0x1},
                "0x1 has bits outside the mask 0xf0, so this never holds",
            ),
        ],
    )
    def test_a_condition_that_cannot_hold(self, argument: dict[str, Any], problem: str) -> None:
        wrong = {"names": ["read"], "action": ALLOW, "args": [argument]}
        assert findings(wrong) == [f"syscalls[0]: {problem}"]
