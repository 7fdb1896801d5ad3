"""Manifests, indexes and platforms."""

from __future__ import annotations

import json
from typing import Any

import pytest

from carrel.errdefs import InvalidParameter
from carrel.oci import image as oci
from carrel.oci.image import Descriptor, Platform
from tests import images


def test_manifest_and_configuration_of_an_image() -> None:
    image = images.busybox()
    for docker in (False, True):
        data, blobs = image.manifest(docker=docker)
        manifest = oci.parse_manifest(data)
        assert manifest.config.digest == image.id
        assert oci.parse_config(blobs[image.id]).rootfs.diff_ids == [
            images.digest(x) for x in image.layers]


@pytest.mark.parametrize("document", [
    {}, [], 5, {"schemaVersion": 2}, {"schemaVersion": 1, "fsLayers": []},
    {"schemaVersion": 2, "layers": [], "manifests": [], "config": {}},
    {"schemaVersion": 2, "mediaType": oci.OCI_INDEX, "layers": [], "config": {}},
    {"schemaVersion": 2, "mediaType": oci.OCI_MANIFEST, "manifests": []},
], ids=str)
def test_ambiguous_documents(document: Any) -> None:
    with pytest.raises(InvalidParameter):
        oci.parse_manifest(json.dumps(document).encode())
    with pytest.raises(InvalidParameter):
        oci.parse_index(json.dumps(document).encode())


def test_strict_json() -> None:
    for bad in (b'{"a":1,"a":2}', b"NaN", b"{", b"\xff\xfe", b'{"x":Infinity}', b"[" * 10_000):
        with pytest.raises(InvalidParameter):
            oci.load_json(bad)
    # labels may differ in case only; the words of a manifest may not
    assert oci.load_json(b'{"Labels":{"a":"1","A":"2"}}') == {"Labels": {"a": "1", "A": "2"}}
    with pytest.raises(InvalidParameter):
        oci.load_json(b'{"Layers":[]}', manifest=True)


def describe(os: str, architecture: str, variant: str = "", **annotations: str) -> Descriptor:
    return Descriptor(oci.OCI_MANIFEST, f"sha256:{hash((os, architecture, variant)) % 16:064x}", 1,
                      annotations=annotations, platform=Platform(architecture, os, variant))


@pytest.mark.parametrize(("wanted", "index"), [
    ("linux/amd64", 0), ("linux/arm64", 1), ("linux/arm64/v8", 1), ("linux/arm/v7", 3),
    ("linux/arm", 3), ("linux/arm/v6", 2), ("linux/arm/v5", None), ("linux/s390x", None),
    ("windows/amd64", None), ("linux/x86_64", 0), ("linux/aarch64", 1),
])
def test_selection(wanted: str, index: int | None) -> None:
    manifests = [describe("linux", "amd64"), describe("linux", "arm64", "v8"),
                 describe("linux", "arm", "v6"), describe("linux", "arm", "v7")]
    chosen = oci.select(manifests, oci.parse_platform(wanted, Platform("amd64", "linux")))
    assert chosen == (None if index is None else manifests[index])


def test_attestations_are_not_images() -> None:
    attestation = Descriptor(oci.OCI_MANIFEST, "sha256:" + "0" * 64, 1, annotations={
        "vnd.docker.reference.type": "attestation-manifest"})
    assert oci.select([attestation], Platform("amd64", "linux")) is None


@pytest.mark.parametrize("text", [
    "", "/", "linux/", "a/b/c/d", "linux/amd64;", "../x", "é", "foobar"])
def test_bad_platforms(text: str) -> None:
    with pytest.raises(InvalidParameter):
        oci.parse_platform(text, Platform("amd64", "linux"))
