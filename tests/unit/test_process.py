"""The parts of ``process`` that need no sandbox: telling our words from a command's output."""

from __future__ import annotations

import os
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.internet import error

from sandboxworker.launch import Ended, Marked, launch, lines, waiting

MARKER = b"\x1eword "
#: No single word of ours is near this long.
MUCH = 4096

#: Pieces of a stream: ordinary bytes, whole words of ours, beginnings of them, fakes.
words = st.sampled_from([b"12", b"exit 0", b"signal 143", b"exit 255"])
pieces = st.one_of(
    st.binary(max_size=20),
    words.map(lambda word: MARKER + word + b"\n"),
    st.integers(0, len(MARKER)).map(lambda length: MARKER[:length]),
    st.sampled_from([b"\x1e", b"\x1e\x1e", b"\x1eword", b"\n", b"\x1e" * 20]),
)
streams = st.lists(pieces, max_size=12).map(b"".join)
cuts = st.lists(st.integers(0, 200), max_size=30)


def split(stream: bytes, at: list[int]) -> list[bytes]:
    places = sorted({0, len(stream), *(place for place in at if place < len(stream))})
    return [stream[begin:end] for begin, end in pairwise(places)]


def fed(chunks: list[bytes]) -> tuple[bytes, list[str]]:
    marked = Marked(MARKER)
    output = b"".join(marked.feed(chunk) for chunk in chunks)
    return output, marked.words


class TestMarked:
    @given(streams, cuts)
    @example(MARKER + b"exit 0\n", list(range(20)))
    @example(b"\x1e\x1e" + MARKER + b"exit 0\nrest", list(range(30)))
    def test_any_split_into_chunks_gives_the_same_output_and_words(
        self, stream: bytes, at: list[int]
    ) -> None:
        stream += b"end\n"
        assert fed(split(stream, at)) == fed([stream])

    @given(streams, cuts, st.integers(1, 600))
    @example(b"", [270, 280, 300], 600)
    def test_a_fake_word_without_an_end_is_no_exception_to_that(
        self, stream: bytes, at: list[int], length: int
    ) -> None:
        stream = stream + b"\n" + MARKER + b"x" * length + b"\nend\n"
        assert fed(split(stream, at)) == fed([stream])

    @given(st.lists(st.binary(max_size=20).filter(lambda data: b"\x1e" not in data)), words, cuts)
    def test_every_byte_of_output_is_given_and_no_byte_of_ours(
        self, output: list[bytes], word: bytes, at: list[int]
    ) -> None:
        stream = b"".join(part + MARKER + word + b"\n" for part in output)
        told = [word.decode()] * min(len(output), 8)
        assert fed(split(stream, at)) == (b"".join(output), told)

    @given(st.binary(max_size=300), cuts)
    def test_output_without_our_marker_passes_whole_but_for_the_beginning_of_one(
        self, output: bytes, at: list[int]
    ) -> None:
        given_output, told = fed(split(output, at))
        assert told == []
        assert output.startswith(given_output)
        assert MARKER.startswith(output[len(given_output) :])

    def test_bytes_are_given_as_soon_as_they_cannot_be_ours(self) -> None:
        marked = Marked(MARKER)
        assert marked.feed(b"progress: 10 %") == b"progress: 10 %"
        assert marked.feed(b"\x1ewo") == b""
        assert marked.feed(b"w!") == b"\x1ewow!"

    def test_word_may_follow_output_that_has_no_newline(self) -> None:
        assert fed([b"no newline" + MARKER + b"exit 3\n"]) == (b"no newline", ["exit 3"])

    def test_terminals_line_ending_is_no_part_of_a_word(self) -> None:
        assert fed([MARKER + b"exit 3\r\n"]) == (b"", ["exit 3"])

    @given(
        st.lists(st.sampled_from([MARKER, b"\x1e", b"x" * 50, b"\n", b"\xff" * 50]), max_size=200)
    )
    def test_whatever_a_build_writes_little_is_kept(self, chunks: list[bytes]) -> None:
        marked = Marked(MARKER)
        for chunk in chunks:
            marked.feed(chunk)
            assert len(marked._kept) + sum(map(len, marked.words)) <= MUCH

    def test_one_endless_line_behind_a_faked_marker_is_not_kept(self) -> None:
        marked = Marked(MARKER)
        marked.feed(MARKER)
        for _ in range(1000):
            marked.feed(b"x" * 1000)
            assert len(marked._kept) + sum(map(len, marked.words)) <= MUCH

    def test_endless_fakes_are_not_collected(self) -> None:
        marked = Marked(MARKER)
        for _ in range(1000):
            marked.feed(MARKER + b"exit 0\n")
        assert len(marked.words) == 8


class TestEnded:
    @pytest.mark.parametrize(
        ("kind", "status", "ended"),
        [
            ("exit", 0, Ended(exit_code=0)),
            ("exit", 3, Ended(exit_code=3)),
            ("exit", 137, Ended(exit_code=137)),
            ("exit", 255, Ended(exit_code=255)),
            ("signal", 137, Ended(signal=9)),
            ("signal", 143, Ended(signal=15)),
            ("signal", 139, Ended(signal=11)),
            ("signal", 128, Ended(exit_code=128)),
            ("signal", 3, Ended(exit_code=3)),
            ("anything", 143, Ended(exit_code=143)),
        ],
    )
    def test_is_a_signal_only_where_the_shell_says_so(
        self, kind: str, status: int, ended: Ended
    ) -> None:
        assert Ended.told(kind, status) == ended

    def test_success_is_process_done(self) -> None:
        assert Ended(exit_code=0).reason().check(error.ProcessDone)

    def test_exit_code_is_told_as_one(self) -> None:
        reason = Ended(exit_code=3).reason()
        assert reason.check(error.ProcessTerminated)
        assert (reason.value.exitCode, reason.value.signal) == (3, None)

    def test_signal_is_told_as_one(self) -> None:
        reason = Ended(signal=15).reason()
        assert reason.check(error.ProcessTerminated)
        assert (reason.value.exitCode, reason.value.signal) == (None, 15)

    def test_unknown_end_is_no_success(self) -> None:
        reason = Ended().reason()
        assert reason.check(error.ProcessTerminated)
        assert (reason.value.exitCode, reason.value.signal) == (None, None)


def launched(
    argv: list[str], directory: str, stdin: bytes | None = None
) -> tuple[bytes, bytes, list[str], list[str]]:
    """What our shell lines give under this machine's own shell: outputs and words."""
    command = launch("\x1eword", directory, argv, None if stdin is None else len(stdin))
    done = subprocess.run(command, input=stdin or b"", capture_output=True, timeout=60)
    out, err = Marked(MARKER), Marked(MARKER)
    return out.feed(done.stdout), err.feed(done.stderr), out.words, err.words


def waited(
    argv: list[str],
    directory: str,
    stdin: bytes | None = None,
    environ: dict[str, str] | None = None,
) -> tuple[bytes, bytes, list[str], list[str]]:
    """What a waiting shell gives, under this machine's own shell, for the lines of a command."""
    size = None if stdin is None else len(stdin)
    given = lines("\x1e12345678word", directory, argv, size, environ)
    assert given is not None
    done = subprocess.run(
        waiting("name"),
        input=given + (stdin or b"") + b"beyond",
        capture_output=True,
        timeout=60,
        env={"PATH": os.environ["PATH"], "HOSTNAME": "h", "LANG": "C.UTF-8"},
    )
    pid, _, stdout = done.stdout.partition(b"\n")
    assert pid.isdigit()
    marker = b"\x1e12345678word "
    out, err = Marked(marker), Marked(marker)
    return out.feed(stdout), err.feed(done.stderr), out.words, err.words


class TestWaiting:
    @given(st.lists(st.text(st.characters(min_codepoint=1, max_codepoint=126)), max_size=6))
    @settings(max_examples=25)
    def test_a_command_gets_each_argument_as_it_is(self, words: list[str]) -> None:
        output, errors, told, _ = waited(["printf", "<%s>", "begin", *words], "/")
        assert output == "".join(f"<{word}>" for word in ["begin", *words]).encode()
        assert errors == b""
        assert told[-1] == "exit 0"

    @given(
        st.dictionaries(
            st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,8}", fullmatch=True),
            st.text(st.characters(min_codepoint=1, max_codepoint=126)),
            max_size=6,
        )
    )
    @settings(max_examples=25)
    def test_a_command_sees_exactly_its_environment(self, environ: dict[str, str]) -> None:
        environ = {**environ, "PATH": os.environ["PATH"]}
        if lines("\x1e12345678word", "/", ["env", "-0"], None, environ) is None:
            return
        output, _, _, _ = waited(["env", "-0"], "/", None, environ)
        seen = dict(line.split("=", 1) for line in output.decode().split("\0") if line)
        seen.pop("_", None)
        assert seen == environ

    def test_stdin_is_what_follows_its_lines_up_to_the_length_said(self, tmp_path: Path) -> None:
        data = bytes(range(256)) * 100
        output, _, told, _ = waited(["cat"], str(tmp_path), data)
        assert output == data
        assert told[-1] == "exit 0"

    def test_without_stdin_a_command_reads_none_of_what_follows(self, tmp_path: Path) -> None:
        output, _, told, _ = waited(["cat"], str(tmp_path))
        assert output == b""
        assert told[-1] == "exit 0"

    def test_lines_that_never_end_are_not_run(self, tmp_path: Path) -> None:
        given = lines("\x1e12345678word", str(tmp_path), ["touch", "made"], None, None)
        assert given is not None
        subprocess.run(waiting("name"), input=given[:-5], capture_output=True, timeout=60)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("argv", "environ"),
        [
            pytest.param(["echo", "\u0141"], {}, id="no-ascii"),
            pytest.param(["echo", "a" * 9000], {}, id="long"),
            pytest.param(["true"], {"UID": "1"}, id="the-shells-own"),
            pytest.param(["true"], {"a.b": "1"}, id="no-name-for-a-shell"),
            pytest.param(["true"], {"A": "\udcff"}, id="no-utf-8"),
        ],
    )
    def test_what_shells_differ_in_is_left_to_a_shell_of_its_own(
        self, argv: list[str], environ: dict[str, str]
    ) -> None:
        assert lines("\x1e12345678word", "/", argv, None, environ) is None


class TestLaunch:
    def test_puts_nothing_of_the_command_into_the_shells_program(self, tmp_path: Path) -> None:
        ugly = ["-n", "a b", "$(touch x)", "'\"`\\", "new\nline", "--", "*", ""]
        output, _, _, _ = launched(["printf", "<%s>", *ugly], str(tmp_path))
        assert output == "".join(f"<{word}>" for word in ugly).encode()
        assert list(tmp_path.iterdir()) == []

    def test_tells_the_pid_and_then_the_end_on_both_streams(self, tmp_path: Path) -> None:
        output, errors, words, more = launched(
            ["sh", "-c", "echo out; echo err >&2; exit 3"], str(tmp_path)
        )
        assert (output, errors) == (b"out\n", b"err\n")
        pid, end = words
        assert pid.isdigit()
        assert end == "exit 3"
        assert more == ["exit 3"]

    @pytest.mark.parametrize(("name", "status"), [("KILL", 137), ("TERM", 143), ("SEGV", 139)])
    def test_tells_death_by_a_signal_from_an_exit_of_the_same_number(
        self, tmp_path: Path, name: str, status: int
    ) -> None:
        _, _, killed, _ = launched(["sh", "-c", f"kill -{name} $$"], str(tmp_path))
        _, _, ended, _ = launched(["sh", "-c", f"exit {status}"], str(tmp_path))
        assert killed[-1] == f"signal {status}"
        assert ended[-1] == f"exit {status}"

    def test_gives_stdin_of_the_length_said(self, tmp_path: Path) -> None:
        data = bytes(range(256)) * 100
        output, _, words, _ = launched(["cat"], str(tmp_path), data)
        assert output == data
        assert words[-1] == "exit 0"

    def test_makes_the_directory_and_starts_there(self, tmp_path: Path) -> None:
        directory = tmp_path / "-a b" / "c"
        output, _, _, _ = launched(["pwd", "-P"], str(directory))
        assert output.decode().strip() == str(directory.resolve())

    def test_command_that_is_not_there_is_exit_127(self, tmp_path: Path) -> None:
        _, errors, words, _ = launched(["no-such-command"], str(tmp_path))
        assert words[-1] == "exit 127"
        assert b"no-such-command" in errors
