"""Small images for tests: layers, docker archives and OCI layouts, made from /bin/busybox.

    busybox_archive(path)                     a docker archive of busybox:latest
    image = Image([layer({...})], {...})      any image
    docker_archive(path, {"x:1": image})      as `docker save` before 25 wrote it
    oci_layout(path, {"x:1": image})          as `skopeo copy ... oci-archive:` writes it
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

BUSYBOX = "/bin/busybox"
CREATED = "2026-01-02T03:04:05Z"
MTIME = 1767323045
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"

#: a file's content, a symlink ("->target"), a hard link ("=>target"), a directory (None),
#: or a ready header with content
Entry = bytes | str | None | tuple[tarfile.TarInfo, bytes]


def architecture() -> str:
    return ARCHITECTURES.get(os.uname().machine, os.uname().machine)


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def entry(name: str, value: Entry = b"", *, mode: int | None = None, uid: int = 0, gid: int = 0,
          mtime: float = MTIME, kind: bytes | None = None, link: str = "",
          device: tuple[int, int] = (0, 0), xattrs: Mapping[str, str] | None = None,
          ) -> tuple[tarfile.TarInfo, bytes]:
    """One tar entry; ``kind`` overrides the type that ``value`` means."""
    if isinstance(value, tuple):
        return value
    info = tarfile.TarInfo(name)
    info.uid, info.gid, info.mtime = uid, gid, mtime
    data = b""
    if value is None:
        info.type, info.mode = tarfile.DIRTYPE, 0o755
    elif isinstance(value, str):
        info.type = tarfile.SYMTYPE if value[:2] == "->" else tarfile.LNKTYPE
        info.linkname, info.mode = value[2:], 0o777
    else:
        data, info.mode = value, 0o644
        info.size = len(data)
    if kind is not None:
        info.type = kind
    if link:
        info.linkname = link
    if mode is not None:
        info.mode = mode
    info.devmajor, info.devminor = device
    info.pax_headers = {f"SCHILY.xattr.{k}": v for k, v in (xattrs or {}).items()}
    return info, data


def layer(files: Mapping[str, Entry] | Iterable[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """An uncompressed layer tar.  ``{"etc/x": b"text", "d": None, "l": "->etc/x"}``."""
    entries = ([entry(name, value) for name, value in files.items()]
               if isinstance(files, Mapping) else list(files))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@dataclass(frozen=True)
class Image:
    """Layers (uncompressed tars) and the `config` part of the image configuration."""

    layers: list[bytes]
    config: dict[str, Any] = field(default_factory=dict)
    platform: tuple[str, str] = ("linux", "")

    @property
    def configuration(self) -> bytes:
        document = {
            "created": CREATED,
            "architecture": self.platform[1] or architecture(),
            "os": self.platform[0],
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": [digest(x) for x in self.layers]},
            "history": [{"created": CREATED, "created_by": f"layer {n}"}
                        for n in range(len(self.layers))],
        }
        return json.dumps(document, separators=(",", ":")).encode()

    @property
    def id(self) -> str:
        return digest(self.configuration)

    def manifest(self, *, docker: bool = False, compress: bool = True) -> tuple[
            bytes, dict[str, bytes]]:
        """The manifest's bytes and every blob it names, by digest."""
        blobs = {self.id: self.configuration}
        layers = []
        for data in self.layers:
            blob = gzip.compress(data, 1, mtime=0) if compress or docker else data
            blobs[digest(blob)] = blob
            kind = DOCKER_LAYER if docker else LAYER + ("+gzip" if compress else "")
            layers.append({"mediaType": kind, "digest": digest(blob), "size": len(blob)})
        document = {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST if docker else MANIFEST,
            "config": {"mediaType": DOCKER_CONFIG if docker else CONFIG, "digest": self.id,
                       "size": len(self.configuration)},
            "layers": layers,
        }
        return json.dumps(document, separators=(",", ":")).encode(), blobs


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = len(data), MTIME, 0o644
    tar.addfile(info, io.BytesIO(data))


def docker_archive(path: str | Path, images: Mapping[str, Image]) -> None:
    """manifest.json, one `<id>.json` an image and `<digest>/layer.tar` files."""
    manifest: dict[str, dict[str, Any]] = {}
    written: set[str] = set()
    with tarfile.open(path, "w") as tar:
        for name, image in images.items():
            config_name = image.id[7:] + ".json"
            item = manifest.setdefault(image.id, {
                "Config": config_name, "RepoTags": [],
                "Layers": [digest(x)[7:] + "/layer.tar" for x in image.layers]})
            if name:
                item["RepoTags"].append(name)
            files = dict(zip(item["Layers"], image.layers))
            files[config_name] = image.configuration
            for file, data in files.items():
                if file not in written:
                    written.add(file)
                    _add(tar, file, data)
        _add(tar, "manifest.json", json.dumps(list(manifest.values())).encode())


def oci_layout(path: str | Path, images: Mapping[str, Image], *, compress: bool = True) -> None:
    """oci-layout, index.json and blobs; the reference is in the annotations."""
    manifests = []
    with tarfile.open(path, "w") as tar:
        _add(tar, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        for name, image in images.items():
            data, blobs = image.manifest(compress=compress)
            for key, blob in {**blobs, digest(data): data}.items():
                _add(tar, f"blobs/sha256/{key[7:]}", blob)
            annotations = {"org.opencontainers.image.ref.name": name.rpartition(":")[2],
                           "io.containerd.image.name": name} if name else {}
            manifests.append({"mediaType": MANIFEST, "digest": digest(data), "size": len(data),
                              "annotations": annotations})
        _add(tar, "index.json", json.dumps({
            "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}).encode())


@cache
def busybox() -> Image:
    """One layer with the static busybox and a link for each of its commands."""
    applets = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True,
                             check=True).stdout.split()
    files: list[tuple[tarfile.TarInfo, bytes]] = [
        entry(name, None) for name in ("bin", "dev", "etc", "home", "proc", "sys", "usr",
                                       "usr/bin", "usr/sbin", "var")]
    files += [entry("root", None, mode=0o700), entry("tmp", None, mode=0o1777),
              entry("bin/busybox", Path(BUSYBOX).read_bytes(), mode=0o755)]
    files += [entry(f"bin/{name}", "=>bin/busybox") for name in applets if name != "busybox"]
    files += [entry("usr/bin/env", "->/bin/env"),
              entry("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n"
                                  b"daemon:x:1:1:daemon:/usr/sbin:/bin/false\n"
                                  b"nobody:x:65534:65534:nobody:/home:/bin/false\n"),
              entry("etc/group", b"root:x:0:\ndaemon:x:1:\nnobody:x:65534:\n")]
    return Image([layer(files)], {
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "Cmd": ["sh"]})


def busybox_archive(path: str | Path, *names: str) -> Image:
    """Write a docker archive of :func:`busybox` under ``names`` (busybox:latest)."""
    docker_archive(path, dict.fromkeys(names or ("busybox:latest",), busybox()))
    return busybox()
