"""Docker's client configuration: config.json and the contexts beside it."""

from __future__ import annotations

import os

from . import jsonc
from .endpoint import DEFAULT_HOST, Tls, home
from .errors import CliError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MAX_CONFIG = 1 << 20


class Config:
    """config.json, read once and changed only by :meth:`save`."""

    def __init__(self, directory: str = "") -> None:
        self.directory = directory or os.environ.get("DOCKER_CONFIG") or f"{home()}/.docker"
        self.warning = ""
        self._values: dict[str, Any] | None = None

    @property
    def path(self) -> str:
        return f"{self.directory}/config.json"

    @property
    def values(self) -> dict[str, Any]:
        if self._values is None:
            self._values = self._load()
        return self._values

    def _load(self) -> dict[str, Any]:
        try:
            with open(self.path, "rb", 0) as f:
                data = f.read(_MAX_CONFIG + 1)
            if len(data) > _MAX_CONFIG:
                raise ValueError("the file is larger than 1 MiB")
            value = jsonc.loads(data) if data.strip() else {}
            if not isinstance(value, dict):
                raise ValueError("not a JSON object")
            return value
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            self.warning = f"WARNING: Error loading config file: {self.path}: {error}"
            return {}

    def text(self, key: str) -> str:
        """A string setting, or ""."""
        value = self.values.get(key)
        return value if isinstance(value, str) else ""

    def mapping(self, key: str) -> dict[str, Any]:
        value = self.values.get(key)
        return value if isinstance(value, dict) else {}

    def headers(self) -> dict[str, str]:
        """HttpHeaders, without what could split a request."""
        return {k: v for k, v in self.mapping("HttpHeaders").items()
                if isinstance(v, str) and not set("\r\n") & set(k + v)}

    def save(self) -> None:
        """Write the file anew, readable by its owner only."""
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        temporary = f"{self.path}.{os.getpid()}"
        target = os.path.realpath(self.path)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "w", encoding="utf-8") as f:
                f.write(jsonc.pretty(self.values, "\t"))
                f.flush()
                os.fsync(f.fileno())
            os.rename(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise

    def proxy_environment(self, host: str, given: list[str]) -> list[str]:
        """Variables of the "proxies" section that the command line did not set."""
        section = self.mapping("proxies")
        entry = section.get(host) or section.get("default")
        if not isinstance(entry, dict):
            return []
        named = {item.partition("=")[0] for item in given}
        found = []
        for key, name in (("httpProxy", "HTTP_PROXY"), ("httpsProxy", "HTTPS_PROXY"),
                          ("ftpProxy", "FTP_PROXY"), ("noProxy", "NO_PROXY"),
                          ("allProxy", "ALL_PROXY")):
            value = entry.get(key)
            if isinstance(value, str) and value:
                found += [f"{n}={value}" for n in (name, name.lower()) if n not in named]
        return found


# ---- contexts ---------------------------------------------------------------

def context_id(name: str) -> str:
    """The directory of a context is the digest of its name."""
    from hashlib import sha256
    return sha256(name.encode()).hexdigest()


class ContextStore:
    """~/.docker/contexts, shared with the docker command."""

    def __init__(self, config: Config) -> None:
        self.root = f"{config.directory}/contexts"

    def meta_path(self, name: str) -> str:
        return f"{self.root}/meta/{context_id(name)}/meta.json"

    def tls_path(self, name: str) -> str:
        return f"{self.root}/tls/{context_id(name)}/docker"

    def get(self, name: str) -> dict[str, Any]:
        path = self.meta_path(name)
        try:
            with open(path, "rb", 0) as f:
                value = jsonc.loads(f.read(_MAX_CONFIG))
        except FileNotFoundError:
            raise CliError(f'context "{name}": context not found: open {path}: '
                           "no such file or directory") from None
        except (OSError, ValueError) as error:
            raise CliError(f'context "{name}": {error}') from None
        if not isinstance(value, dict):
            raise CliError(f'context "{name}": {path}: not a JSON object')
        return value

    def names(self) -> list[str]:
        try:
            entries = os.listdir(f"{self.root}/meta")
        except FileNotFoundError:
            return []
        found = []
        for entry in entries:
            try:
                with open(f"{self.root}/meta/{entry}/meta.json", "rb", 0) as f:
                    value = jsonc.loads(f.read(_MAX_CONFIG))
            except (OSError, ValueError):
                continue
            if isinstance(value, dict) and isinstance(value.get("Name"), str):
                found.append(value["Name"])
        return sorted(found)

    def endpoint(self, name: str) -> tuple[str, Tls | None]:
        """Host and TLS files of a context."""
        meta = self.get(name).get("Endpoints", {}).get("docker", {})
        host = meta.get("Host") or DEFAULT_HOST
        folder = self.tls_path(name)
        files = [f"{folder}/{n}" for n in ("ca.pem", "cert.pem", "key.pem")]
        present = [f if os.path.exists(f) else "" for f in files]
        skip = bool(meta.get("SkipTLSVerify"))
        if not host.startswith("tcp://") or not (any(present) or skip):
            return host, None
        return host, Tls(*present, verify=not skip)
