"""Compressed layers: kinds, members, bombs, cuts, and files that still grow."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from carrel import errdefs
from carrel.containerd import unpack_stream
from carrel.containerd.tarstream import BadArchive, TarReader
from carrel.containerd.unpack_layers import apply_stream
from carrel.containerd.unpack_stream import FileReader, Growing, Prefetcher, decompressor
from tests import images

DATA = os.urandom(300_000) + bytes(300_000)


def reader(data: bytes, tmp_path: Path, growing: Growing | None = None) -> FileReader:
    path = tmp_path / "blob"
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    return FileReader(fd, growing or Growing(len(data), done=True))


def drain(data: bytes, tmp_path: Path) -> tuple[bytes, str]:
    stream, _ = decompressor(reader(data, tmp_path))
    prefetch = Prefetcher(stream)
    try:
        out = bytearray()
        while chunk := prefetch.next_chunk():
            out += chunk
        return bytes(out), prefetch.digest
    finally:
        prefetch.close()


@pytest.mark.parametrize("compress", [
    bytes, gzip.compress, zstandard.compress, lzma.compress, bz2.compress,
    lambda d: gzip.compress(d[:1000]) + gzip.compress(d[1000:]),
    lambda d: zstandard.compress(d[:1000]) + zstandard.compress(d[1000:]),
    lambda d: b"\x50\x2a\x4d\x18\x04\0\0\0skip" + zstandard.compress(d),
], ids=["plain", "gzip", "zstd", "xz", "bzip2", "gzip members", "zstd frames", "zstd skippable"])
def test_kinds(compress: Callable[[bytes], bytes], tmp_path: Path) -> None:
    data, digest = drain(compress(DATA), tmp_path)
    assert data == DATA and digest == images.digest(DATA)


@pytest.mark.parametrize("data", [
    gzip.compress(DATA)[:-400], gzip.compress(DATA)[:-4] + b"1234",
    gzip.compress(DATA) + b"garbage behind",
    lzma.compress(DATA)[:-40], b"\x28\xb5\x2f\xfd" + b"\xff" * 60,
    # a frame header that claims a window of 2 GiB and more
    b"\x28\xb5\x2f\xfd\x00\xa8" + bytes(60),
], ids=["gzip cut", "gzip checksum", "gzip trailing", "xz cut", "zstd rubbish",
        "zstd window"])
def test_broken_streams(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(BadArchive):
        drain(data, tmp_path)


def test_a_cut_zstd_frame_has_another_digest(tmp_path: Path) -> None:
    """The library ends a cut frame in silence: the diff ID is what notices."""
    data, digest = drain(zstandard.compress(DATA)[:-400], tmp_path)
    assert len(data) < len(DATA) and digest != images.digest(DATA)


def test_bomb_needs_little_memory(tmp_path: Path) -> None:
    """1 GB of zeros in 1 MB: streamed, and ended by whoever reads."""
    bomb = gzip.compress(bytes(100 << 20), 9) * 10
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    stream, _ = decompressor(reader(bomb, tmp_path))
    prefetch = Prefetcher(stream)
    try:
        with pytest.raises(BadArchive):     # zeros end the archive; what follows is drained
            tar = TarReader(prefetch.next_chunk)
            assert list(tar) == []
            raise BadArchive("nothing in it")
    finally:
        prefetch.close()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


def test_unpack_while_the_blob_grows(tmp_path: Path) -> None:
    data = gzip.compress(images.layer({f"f{n}": os.urandom(5000) for n in range(200)}), 1)
    path, root = tmp_path / "growing", tmp_path / "root"
    root.mkdir()
    path.touch()
    growing = Growing()
    seen: list[int] = []

    def feed() -> None:
        with open(path, "ab", buffering=0) as file:
            for at in range(0, len(data), 40_000):
                file.write(data[at:at + 40_000])
                growing.advance(min(at + 40_000, len(data)))
                seen.append(len(os.listdir(root)))
                time.sleep(0.01)
        growing.finish()

    thread = threading.Thread(target=feed)
    fd = os.open(path, os.O_RDONLY)
    thread.start()
    extracted = apply_stream(FileReader(fd, growing), str(root), [])
    thread.join()
    os.close(fd)
    assert extracted.applied.entries == 200
    assert any(0 < count < 200 for count in seen), "nothing was unpacked before the end"


@pytest.mark.parametrize("how", ["fail", "stop"])
def test_a_waiting_reader_is_woken(tmp_path: Path, how: str) -> None:
    growing, stop = Growing(10), threading.Event()
    source = reader(b"x" * 10, tmp_path, growing)
    source._stop = stop
    timer = threading.Timer(0.05, lambda: growing.fail(OSError("gone")) if how == "fail"
                            else stop.set())
    timer.start()
    started = time.monotonic()
    with pytest.raises(errdefs.Cancelled):
        io.BufferedReader(source, 16).read(11)
    assert time.monotonic() - started < 20


def test_prefetcher_that_nobody_reads_ends(tmp_path: Path) -> None:
    before = threading.active_count()
    stream, _ = decompressor(reader(bytes(64 << 20), tmp_path))
    prefetch = Prefetcher(stream)
    time.sleep(0.05)
    prefetch.close()
    assert threading.active_count() == before
    assert unpack_stream.CHUNK <= 1 << 20
