"""A start that is planned and carried out against nothing.

``once`` runs the code that a start runs: parsing, validation, planning, the child's
operations, the latter against a kernel that does not exist.  CPython rewrites
byte code the first times that it runs (in the zygote: shared by all), and a page
that a clone has written to is its own (in a worker that waits: not copied
when the request is there).
"""

from __future__ import annotations

import os
from errno import ENOENT

from carrel.kernel import seccomp, terminal
from carrel.kernel.fake import FakeKernel
from carrel.oci import json
from carrel.runtime import create, draft, parcel, report, stock, template

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Spec = dict[str, Any]

_BUNDLE = "/nonexistent/rehearsal"
_LAYER = {"type": "overlay", "source": "overlay",
          "options": ["lowerdir=/a:/b", "upperdir=/c", "workdir=/d"]}
_PRIVATE = ("rbind", "rprivate")


def text() -> bytes:
    """A config.json much like those that come from a daemon."""
    spec = template.default_spec()
    process = spec["process"]
    process["terminal"] = False
    process["env"] = [*process["env"], "HOSTNAME=rehearsal", "HOME=/root"]
    process["user"]["additionalGids"] = [0]
    process["noNewPrivileges"] = False
    spec["root"]["readonly"] = False
    spec["mounts"] += [{"destination": f"/etc/{name}", "type": "bind", "source": f"/{name}",
                        "options": list(_PRIVATE)} for name in ("hosts", "resolv.conf")]
    linux = spec["linux"]
    linux["namespaces"] = [n for n in linux["namespaces"] if n["type"] != "network"]
    linux["cgroupsPath"] = "/rehearsal"
    linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "syscalls": [
            {"names": [f"call_{number}" for number in range(360)], "action": "SCMP_ACT_ALLOW"},
            *({"names": ["personality"], "action": "SCMP_ACT_ALLOW",
               "args": [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"}]}
              for value in range(30))]}
    linux["resources"]["devices"] *= 8
    return json.dumps(spec).encode()


class Stage(FakeKernel):
    """Some paths are missing until they are made."""

    def _call(self, name: str, args: tuple[Any, ...]) -> Any:
        if name == "lstatat" and any(m.endswith("/" + args[1]) for m in self.missing):
            raise FileNotFoundError(ENOENT, "No such file or directory", args[1])
        if name in ("mkdirat", "openat"):
            self.missing = tuple(m for m in self.missing if not m.endswith("/" + args[1]))
        return super()._call(name, args)


def once(raw: bytes) -> None:
    """Leaves nothing: no file, no descriptor, no process, no filter."""
    kernel = Stage(missing=("/dev/pts", "/dev/shm", "/etc/hosts", "/proc/scsi"))
    kernel.open.update(dict.fromkeys((0, 1, 2), "/dev/null"))
    settings = create.Settings()
    goods = stock.Stock()
    goods.fill(kernel)
    with seccomp.pretended(json.loads(raw)["linux"]["seccomp"]):
        plan = draft.Draft("rehearsal", _BUNDLE, "/nonexistent", settings, kernel, raw,
                           goods)
    plan.fits(raw, "rehearsal", _BUNDLE, "/nonexistent", False, [_LAYER], settings)
    maker = plan.finish(None, [_LAYER])
    maker.descriptors.clear()  # they exist in that kernel only
    maker.child.cgroup = None  # v2's would be opened, and there is none
    sent = parcel.pack(maker.child)
    del plan, maker  # what arrives takes the place of what was planned
    child = parcel.unpack(*sent)
    ours, theirs = report.pair()
    try:
        terminal.send_descriptors(ours, b"C0", [ours.fileno()])  # that stands for a fifo
        child.view.report = report.Report(theirs)
        for operation in (*child.before, *child.after_go):
            operation.execute(kernel)
    finally:
        if child.fifo_fd >= 0:
            os.close(child.fifo_fd)
        ours.close()
        theirs.close()
