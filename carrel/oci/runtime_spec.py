"""Validation of an OCI runtime configuration (config.json), before any side effect."""

from __future__ import annotations

from carrel.errdefs import InvalidParameter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERSION = "1.2.0"
#: idmapped mounts (said by `features`)
IDMAP_BUILT = True


def check(spec: dict[str, Any]) -> None:
    version = spec.get("ociVersion")
    if not isinstance(version, str) or not version.startswith("1."):
        raise InvalidParameter(f"unsupported ociVersion {version!r}")
