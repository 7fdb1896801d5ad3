"""What the API shows of images: list, inspect, history."""

from __future__ import annotations

import fnmatch
from collections import Counter
from typing import TYPE_CHECKING, Any

from carrel import errdefs
from carrel.engine import timefmt
from carrel.engine.filters import Filters
from carrel.engine.images_model import DANGLING, ImageRecord
from carrel.oci import reference as references

if TYPE_CHECKING:
    from carrel.engine.images import ImageService

LIST_FILTERS = frozenset(("dangling", "label", "label!", "before", "since", "until", "reference"))


def created_ns(record: ImageRecord) -> int:
    text = record.config.get("created")
    try:
        return timefmt.parse_rfc3339(text) if isinstance(text, str) and text else 0
    except errdefs.InvalidParameter:
        return 0


def summaries(images: ImageService, *, shared_size: bool = False, manifests: bool = False,
              digests: bool = True) -> list[dict[str, Any]]:
    """``GET /images/json``, newest first."""
    users = Counter(c.image_id for c in images.ctx.containers.all())
    layers = Counter(chain for record in images.by_id().values() for chain in record.chain_ids)
    found = []
    for record in images.by_id().values():
        summary: dict[str, Any] = {
            "Id": record.id, "ParentId": _parent(images, record),
            "RepoTags": images.tags_of(record.id),
            "RepoDigests": images.digests_of(record.id),
            "Created": created_ns(record) // 10**9, "Size": record.size, "SharedSize": -1,
            "Labels": record.labels or None, "Containers": users[record.id],
            "Descriptor": _target(record),
        }
        if shared_size:
            summary["SharedSize"] = sum(
                size for chain, size in zip(record.chain_ids, record.layer_sizes)
                if layers[chain] > 1)
        if manifests:
            summary["Manifests"] = [_manifest(record, images)]
        found.append(summary)
    found.sort(key=lambda s: (-int(s["Created"]), str(s["Id"])))
    return found


def _target(record: ImageRecord) -> dict[str, Any]:
    return {"mediaType": record.target.media_type, "digest": record.target.digest,
            "size": record.target.size}


def _manifest(record: ImageRecord, images: ImageService) -> dict[str, Any]:
    content = record.manifest.size + sum(layer.size for layer in record.layers)
    users = [c.id for c in images.ctx.containers.users_of_image(record.id)]
    return {
        "ID": record.manifest.digest, "Descriptor": record.descriptor(), "Available": True,
        "Size": {"Content": content, "Total": content + record.size}, "Kind": "image",
        "ImageData": {"Platform": record.descriptor()["platform"], "Containers": users,
                      "Size": {"Unpacked": record.size}},
    }


async def filtered(images: ImageService, filters: Filters, *, shared_size: bool,
                   manifests: bool) -> list[dict[str, Any]]:
    before = await _point(images, filters, "before")
    since = await _point(images, filters, "since")
    until = timefmt.parse_point(filters.one("until")) if "until" in filters else None
    result = []
    for summary in summaries(images, shared_size=shared_size, manifests=manifests):
        record = images.by_id()[summary["Id"]]
        moment = created_ns(record)
        dangling = not summary["RepoTags"]
        if (("dangling" in filters and filters.flag("dangling", False) != dangling)
                or (before is not None and moment >= before)
                or (since is not None and moment <= since)
                or (until is not None and moment > until)
                or not filters.match_labels(record.labels)
                or filters.excludes_labels(record.labels)):
            continue
        if "reference" in filters and not _keep_matching(summary, filters.get("reference")):
            continue
        result.append(summary)
    return result


async def _point(images: ImageService, filters: Filters, name: str) -> int | None:
    """Docker takes the last of several ``before`` or ``since``."""
    values = filters.get(name)
    return created_ns((await images.find(values[-1])).record) if values else None


def _keep_matching(summary: dict[str, Any], patterns: list[str]) -> bool:
    """Narrow RepoTags and RepoDigests to those that match a pattern."""
    for pattern in patterns:
        if "[" in pattern and "]" not in pattern:
            raise errdefs.InvalidParameter(f"invalid filter 'reference={pattern}'")
    for key in ("RepoTags", "RepoDigests"):
        summary[key] = [name for name in summary[key]
                        if any(matches(pattern, name) for pattern in patterns)]
    return bool(summary["RepoTags"] or summary["RepoDigests"])


def matches(pattern: str, name: str) -> bool:
    """Docker's FamiliarMatch: the pattern against ``name:tag`` or ``name`` alone; a ``*``
    does not cross a slash."""
    reference = references.parse(name)
    return any(pattern.count("/") == candidate.count("/") and all(
        fnmatch.fnmatchcase(part, wanted)
        for part, wanted in zip(candidate.split("/"), pattern.split("/")))
        for candidate in (reference.familiar, reference.familiar_name))


def inspect(images: ImageService, record: ImageRecord, *, manifests: bool) -> dict[str, Any]:
    """``GET /images/{name}/json``"""
    config = record.config
    named = [n for n in images.names_of(record.id) if not n.name.startswith(DANGLING)]
    last_tag = max((n.updated_ns for n in named), default=0)
    result: dict[str, Any] = {
        "Id": record.id, "RepoTags": images.tags_of(record.id),
        "RepoDigests": images.digests_of(record.id), "Parent": _parent(images, record),
        "Comment": _comment(config), "Created": config.get("created") or "",
        "DockerVersion": config.get("docker_version") or "", "Author": config.get("author") or "",
        "Config": _config(record.defaults), "Architecture": config.get("architecture") or "",
        "Os": config.get("os") or "", "Size": record.size,
        "GraphDriver": {"Data": None, "Name": images.ctx.config.snapshotter},
        "RootFS": {"Type": "layers", "Layers": list(config["rootfs"]["diff_ids"])},
        "Metadata": {"LastTagTime": timefmt.rfc3339(last_tag) if last_tag else timefmt.ZERO},
        "Descriptor": _target(record),
    }
    for key, name in (("variant", "Variant"), ("os.version", "OsVersion")):
        if config.get(key):
            result[name] = config[key]
    if not result["RootFS"]["Layers"]:
        del result["RootFS"]["Layers"]
    if manifests:
        result["Manifests"] = [_manifest(record, images)]
    return result


def _parent(images: ImageService, record: ImageRecord) -> str:
    """What it was committed from, as long as that is here."""
    return record.parent if record.parent in images.by_id() else ""


def _comment(config: dict[str, Any]) -> str:
    if config.get("comment"):
        return str(config["comment"])
    history = config.get("history") or []
    return str(history[-1].get("comment", "")) if history else ""


#: of the Config object, in the shape that the CLI's templates and docker-py expect
_CONFIG_DEFAULTS: dict[str, Any] = {"Cmd": None, "Entrypoint": None, "Env": None, "Labels": None,
                                    "OnBuild": None, "User": "", "Volumes": None,
                                    "WorkingDir": ""}


def _config(value: dict[str, Any]) -> dict[str, Any]:
    return {**_CONFIG_DEFAULTS, **value}


def history(images: ImageService, record: ImageRecord) -> list[dict[str, Any]]:
    """``GET /images/{name}/history``, newest first."""
    sizes = iter(record.layer_sizes)
    shown = []
    entries = record.config.get("history") or [{} for _ in record.layer_sizes]
    for entry in entries:
        size = 0 if entry.get("empty_layer") else next(sizes, 0)
        created = entry.get("created")
        try:
            moment = timefmt.parse_rfc3339(created) // 10**9 if created else 0
        except errdefs.InvalidParameter:
            moment = 0
        shown.append({"Id": "<missing>", "Created": moment,
                      "CreatedBy": entry.get("created_by", ""), "Tags": None, "Size": size,
                      "Comment": entry.get("comment", "")})
    shown.reverse()
    if shown:
        shown[0]["Id"] = record.id
        shown[0]["Tags"] = images.tags_of(record.id) or None
    return shown
