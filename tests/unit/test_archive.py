"""What leaves a sandbox as a directory is an archive of our own, of checked members."""

from __future__ import annotations

import contextlib
import io
import tarfile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxworker.commands.archive import ArchiveRefused, Limits, rewrite


def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, **more: Any) -> Any:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    for field, value in more.items():
        setattr(info, field, value)
    return info


def archive(*members: tarfile.TarInfo) -> io.BytesIO:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for info in members:
            tar.addfile(info, io.BytesIO(b"x" * info.size) if info.size else None)
    file.seek(0)
    return file


def rewritten(
    source: io.BytesIO, compress: str | None = None, size: int = 10_000, files: int = 100
) -> tuple[dict[str, tarfile.TarInfo], list[str]]:
    target, left_out = io.BytesIO(), []
    rewrite(source, target, compress, Limits(size, files), left_out.append)
    target.seek(0)
    mode: Any = f"r:{compress or ''}"
    with tarfile.open(fileobj=target, mode=mode) as tar:
        return {info.name: info for info in tar}, left_out


@pytest.mark.parametrize("compress", [None, "gz", "bz2"])
def test_regular_files_and_directories_come_through(compress: str | None) -> None:
    source = archive(
        member("./"), member("./d", tarfile.DIRTYPE, mode=0o750), member("./d/f", size=5)
    )
    found, left_out = rewritten(source, compress)
    assert sorted(found) == ["d", "d/f"]
    assert found["d"].isdir()
    assert found["d/f"].size == 5
    assert left_out == []


def test_nothing_but_permission_bits_times_and_content_is_kept() -> None:
    hostile = member("f", mode=0o6777, uid=1, gid=2, uname="root", gname="root", mtime=-5, size=1)
    info = rewritten(archive(hostile))[0]["f"]
    assert (info.mode, info.uid, info.gid, info.uname, info.mtime) == (0o777, 0, 0, "", 0)


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE],
)
def test_links_and_special_files_are_left_out_by_name(kind: bytes) -> None:
    found, left_out = rewritten(archive(member("odd", kind, linkname="/etc/passwd")))
    if kind == tarfile.CONTTYPE:  # A regular file by another name.
        assert found["odd"].isreg()
    else:
        assert (found, left_out) == ({}, ["odd"])


def test_second_name_of_a_file_gets_its_content() -> None:
    source = archive(member("f", size=3), member("g", tarfile.LNKTYPE, linkname="f"))
    found, _ = rewritten(source)
    assert found["g"].isreg()
    assert found["g"].size == 3


def test_second_name_of_something_outside_is_left_out() -> None:
    assert rewritten(archive(member("g", tarfile.LNKTYPE, linkname="/etc/passwd"))) == ({}, ["g"])


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/../../x", "a//b", "d/" * 200 + "x", "./../x", ".."]
)
def test_name_that_leaves_the_directory_is_refused(name: str) -> None:
    with pytest.raises(ArchiveRefused, match=r"leaves the directory|too deep"):
        rewritten(archive(member(name)))


def test_sizes_are_counted_after_decompression() -> None:
    with pytest.raises(ArchiveRefused, match="max_upload"):
        rewritten(archive(member("f", size=600), member("g", size=600)), "gz", size=1000)


def test_members_are_counted() -> None:
    with pytest.raises(ArchiveRefused, match="max_upload_files"):
        rewritten(archive(*(member(f"f{i}") for i in range(4))), files=3)


def test_size_that_is_only_claimed_is_refused() -> None:
    source = archive(member("f", size=512))
    cut = io.BytesIO(source.getvalue()[: 512 + 100])
    with pytest.raises(ArchiveRefused):
        rewritten(cut)


@given(st.binary(max_size=2000))
def test_what_is_no_archive_is_refused_or_gives_nothing_forged(noise: bytes) -> None:
    try:
        found, _ = rewritten(io.BytesIO(noise))
    except ArchiveRefused:
        return
    assert found == {} or all(not name.startswith(("/", "..")) for name in found)


# ---- what would fill the master's memory ---------------------------------------------------------


def raw_header(name: bytes, kind: bytes, size: int) -> bytes:
    """A header by hand: ``tarfile`` writes no forged ones."""
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    header[:100] = name.ljust(100, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
                                  tarfile.XHDTYPE, tarfile.XGLTYPE])  # fmt: skip
def test_a_header_without_end_is_not_taken_into_memory(kind: bytes) -> None:
    source = io.BytesIO(raw_header(b"x", kind, 4 * 1024 * 1024) + bytes(4 * 1024 * 1024))
    with pytest.raises(ArchiveRefused, match="a header in it is too long"):
        rewritten(source, size=2**30)


def test_headers_within_headers_without_end_are_refused() -> None:
    nested = raw_header(b"x", tarfile.GNUTYPE_LONGNAME, 1) + b"n".ljust(512, b"\0")
    source = io.BytesIO(nested * 5000 + raw_header(b"x", tarfile.REGTYPE, 0) + bytes(1024))
    with pytest.raises(ArchiveRefused, match=r"too long|no archive"):
        rewritten(source)


def test_a_map_of_a_sparse_file_without_end_is_refused() -> None:
    head = bytearray(raw_header(b"x", tarfile.GNUTYPE_SPARSE, 0))
    head[482] = 1  # "isextended": another block of the map follows.
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    block = (b"00000000001\0" * 42).ljust(504, b"\0") + b"\x01" + bytes(7)
    with pytest.raises(ArchiveRefused, match=r"too long|no archive"):
        rewritten(io.BytesIO(bytes(head) + block * 4000), size=2**30)


def test_the_directory_itself_is_no_file_but_only_once() -> None:
    with pytest.raises(ArchiveRefused, match="max_upload_files"):
        rewritten(archive(*[member("./", tarfile.DIRTYPE)] * 5), files=3)
    assert rewritten(archive(member("./", tarfile.DIRTYPE), member("f")), files=1)[0].keys() == {
        "f"
    }


def test_a_link_to_what_comes_later_does_not_read_on() -> None:
    """An honest archive names the file first; to look further would read all headers at once."""
    source = archive(member("link", tarfile.LNKTYPE, linkname="f"), member("f", size=1))
    found, left_out = rewritten(source)
    assert left_out == ["link"]
    assert list(found) == ["f"]


@given(st.binary(max_size=2048), st.integers(0, 2048))
def test_no_bytes_do_more_than_be_refused(noise: bytes, at: int) -> None:
    honest = archive(member("./", tarfile.DIRTYPE), member("./f", size=600)).getvalue()
    forged = honest[:at] + noise + honest[at + len(noise) :]
    with contextlib.suppress(ArchiveRefused):
        rewritten(io.BytesIO(forged))
