"""AppArmor for containers: which profile each gets, and that it is there when it is needed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from carrel import errdefs
from carrel.engine import log
from carrel.engine.spec import process
from carrel.kernel import apparmor

if TYPE_CHECKING:
    from carrel.engine.model import Container


class Confinement:
    """One daemon's use of AppArmor.

    Without a parser no profile can be loaded: containers then run unconfined, as
    Docker's do, and that is said once in the log and always in ``info``.
    """

    def __init__(self) -> None:
        self.available = apparmor.enabled()
        self.warnings: list[str] = []
        if self.available and not apparmor.parser():
            self.available = False
            self.warnings.append("WARNING: AppArmor is enabled, but apparmor_parser is not "
                                 "installed: containers run unconfined")
            log.warning(self.warnings[0].removeprefix("WARNING: "))
        self._lock = asyncio.Lock()

    async def load(self) -> None:
        """At the daemon's start: the profile of this version, in place of an older one."""
        if not self.available:
            return
        try:
            await asyncio.to_thread(apparmor.load)
        except (errdefs.CarrelError, OSError) as error:
            # a container that needs the profile will fail with this; the others need not
            log.error(f"the default AppArmor profile could not be loaded: {error}")

    def profile(self, host: Mapping[str, Any], options: Mapping[str, str]) -> str:
        """The name of the profile that a container asks for; "" where there is no AppArmor."""
        named = options.get("apparmor", "")
        if not self.available:
            if named and named != apparmor.UNCONFINED and not apparmor.enabled():
                raise errdefs.InvalidParameter("AppArmor is not enabled on this host: cannot "
                                               f"apply profile '{named[:80]}'")
            return named if apparmor.enabled() else ""
        return named or (apparmor.UNCONFINED if host["Privileged"] else apparmor.PROFILE)

    async def fields(self, host: Mapping[str, Any], options: Mapping[str, str]) -> dict[str, str]:
        """What a process's specification says of AppArmor (and SELinux, of which it cannot
        say anything yet)."""
        process.check_selinux(options)
        name = self.profile(host, options)
        if name == apparmor.PROFILE and self.available:
            await self._ensure()
        return {"apparmorProfile": name} if name else {}

    async def _ensure(self) -> None:
        """An upgrade of the distribution's policy may have unloaded what is not in its files."""
        if apparmor.loaded(apparmor.PROFILE):
            return
        async with self._lock:
            if not apparmor.loaded(apparmor.PROFILE):
                await asyncio.to_thread(apparmor.load)

    def shown(self, container: Container) -> str:
        """``AppArmorProfile`` of inspect: known from the first start on."""
        if not self.available or container.state.started_at.startswith("0001"):
            return ""
        return self.profile(container.host,
                            process.security_options(container.host["SecurityOpt"] or ()))
