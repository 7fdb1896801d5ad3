"""AppArmor: is it here, which profiles are loaded, and the one that confines containers.

The profile has the effect of Docker's ``docker-default``. It names nothing of
the distribution's policy (no abstractions, no tunables), so it compiles
wherever there is a parser, and it pins the ABI of AppArmor 3.0: what newer
kernels mediate beside that (user namespaces, io_uring) stays seccomp's affair.
"""

from __future__ import annotations

import os

from carrel.errdefs import SystemFailure
from carrel.kernel import record

PROFILE = "carrel-default"
UNCONFINED = "unconfined"
_ENABLED = "/sys/module/apparmor/parameters/enabled"
_LOADED = "/sys/kernel/security/apparmor/profiles"
#: by absolute path: what is loaded into the kernel is not a matter of $PATH
_PARSERS = ("/usr/sbin/apparmor_parser", "/sbin/apparmor_parser")
_ABI = "/etc/apparmor.d/abi/3.0"
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}

# In AppArmor's globs * and ? stop at a slash, ** does not, and [^x] would match one.
_TEXT = """\
{abi}
profile {name} flags=(attach_disconnected,mediate_deleted) {{
  # everything that is not named below is left to capabilities, seccomp and namespaces
  file,
  capability,
  network,
  unix,
  umount,

  # writes into the page cache of other files, past all permissions (CVE-2026-31431)
  deny network alg,

  # a container mounts nothing, whatever capabilities it was given
  deny mount,

  # signals come from its own processes and from those who manage it
  signal (send, receive) peer={name},
{signals}
  # it debugs itself only; from outside it may be looked at
  ptrace (trace, read, tracedby, readby) peer={name},
  ptrace (tracedby, readby),

  # of procfs, only the processes' own directories are written to ...
  deny /proc/* w,
  deny /proc/[^1-9s/]*/** w,
  deny /proc/s[^y/]*/** w,
  deny /proc/sy[^s/]*/** w,
  deny /proc/sys[^/]*/** w,
  # ... and of sysctls those of System V shared memory
  deny /proc/sys/[^k]** w,
  deny /proc/sys/k[^e]** w,
  deny /proc/sys/ke[^r]** w,
  deny /proc/sys/kernel/{{?,??}} w,
  deny /proc/sys/kernel/[^s]** w,
  deny /proc/sys/kernel/s[^h]** w,
  deny /proc/sys/kernel/sh[^m]** w,
  deny /proc/sysrq-trigger rwklx,
  deny /proc/kcore rwklx,

  # of sysfs, only the cgroups are written to
  deny /sys/[^f/]*/** wklx,
  deny /sys/f[^s/]*/** wklx,
  deny /sys/fs/[^c/]*/** wklx,
  deny /sys/fs/c[^g/]*/** wklx,
  deny /sys/fs/cg[^r/]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
}}
"""


def enabled() -> bool:
    """Does the kernel confine by AppArmor, and may we see and load its policy?"""
    try:
        with open(_ENABLED, encoding="ascii") as file:
            return file.read(1) == "Y" and os.path.exists(_LOADED)
    except OSError:
        return False


def loaded(name: str) -> bool:
    """Is a profile of that name in the kernel?"""
    with open(_LOADED, encoding="utf-8", errors="surrogateescape") as file:
        # one a line: NAME (MODE); a name may hold spaces
        return any(line.rpartition(" (")[0] == name for line in file)


def parser() -> str:
    """The program that compiles policy; "" where it is not installed."""
    for path in _PARSERS:
        if os.access(path, os.X_OK):
            return path
    return ""


def text(peers: tuple[str, ...] = ()) -> str:
    """The profile's source; ``peers`` are further profiles whose signals arrive."""
    names = dict.fromkeys((UNCONFINED, "runc", "crun", *peers))
    return _TEXT.format(
        name=PROFILE, abi="abi <abi/3.0>,\n" if os.path.exists(_ABI) else "",
        signals="".join(f'  signal (receive) peer="{name}",\n' for name in names))


def current() -> str:
    """The profile of this process, without its mode."""
    try:
        with open("/proc/self/attr/current", encoding="utf-8",
                  errors="surrogateescape") as file:
            return file.read().rstrip("\0\n").rpartition(" (")[0] or UNCONFINED
    except OSError:
        return UNCONFINED


def load() -> None:
    """Compile the profile and put it into the kernel, in place of an older one."""
    program = parser()
    if not program:
        raise SystemFailure("apparmor_parser is not installed", hint="apt-get install apparmor")
    own = current()
    # a name that could end the quotes would be policy of somebody else's making
    peers = (own,) if own.isascii() and own.isprintable() and '"' not in own else ()
    source = text(peers).encode()
    output = os.memfd_create("apparmor-output", os.MFD_CLOEXEC)
    stdin = os.memfd_create("apparmor-profile", os.MFD_CLOEXEC)
    try:
        os.write(stdin, source)
        os.lseek(stdin, 0, os.SEEK_SET)
        # replace, read no cache, write none: what is in the kernel is this text
        arguments = [program, "--replace", "--skip-cache"]
        pid = os.posix_spawn(program, arguments, _ENVIRONMENT, file_actions=[
            (os.POSIX_SPAWN_DUP2, stdin, 0), (os.POSIX_SPAWN_DUP2, output, 1),
            (os.POSIX_SPAWN_DUP2, output, 2)], setsigmask=())
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        record.note("apparmor_parser", tuple(arguments[1:]), status)
        if status:
            os.lseek(output, 0, os.SEEK_SET)
            said = os.read(output, 4096).decode("utf-8", "replace").strip()
            raise SystemFailure(f"{program}: exit code {status}: {said}")
    finally:
        os.close(stdin)
        os.close(output)
