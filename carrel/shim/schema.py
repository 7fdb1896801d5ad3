"""The messages that the shim speaks: names and numbers of their fields.

One line a field: ``number name type``.  Types: ``s`` string, ``b`` bytes, ``u``
uint64, ``u32`` uint32, ``i`` int64, ``i32`` int32 or enum, ``?`` bool, ``d``
double, ``map`` map<string, string>; or the name of another message; ``*`` in
front: repeated.  The same messages stand in ``carrel/proto/*.proto``; a test
compares the two.
"""

from __future__ import annotations

from carrel.shim.wire import Field, Schema

_SCALARS = ("s", "b", "u", "u32", "i", "i32", "?", "d", "map")

_TABLE = """
Empty:
Any: 1 type_url s, 2 value b
Timestamp: 1 seconds i, 2 nanos i32
Status: 1 code i32, 2 message s, 3 details *Any

KeyValue: 1 key s, 2 value s
Request: 1 service s, 2 method s, 3 payload b, 4 timeout_nano i, 5 metadata *KeyValue
Response: 1 status Status, 2 payload b

Mount: 1 type s, 2 source s, 3 target s, 4 options *s
ProcessInfo: 1 pid u32, 2 info Any
ProcessDetails: 1 exec_id s
Options: 1 no_pivot_root ?, 2 no_new_keyring ?, 3 shim_cgroup s, 4 io_uid u32, 5 io_gid u32,
 6 binary_name s, 7 root s, 9 systemd_cgroup ?, 10 criu_image_path s, 11 criu_work_path s,
 12 task_api_address s, 13 task_api_version u32

CreateTaskRequest: 1 id s, 2 bundle s, 3 rootfs *Mount, 4 terminal ?, 5 stdin s, 6 stdout s,
 7 stderr s, 8 checkpoint s, 9 parent_checkpoint s, 10 options Any
CreateTaskResponse: 1 pid u32
DeleteRequest: 1 id s, 2 exec_id s
DeleteResponse: 1 pid u32, 2 exit_status u32, 3 exited_at Timestamp
ExecProcessRequest: 1 id s, 2 exec_id s, 3 terminal ?, 4 stdin s, 5 stdout s, 6 stderr s, 7 spec Any
ResizePtyRequest: 1 id s, 2 exec_id s, 3 width u32, 4 height u32
StateRequest: 1 id s, 2 exec_id s
StateResponse: 1 id s, 2 bundle s, 3 pid u32, 4 status i32, 5 stdin s, 6 stdout s, 7 stderr s,
 8 terminal ?, 9 exit_status u32, 10 exited_at Timestamp, 11 exec_id s
KillRequest: 1 id s, 2 exec_id s, 3 signal u32, 4 all ?
CloseIORequest: 1 id s, 2 exec_id s, 3 stdin ?
PidsRequest: 1 id s
PidsResponse: 1 processes *ProcessInfo
CheckpointTaskRequest: 1 id s, 2 path s, 3 options Any
UpdateTaskRequest: 1 id s, 2 resources Any, 3 annotations map
StartRequest: 1 id s, 2 exec_id s
StartResponse: 1 pid u32
WaitRequest: 1 id s, 2 exec_id s
WaitResponse: 1 exit_status u32, 2 exited_at Timestamp
StatsRequest: 1 id s
StatsResponse: 1 stats Any
ConnectRequest: 1 id s
ConnectResponse: 1 shim_pid u32, 2 task_pid u32, 3 version s
ShutdownRequest: 1 id s, 2 now ?
PauseRequest: 1 id s
ResumeRequest: 1 id s

TaskIO: 1 stdin s, 2 stdout s, 3 stderr s, 4 terminal ?
TaskCreate: 1 container_id s, 2 bundle s, 3 rootfs *Mount, 4 io TaskIO, 5 checkpoint s, 6 pid u32
TaskStart: 1 container_id s, 2 pid u32
TaskDelete: 1 container_id s, 2 pid u32, 3 exit_status u32, 4 exited_at Timestamp, 5 id s
TaskExit: 1 container_id s, 2 id s, 3 pid u32, 4 exit_status u32, 5 exited_at Timestamp
TaskOOM: 1 container_id s
TaskExecAdded: 1 container_id s, 2 exec_id s
TaskExecStarted: 1 container_id s, 2 exec_id s, 3 pid u32
TaskPaused: 1 container_id s
TaskResumed: 1 container_id s
Envelope: 1 timestamp Timestamp, 2 namespace s, 3 topic s, 4 event Any
ForwardRequest: 1 envelope Envelope

RuntimeVersion: 1 version s, 2 revision s
RuntimeInfo: 1 name s, 2 version RuntimeVersion, 3 options Any, 4 features Any, 5 annotations map
Extension: 1 value Any
BootstrapParams: 1 instance_id s, 2 namespace s, 3 log_level i32, 4 containerd_version s,
 5 containerd_ttrpc_address s, 6 containerd_grpc_address s, 7 containerd_binary s,
 8 extensions *Extension, 9 socket_dir s
BootstrapResult: 1 version i32, 2 address s, 3 protocol s

v1.HugetlbStat: 1 usage u, 2 max u, 3 failcnt u, 4 pagesize s
v1.PidsStat: 1 current u, 2 limit u
v1.CPUUsage: 1 total u, 2 kernel u, 3 user u, 4 per_cpu *u
v1.Throttle: 1 periods u, 2 throttled_periods u, 3 throttled_time u
v1.CPUStat: 1 usage v1.CPUUsage, 2 throttling v1.Throttle
v1.MemoryEntry: 1 limit u, 2 usage u, 3 max u, 4 failcnt u
v1.MemoryStat: 1 cache u, 2 rss u, 3 rss_huge u, 4 mapped_file u, 5 dirty u, 6 writeback u,
 7 pg_pg_in u, 8 pg_pg_out u, 9 pg_fault u, 10 pg_maj_fault u, 11 inactive_anon u,
 12 active_anon u, 13 inactive_file u, 14 active_file u, 15 unevictable u,
 16 hierarchical_memory_limit u, 17 hierarchical_swap_limit u, 18 total_cache u, 19 total_rss u,
 20 total_rss_huge u, 21 total_mapped_file u, 22 total_dirty u, 23 total_writeback u,
 24 total_pg_pg_in u, 25 total_pg_pg_out u, 26 total_pg_fault u, 27 total_pg_maj_fault u,
 28 total_inactive_anon u, 29 total_active_anon u, 30 total_inactive_file u,
 31 total_active_file u, 32 total_unevictable u, 33 usage v1.MemoryEntry, 34 swap v1.MemoryEntry,
 35 kernel v1.MemoryEntry, 36 kernel_tcp v1.MemoryEntry
v1.MemoryOomControl: 1 oom_kill_disable u, 2 under_oom u, 3 oom_kill u
v1.BlkIOEntry: 1 op s, 2 device s, 3 major u, 4 minor u, 5 value u
v1.BlkIOStat: 1 io_service_bytes_recursive *v1.BlkIOEntry, 2 io_serviced_recursive *v1.BlkIOEntry
v1.Metrics: 1 hugetlb *v1.HugetlbStat, 2 pids v1.PidsStat, 3 cpu v1.CPUStat,
 4 memory v1.MemoryStat, 5 blkio v1.BlkIOStat, 9 memory_oom_control v1.MemoryOomControl

v2.PidsStat: 1 current u, 2 limit u
v2.CPUStat: 1 usage_usec u, 2 user_usec u, 3 system_usec u, 4 nr_periods u, 5 nr_throttled u,
 6 throttled_usec u
v2.MemoryStat: 1 anon u, 2 file u, 3 kernel_stack u, 4 slab u, 5 sock u, 6 shmem u,
 7 file_mapped u, 8 file_dirty u, 9 file_writeback u, 10 anon_thp u, 11 inactive_anon u,
 12 active_anon u, 13 inactive_file u, 14 active_file u, 15 unevictable u,
 16 slab_reclaimable u, 17 slab_unreclaimable u, 18 pgfault u, 19 pgmajfault u,
 20 workingset_refault u, 21 workingset_activate u, 22 workingset_nodereclaim u, 23 pgrefill u,
 24 pgscan u, 25 pgsteal u, 26 pgactivate u, 27 pgdeactivate u, 28 pglazyfree u,
 29 pglazyfreed u, 30 thp_fault_alloc u, 31 thp_collapse_alloc u, 32 usage u, 33 usage_limit u,
 34 swap_usage u, 35 swap_limit u, 36 max_usage u, 37 swap_max_usage u
v2.MemoryEvents: 1 low u, 2 high u, 3 max u, 4 oom u, 5 oom_kill u, 6 oom_group_kill u
v2.IOEntry: 1 major u, 2 minor u, 3 rbytes u, 4 wbytes u, 5 rios u, 6 wios u
v2.IOStat: 1 usage *v2.IOEntry
v2.HugeTlbStat: 1 current u, 2 max u, 3 pagesize s, 4 failcnt u
v2.Metrics: 1 pids v2.PidsStat, 2 cpu v2.CPUStat, 4 memory v2.MemoryStat, 6 io v2.IOStat,
 7 hugetlb *v2.HugeTlbStat, 8 memory_events v2.MemoryEvents
"""


def _build() -> dict[str, Schema]:
    schemas: dict[str, Schema] = {}
    for line in _TABLE.replace(",\n", ",").splitlines():
        if not line:
            continue
        name, _, rows = line.partition(":")
        schema = schemas[name] = Schema(name)
        for row in rows.split(",") if rows.strip() else ():
            number, field, kind = row.split()
            repeated = kind.startswith("*")
            kind = kind.lstrip("*")
            inner = None if kind in _SCALARS else schemas[kind]
            schema.add(Field(int(number), field, kind, repeated, inner))
    return schemas


SCHEMAS = _build()
