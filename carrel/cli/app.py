"""What every command shares: the configuration and the engine, made when first used."""

from __future__ import annotations

import os

from .config import Config
from .endpoint import DEFAULT_HOST, Endpoint, Tls
from .errors import CliError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .client import Engine
    from .flags import Options

VERSION = "0.1.0"


class App:
    """One invocation of ``carrel``."""

    def __init__(self, config_directory: str = "", host: str = "", context: str = "",
                 options: Options | None = None) -> None:
        self.config = Config(config_directory)
        self.host_flag = host
        self.context_flag = context
        self.options = options
        self._engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        if self._engine is None:
            from .client import Engine
            endpoint = self.endpoint()
            self._engine = Engine(endpoint, self.config.headers(), api_version())
        return self._engine

    def close(self) -> None:
        """Give the kept connections back."""
        if self._engine is not None:
            self._engine.close()

    def context_name(self) -> str:
        """The context in use; "default" is the one of flags and environment."""
        if self.host_flag:
            return "default"
        if self.context_flag:
            return self.context_flag
        if environment_host():
            return "default"
        return (os.environ.get("CARREL_CONTEXT") or os.environ.get("DOCKER_CONTEXT")
                or self.config.text("currentContext") or "default")

    def endpoint(self) -> Endpoint:
        """Where the engine is: flags before environment before configuration."""
        if self.host_flag and self.context_flag:
            raise CliError("conflicting options: cannot specify both --host and --context")
        name = self.context_name()
        if name != "default":
            from .config import ContextStore
            try:
                host, tls = ContextStore(self.config).endpoint(name)
            except CliError as error:
                raise CliError("Failed to initialize: unable to resolve docker endpoint: "
                               + error.message) from None
            return Endpoint(host, tls)
        host = self.host_flag or environment_host() or DEFAULT_HOST
        return Endpoint(host, self._tls(host))

    def _tls(self, host: str) -> Tls | None:
        options = self.options
        verify = bool(os.environ.get("DOCKER_TLS_VERIFY"))
        wanted = verify or bool(os.environ.get("DOCKER_TLS"))
        folder = os.environ.get("DOCKER_CERT_PATH") or self.config.directory
        names = [f"{folder}/{n}" for n in ("ca.pem", "cert.pem", "key.pem")]
        if options is not None:
            verify = options["tlsverify"] if options.changed("tlsverify") else verify
            wanted = options["tls"] or verify or wanted
            for i, flag in enumerate(("tlscacert", "tlscert", "tlskey")):
                names[i] = options[flag] or names[i]
        if not wanted or not host.startswith("tcp"):
            return None
        files = [n if os.path.exists(n) else "" for n in names]
        return Tls(*files, verify=verify)


def environment_host() -> str:
    return os.environ.get("CARREL_HOST") or os.environ.get("DOCKER_HOST") or ""


def api_version() -> str:
    return os.environ.get("DOCKER_API_VERSION", "").lstrip("v")
