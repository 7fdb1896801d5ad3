"""Docker's default seccomp profile as compact data, and profiles in Docker's format.

Which syscalls a container may make by default is a fact that images rely on;
the names and conditions are those of Docker 28's profile. Two deliberate
differences, both closing ways to an AF_ALG socket (38) that Docker's filter
leaves open; AF_VSOCK (40) is treated alike:

* ``socket(38 | 1 << 32)``: a filter compares 64 bits, the kernel uses 32. The
  families above 40 are therefore allowed as exact bit patterns, not as ``> 40``;
* i386's ``socketcall`` takes its arguments from memory, where no filter sees
  them, so it is not allowed as a whole. libseccomp opens it for each allowed
  socket call; for ``socket`` itself the compiler closes it (a libc of the last
  ten years makes sockets by the direct syscall).
"""

from __future__ import annotations

from carrel.errdefs import InvalidParameter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Rule = dict[str, Any]

ALLOW, ERRNO = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"
_EPERM, _ENOSYS = 1, 38

#: allowed whatever the container may do
_ALWAYS = """
accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown
chown32 clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime
clock_gettime64 clock_nanosleep clock_nanosleep_time64 close close_range connect
copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old
epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit
exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod
fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr
flock fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate
ftruncate64 futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake futimesat
getcpu getcwd getdents getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32
getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid getppid getpriority
getrandom getresgid getresgid32 getresuid getresuid32 getrlimit get_robust_list getrusage
getsid getsockname getsockopt get_thread_area gettid gettimeofday getuid getuid32 getxattr
getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel ioctl
io_destroy io_getevents io_pgetevents io_pgetevents_time64 ioprio_get ioprio_set io_setup
io_submit ipc kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown
lchown32 lgetxattr link linkat listen listmount listxattr listxattrat llistxattr _llseek
lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack membarrier memfd_create
memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 mprotect
mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend
mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock
munlockall munmap name_to_handle_at nanosleep newfstatat _newselect open openat openat2
pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll
ppoll_time64 prctl pread64 preadv preadv2 prlimit64 process_mrelease pselect6
pselect6_time64 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recv
recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr removexattrat rename
renameat renameat2 restart_syscall riscv_hwprobe rmdir rseq rt_sigaction rt_sigpending
rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_getaffinity sched_getattr sched_getparam
sched_get_priority_max sched_get_priority_min sched_getscheduler sched_rr_get_interval
sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam
sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop
semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto setfsgid setfsgid32
setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority
setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32
setrlimit set_robust_list setsid setsockopt set_thread_area set_tid_address setuid setuid32
setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4
sigprocmask sigreturn socketcall socketpair splice stat stat64 statfs statfs64 statmount
statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create
timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64
timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times
tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat uretprobe utime utimensat
utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev
"""
ALWAYS = tuple(_ALWAYS.split())

#: allowed where the container holds the capability
BY_CAPABILITY = {
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_SYS_ADMIN": (
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie "
        "lsm_get_self_attr lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount "
        "open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns "
        "syslog umount umount2 unshare"),
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module init_module finit_module",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": (
        "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace"),
    "CAP_SYS_RAWIO": "iopl ioperm",
    "CAP_SYS_TIME": "settimeofday stime clock_settime clock_settime64",
    "CAP_SYS_TTY_CONFIG": "vhangup",
    "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "CAP_SYSLOG": "syslog",
    "CAP_BPF": "bpf",
    "CAP_PERFMON": "perf_event_open",
}

#: allowed on these machines (Docker's names of architectures)
BY_MACHINE: tuple[tuple[tuple[str, ...], str], ...] = (
    (("ppc64le",), "sync_file_range2 swapcontext"),
    (("arm", "arm64"), (
        "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls")),
    (("amd64", "x32"), "arch_prctl"),
    (("amd64", "x32", "x86"), "modify_ldt"),
    (("s390", "s390x"), "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr"),
    (("riscv64",), "riscv_flush_icache"),
)

#: since 4.8 ptrace obeys seccomp of the traced, so it cannot be used to leave the filter
SINCE_4_8 = "process_vm_readv process_vm_writev ptrace"

_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
#: every CLONE_NEW* but the time namespace, whose bit clone(2) uses for a signal
_CLONE_NAMESPACES = 0x7E020000
_ALL_BITS = (1 << 64) - 1
_AF_ALG, _AF_NFC, _AF_VSOCK = 38, 39, 40

#: OCI architecture by `uname -m`, with the ones whose programs it runs as well
_MACHINES: dict[str, tuple[str, ...]] = {
    "x86_64": ("X86_64", "X86", "X32"), "aarch64": ("AARCH64", "ARM"),
    "mips64": ("MIPS64", "MIPS", "MIPS64N32"), "s390x": ("S390X", "S390"),
    "riscv64": ("RISCV64",), "loongarch64": ("LOONGARCH64",),
}
#: Docker's own names in "arches" of includes and excludes
_DOCKER_ARCH = {"x86_64": "amd64", "aarch64": "arm64", "i686": "x86", "i386": "x86",
                "armv7l": "arm", "armv6l": "arm"}
_NATIVE = {"x86_64": "X86_64", "aarch64": "AARCH64", "i686": "X86", "armv7l": "ARM",
           "ppc64le": "PPC64LE", "s390x": "S390X", "riscv64": "RISCV64",
           "loongarch64": "LOONGARCH64", "mips64": "MIPS64"}


def profile(capabilities: set[str], arch: str = "x86_64", kernel: str = "6.1") -> dict[str, Any]:
    """The default profile as OCI ``linux.seccomp`` for a container with these
    bounding capabilities (``CAP_*``), on this machine (``uname -m``) and kernel."""
    docker_arch = _DOCKER_ARCH.get(arch, arch)
    allowed = [name for name in ALWAYS if name != "socketcall"]
    if kernel_version(kernel) >= (4, 8):
        allowed += SINCE_4_8.split()
    for machines, names in BY_MACHINE:
        if docker_arch in machines:
            allowed += names.split()
    for capability, names in BY_CAPABILITY.items():
        if capability in capabilities:
            allowed += names.split()
    rules: list[Rule] = [{"names": list(dict.fromkeys(allowed)), "action": ALLOW},
                         *_socket_rules()]
    rules += [_rule("personality", 0, "SCMP_CMP_EQ", value) for value in _PERSONALITIES]
    if "CAP_SYS_ADMIN" not in capabilities:
        flags_argument = 1 if arch.startswith("s390") else 0
        rules.append(_rule("clone", flags_argument, "SCMP_CMP_MASKED_EQ", _CLONE_NAMESPACES))
        # its flags are in memory, unseen: let the libc fall back to clone
        rules.append({"names": ["clone3"], "action": ERRNO, "errnoRet": _ENOSYS})
    return {"defaultAction": ERRNO, "defaultErrnoRet": _EPERM,
            "architectures": [f"SCMP_ARCH_{name}" for name in _MACHINES.get(arch, ())],
            "syscalls": rules}


def _rule(name: str, index: int, operator: str, value: int, second: int = 0) -> Rule:
    argument: Rule = {"index": index, "value": value, "op": operator}
    if second:
        argument["valueTwo"] = second
    return {"names": [name], "action": ALLOW, "args": [argument]}


def _socket_rules() -> list[Rule]:
    """All families but AF_ALG and AF_VSOCK, and only with the upper half zero."""
    rules = [_rule("socket", 0, "SCMP_CMP_LT", _AF_ALG),
             _rule("socket", 0, "SCMP_CMP_EQ", _AF_NFC),
             _rule("socket", 0, "SCMP_CMP_EQ", _AF_VSOCK + 1)]
    # 42..255 as aligned blocks of a power of two: what a masked comparison can say
    low = _AF_VSOCK + 2
    while low < 256:
        size = low & -low
        rules.append(_rule("socket", 0, "SCMP_CMP_MASKED_EQ", _ALL_BITS & ~(size - 1), low))
        low += size
    return rules


def kernel_version(text: str) -> tuple[int, int]:
    """"5.10.0-8-amd64" as (5, 10)."""
    parts = text.split(".", 2)
    try:
        minor = parts[1].split("-")[0].split("+")[0] if len(parts) > 1 else "0"
        return int(parts[0]), int(minor)
    except ValueError:
        raise InvalidParameter(f"unparsable kernel version {text!r}") from None


# --- profiles of users: Docker's format ---------------------------------------
def load(source: str, capabilities: set[str], arch: str = "x86_64",
         kernel: str = "6.1") -> dict[str, Any] | None:
    """``--security-opt seccomp=``: JSON text, in Docker's format or the OCI's.

    Docker's adds archMap, and includes/excludes by capability, machine and
    kernel; they are resolved here. None: the profile asks for nothing.
    """
    from json import JSONDecodeError, loads
    try:
        config = loads(source)
    except JSONDecodeError as error:
        raise InvalidParameter(f"Decoding seccomp profile failed: {error}") from error
    if not isinstance(config, dict):
        raise InvalidParameter("Decoding seccomp profile failed: not an object")
    return resolve(config, capabilities, arch, kernel)


def resolve(config: dict[str, Any], capabilities: set[str], arch: str,
            kernel: str) -> dict[str, Any] | None:
    """See :func:`load`; ``config`` is the decoded profile."""
    if not config.get("defaultAction") and not config.get("syscalls"):
        return None
    if config.get("architectures") and config.get("archMap"):
        raise InvalidParameter("both 'architectures' and 'archMap' are specified in the seccomp "
                               "profile, use either 'architectures' or 'archMap'")
    result = {k: config[k] for k in ("defaultAction", "defaultErrnoRet", "flags", "listenerPath",
                                     "listenerMetadata") if config.get(k) is not None}
    architectures = list(config.get("architectures") or [])
    native = f"SCMP_ARCH_{_NATIVE.get(arch, '')}"
    for entry in config.get("archMap") or []:
        if entry.get("architecture") == native:
            architectures = [native, *(entry.get("subArchitectures") or [])]
            break
    if architectures:
        result["architectures"] = architectures
    docker_arch = _DOCKER_ARCH.get(arch, arch)
    result["syscalls"] = [
        _plain(rule) for rule in config.get("syscalls") or []
        if _applies(rule, capabilities, docker_arch, kernel_version(kernel))]
    return result


def _plain(rule: Rule) -> Rule:
    """Without Docker's additions."""
    name, names = rule.get("name"), rule.get("names")
    if name and names:
        raise InvalidParameter("both 'name' and 'names' are specified in the seccomp profile, "
                               "use either 'name' or 'names'")
    plain: Rule = {"names": [name] if name else list(names or []), "action": rule.get("action")}
    if rule.get("errnoRet") is not None:
        plain["errnoRet"] = rule["errnoRet"]
    if rule.get("args"):
        plain["args"] = [{k: v for k, v in argument.items() if v is not None}
                         for argument in rule["args"] if argument is not None]
    return plain


def _applies(rule: Rule, capabilities: set[str], arch: str, kernel: tuple[int, int]) -> bool:
    excludes, includes = rule.get("excludes") or {}, rule.get("includes") or {}
    if arch in (excludes.get("arches") or []) or any(
            c in capabilities for c in excludes.get("caps") or []):
        return False
    if excludes.get("minKernel") and kernel >= kernel_version(excludes["minKernel"]):
        return False
    if includes.get("arches") and arch not in includes["arches"]:
        return False
    if not all(c in capabilities for c in includes.get("caps") or []):
        return False
    return not includes.get("minKernel") or kernel >= kernel_version(includes["minKernel"])
