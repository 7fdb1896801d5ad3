"""Command lines of create and run whose JSON must be Docker's, and some that are refused."""

# ruff: noqa: E501  (a command line is a line)
from __future__ import annotations

#: files that the command lines name, below the working directory of the test
FILES = {
    "env": "# comment\nA=1\n  B=two words\n\nHOME_OF_TEST\nUNSET_OF_TEST\nC=\n",
    "env-bad": "A B=1\n",
    "env-noname": "=x\n",
    "labels": "a=1\nb\nc=x=y\n",
    "seccomp": '{"defaultAction": "SCMP_ACT_ALLOW",\n "syscalls": []}',
    "notjson": "{",
}
ENVIRONMENT = {"HOME_OF_TEST": "/home/test", "TERM": "dumb"}

CREATE: list[str] = """
busybox
busybox true
busybox sh -c true
-- busybox -x
-i busybox
-t busybox
-it busybox sh
-ti=false busybox
-a stdout busybox
-a STDIN -a stderr busybox
-i -a stdin busybox
--name web busybox
-h host --domainname dom busybox
-u 1000:1000 -w /tmp busybox
-e A=1 -e B= -e HOME_OF_TEST -e UNSET_OF_TEST busybox
--env A=1 --env=B=2 busybox
--env-file env busybox
--env-file env -e A=2 busybox
-l a=b -l c --label d=e=f busybox
--label-file labels -l z=1 busybox
--entrypoint /bin/sh busybox -c true
--entrypoint= busybox
--stop-signal SIGINT --stop-timeout 0 busybox
--stop-timeout 30 busybox
--init busybox
--init=false busybox
--read-only --privileged busybox
--rm busybox
--restart always busybox
--restart on-failure:5 busybox
--restart unless-stopped busybox
--restart no --rm busybox
--restart= busybox
-p 80 busybox
-p 8080:80 busybox
-p8080:80/udp busybox
-p=8080:80 busybox
-p 127.0.0.1:8080:80 busybox
-p 127.0.0.1::80 busybox
-p [::1]:8080:80 busybox
-p 8000-8002:80-82 busybox
-p 8000-8002:80 busybox
-p 80-82 busybox
-p 80:80 -p 81:80 busybox
-p 80:80/tcp -p 80:80/udp -p 80:80/sctp busybox
-p published=8080,target=80,protocol=udp busybox
-P --expose 80 --expose 90-92/udp busybox
--expose 80/tcp busybox
-v /a busybox
-v /a:/b busybox
-v /a:/b:ro busybox
-v name:/b:nocopy busybox
-v /a:/b:rslave,ro busybox
-v a:/b -v /c -v a:/b busybox
--volume /var/run/x:/x busybox
--volumes-from one --volumes-from two:ro busybox
--volume-driver local busybox
--tmpfs /t --tmpfs /u:size=1m,mode=700 busybox
--mount type=bind,source=/a,target=/b busybox
--mount type=bind,src=/a,dst=/b,readonly,bind-propagation=rslave busybox
--mount type=bind,src=/a,dst=/b,ro=false busybox
--mount type=bind,src=/a,dst=/b,bind-recursive=disabled busybox
--mount type=bind,src=/a,dst=/b,bind-recursive=readonly,ro busybox
--mount type=bind,src=/a,dst=/b,bind-recursive=enabled busybox
--mount type=bind,src=/a,dst=/b,bind-recursive=writable busybox
--mount type=bind,src=/a,dst=/b,consistency=cached busybox
--mount target=/b busybox
--mount source=v,target=/b,volume-nocopy,volume-label=a=b,volume-driver=d,volume-opt=o=p busybox
--mount type=volume,source=v,target=/b,volume-subpath=x busybox
--mount type=tmpfs,target=/b,tmpfs-size=1m,tmpfs-mode=1770 busybox
--mount type=tmpfs,target=/b busybox
--mount type=image,source=busybox,target=/b,image-subpath=x busybox
--mount "type=bind,\\"src=/a,b\\",dst=/c" busybox
-m 64m busybox
-m 1.5g --memory-swap -1 --memory-reservation 32MiB --memory-swappiness 10 busybox
--memory 1048576 --memory-swap 2g busybox
-m 64kb busybox
--cpus 1.5 busybox
--cpus .5 busybox
--cpus 3/2 busybox
-c 512 --cpu-period 100000 --cpu-quota 50000 busybox
--cpu-rt-period 1000000 --cpu-rt-runtime 950000 busybox
--cpuset-cpus 0-1,3 --cpuset-mems 0 busybox
--pids-limit 100 busybox
--pids-limit -1 busybox
--oom-kill-disable --oom-score-adj -500 busybox
--blkio-weight 300 --blkio-weight-device /dev/sda:200 busybox
--device-read-bps /dev/sda:1mb --device-write-bps /dev/sda:2kb busybox
--device-read-iops /dev/sda:10 --device-write-iops /dev/sda:0x10 busybox
--device-read-iops /dev/sda:10 --device-write-iops /dev/sdb:20 busybox
--shm-size 128m busybox
--ulimit nofile=1024:2048 --ulimit core=0 busybox
--ulimit nofile=1024 --ulimit nofile=5:6 busybox
--ulimit core=-1 busybox
--device /dev/null busybox
--device /dev/null:/dev/x busybox
--device /dev/null:r busybox
--device /dev/null:/dev/x:rw busybox
--device vendor.com/class=name busybox
--device-cgroup-rule 'c 1:3 rwm' --device-cgroup-rule 'a *:* r' busybox
--gpus all busybox
--gpus 2 busybox
--gpus device=1 busybox
--gpus '"device=0,1",driver=nvidia,"capabilities=compute,utility"' busybox
--cap-add NET_ADMIN --cap-add=ALL --cap-drop MKNOD busybox
--cap-add ALL --cap-drop ALL busybox
--cap-add net_admin --cap-add CAP_NET_ADMIN --cap-drop net_admin --cap-drop sys_time busybox
UPPER/x:1
--ip x busybox
--mount type=bind,src=/a,dst=/b,bind-recursive=readonly,ro,bind-propagation=rprivate busybox
--mount type=bind,src=/a,dst=/b,bind-recursive=writable,ro busybox
--mount type=bind,src=/a,dst=/b,bind-nonrecursive busybox
--security-opt no-new-privileges busybox
--security-opt seccomp=unconfined --security-opt apparmor:unconfined busybox
--security-opt seccomp=seccomp busybox
--security-opt systempaths=unconfined busybox
--security-opt label=disable busybox
--sysctl net.ipv4.ip_forward=1 --sysctl kernel.msgmax=1 busybox
--log-driver json-file --log-opt max-size=1m --log-opt max-file=3 busybox
--log-driver none busybox
--storage-opt size=10G busybox
--group-add audio --group-add 20 busybox
--cgroup-parent /x --cgroupns host busybox
--cgroupns private --ipc host --pid host --uts host --userns host busybox
--ipc container:abc --pid container:abc busybox
--isolation default --runtime runc busybox
--platform linux/arm64 busybox
--annotation a=b --annotation c busybox
--health-cmd 'curl x' --health-interval 5s --health-timeout 1m30s --health-retries 3 busybox
--health-start-period 2s --health-start-interval 500ms busybox
--health-interval 1h busybox
--no-healthcheck busybox
--network none busybox
--network host busybox
--network bridge busybox
--net foo busybox
--network container:abc busybox
--network foo --network-alias a --net-alias b busybox
--network foo --ip 10.0.0.5 --ip6 fd00::5 --link-local-ip 169.254.1.1 busybox
--network foo --link db:database busybox
--link db:database busybox
--network foo --mac-address 92:d0:c6:0a:29:33 busybox
--mac-address 92:d0:c6:0a:29:33 busybox
--network foo --network bar busybox
--network name=foo,alias=a,alias=b,ip=10.0.0.1,driver-opt=x=y,gw-priority=5 busybox
--network name=foo,mac-address=92:d0:c6:0a:29:33,link-local-ip=169.254.1.1,ip6=fd00::1 busybox
--network name=foo --network-alias z busybox
--network bridge --ip 10.0.0.5 busybox
--dns 1.1.1.1 --dns 2001:db8:0:0:0:0:0:1 --dns-search example.com --dns-search . --dns-opt ndots:1 busybox
--dns-option a --dns-opt b busybox
--add-host a:1.2.3.4 --add-host b=1.2.3.5 --add-host c:::1 --add-host d=[::1] --add-host e:host-gateway busybox
--cpu-count 2 --cpu-percent 50 --io-maxiops 5 --io-maxbandwidth 1m busybox
--kernel-memory 5m busybox
--publish-all --interactive --tty --hostname x busybox a b
-itu root -w/tmp -eA=b busybox env
--use-api-socket=false busybox
docker.io/library/busybox:1.36
localhost:5000/x/y@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
--quiet --pull never busybox
--pull= busybox
""".strip().split("\n")

#: run: attaching differs from create
RUN: list[str] = """
-d busybox
-d -it busybox
-dit --rm busybox sh
-d --detach=false --name x -d busybox
""".strip().split("\n")

#: refused before anything is asked of the engine
WRONG: list[str] = """
--foo busybox
-z busybox
-iz busybox
--name
-m
-m x busybox
-m 5q busybox
-m -1 busybox
-m 1.x busybox
--rm=maybe busybox
--=x busybox
---x busybox
--oom-score-adj x busybox
--oom-score-adj 99999999999999999999 busybox
--blkio-weight 70000 busybox
--blkio-weight -1 busybox
--cpus x busybox
--cpus 1.0000000001 busybox
--cpu-shares 1.5 busybox
--memory-swappiness 101 busybox
--attach foo busybox
-e =x busybox
-l =x busybox
-l 'a b=c' busybox
--link a:b:c busybox
--link '' busybox
--dns x busybox
--dns-search 1 busybox
--dns-search 'a b' busybox
--add-host a busybox
--add-host a:x busybox
--add-host :1.2.3.4 busybox
--sysctl kernel.foo=1 busybox
--sysctl a busybox
--ulimit nofile busybox
--ulimit foo=1 busybox
--ulimit nofile=2:1 busybox
--ulimit nofile=x busybox
--ulimit nofile=1:2:3 busybox
--ulimit nofile=-1:5 busybox
--device-read-bps /dev/sda busybox
--device-read-bps sda:1m busybox
--device-read-bps /dev/sda:x busybox
--device-read-iops /dev/sda:x busybox
--blkio-weight-device /dev/sda:5 busybox
--blkio-weight-device /dev/sda:x busybox
--device-cgroup-rule x busybox
--device x busybox
--device /a:/b:x busybox
--device /a:/b:rw:x busybox
--gpus x busybox
--gpus count=1,count=2 busybox
--gpus foo=1 busybox
--health-interval 5 busybox
--health-interval x busybox
--health-interval 5x busybox
--health-interval -5s busybox
--health-retries -1 busybox
--no-healthcheck --health-cmd x busybox
--mount x busybox
--mount '' busybox
--mount type=bind busybox
--mount type=bind,foo=1,target=/a busybox
--mount type=bind,target=/a,readonly=x busybox
--mount type=bind,target=/a,bind-recursive=x busybox
--mount type=volume,target=/a,bind-propagation=x busybox
--mount type=bind,target=/a,tmpfs-size=1m busybox
--mount type=tmpfs,target=/a,tmpfs-size=x busybox
--mount type=tmpfs,target=/a,tmpfs-mode=9 busybox
--mount type=bind,target=/a,volume-nocopy=x busybox
--network name=foo,x=1 busybox
--network name=,alias=b busybox
--network foo=bar busybox
--network name=foo,gw-priority=x busybox
--network name=foo,driver-opt=x busybox
--network foo --network foo busybox
--network foo --network host busybox
--network host --network-alias a busybox
--network-alias a busybox
--network name=foo,alias=x --network-alias y busybox
--network name=foo,ip=1.2.3.4 --ip 1.2.3.5 busybox
--mac-address xx busybox
-p x busybox
-p 1:2:3:4 busybox
-p 99999:80 busybox
-p 80:99999 busybox
-p 80:x busybox
-p 82-80:80 busybox
-p 80-81:80-82 busybox
-p 80/foo busybox
-p 80: busybox
-p published=1,x busybox
-p 1.2.3.400:80:80 busybox
--expose x busybox
--expose 80:80 busybox
--expose 90-80 busybox
-v :/b busybox
-v /a::/b busybox
-v /a:/b:ro:x busybox
--pid foo busybox
--pid container: busybox
--uts foo busybox
--userns foo busybox
--cgroupns foo busybox
--restart :1 busybox
--restart always:x busybox
--rm --restart always busybox
--log-driver none --log-opt a=b busybox
--security-opt foo busybox
--security-opt seccomp=/nonexistent busybox
--storage-opt x busybox
--env-file nonexistent busybox
--env-file env-bad busybox
--env-file env-noname busybox
--label-file nonexistent busybox
--pull foo busybox
Busybox
busybox:
-d -a stdout busybox
""".strip().split("\n")
