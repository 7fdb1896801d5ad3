"""Command lines of everything but create and run: requests and output must be Docker's."""

# ruff: noqa: E501  (a command line is a line)
from __future__ import annotations

FILES = {"archive.tar": "not looked at", "typed": "x"}

LINES: list[str] = r"""
ps
ps -a
ps -aq
ps -q --no-trunc
ps --no-trunc
ps -s
ps -n 3
ps -l
ps -f status=running -f name=x -f status=exited
ps --filter label=a=b --filter Label=c
ps --format json
ps --format '{{json .Labels}} {{json .Names}}'
ps --format '{{.ID}}|{{.Names}}|{{.Image}}|{{.Command}}|{{.Ports}}|{{.Status}}|{{.State}}'
ps --format '{{.Labels}}|{{.Label "a"}}|{{.Mounts}}|{{.LocalVolumes}}|{{.Networks}}|{{.RunningFor}}'
ps --format 'table {{.ID}}\t{{.Size}}\t{{.Label "com.example.my-label"}}'
ps --format 'table {{.Names}}\t{{upper .Image}}\t{{truncate .ID 4}}'
ps --format 'table {{ .Names }}: {{.Status}}'
ps --format '{{range split .Labels ","}}[{{.}}]{{end}}'
ps --format '{{range $i, $e := split .Labels ","}}{{if $i}}; {{end}}{{$e}}{{else}}none{{end}}'
ps --format '{{if eq .State "running" "paused"}}yes{{else if eq .State "exited"}}no{{end}}'
ps --format '{{with .Mounts}}{{.}}{{else}}-{{end}}{{println "x" 1}}'
ps --format '{{.Names | upper | printf "%-8s|%q"}}{{printf "%5d%%" 3}}'
ps --format '{{- .Names -}}  {{/* a comment */ -}}  x'
ps --format '{{index (split .Image ":") 0}} {{len .Names}} {{join (split .Image ":") "/"}}'
ps --format '{{and .Names .Ports}} {{or .Ports "none"}} {{not .Ports}} {{lt 1 2}} {{ne .Names "x"}}'
ps --format '{{title "hello world"}} {{lower "ABC"}} {{pad .Names 2 1}}|'
ps --format '{{$x := .Names}}{{$x}}-{{$.Names}}'
ps --format ''
ps --format table
ps --format '{{.Nope}}'
ps --format '{{nope .ID}}'
ps --format '{{.ID'
ps --format '{{if .ID}}x'
ps --format '{{end}}'
ps --format '{{index .ID "x"}}'
ps --format '{{.Label}}'
ps -f x
ps extra
container ls -q
container list
images
images -a
images -q
images --no-trunc
images --digests
images nginx
images -f dangling=true -f label=a
images --format '{{.Repository}}:{{.Tag}}@{{.Digest}} {{.ID}} {{.Size}} {{.CreatedSince}}'
images --format 'table {{.Repository}}\t{{.Size}}'
image ls --format '{{.ID}}'
inspect web
inspect web gone
inspect gone
inspect nginx
inspect net10
inspect vol10
inspect -s web
inspect -f '{{.Name}} {{.State.Pid}} {{json .Config.Labels}} {{.Config.Env}}' web
inspect -f '{{.NetworkSettings.Networks.bridge.IPAddress}}' web
inspect -f '{{range .Mounts}}{{.Source}}->{{.Destination}}{{end}}' web
inspect -f '{{index .Config.Labels "a.b"}} {{index .Config.Labels "x"}}|' web
inspect -f '{{.HostConfig.Memory}} {{.HostConfig.Links}} {{.HostConfig.PidsLimit}} {{.State.Health}}' web
inspect -f '{{.Nope}}' web
inspect -f '{{.' web
inspect --format json web
inspect --type container web
inspect --type nope web
container inspect web
image inspect nginx
network inspect net10
volume inspect vol10
volume inspect gone
logs web
logs -f -t --tail 5 web
logs --since 2026-11-24T07:24:58Z --until 1795505098.5 web
logs gone
top web
top web -o pid,cmd
port web
port web 80
port web 9/udp
port web 9
port web x
diff web
stop web
stop -t 5 -s INT web
stop web gone
stop --timeout 3 web
restart -t 1 web
kill web
kill -s HUP web
rm web
rm -f -v web
rm -l web
rm gone
rm -f gone
pause web
unpause web
wait web
wait gone
rename web new
rename gone new
start web
start web gone
update --cpus 1.5 -m 1g --memory-swap -1 --restart on-failure:2 web
update --pids-limit 5 web
update --restart x:y web
update web
exec web true
exec -e A=1 -w /x -u root --privileged web sh -c 'a b'
exec -d web true
exec --detach-keys ctrl-a web true
exec gone true
exec web
attach gone
stats --no-stream web
stats --no-stream --format '{{.Name}} {{.CPUPerc}} {{.MemUsage}} {{.MemPerc}} {{.NetIO}} {{.BlockIO}} {{.PIDs}}' web
stats --no-stream --format json web
stats --no-stream --no-trunc web
events --since 1 --until 2
events --since 1 --until 2 --format json
events --since 1 --until 2 --format '{{.Type}} {{.Action}} {{.Actor.ID}} {{.Actor.Attributes.name}}'
events --since 1 --until 2 -f type=container -f event=start
history nginx
history -q nginx
history --no-trunc --human=false nginx
history --format '{{.ID}} {{.CreatedBy}} {{.Size}} {{.Comment}} {{.CreatedSince}}' nginx
tag nginx new
tag nginx host:5000/a/b:c
tag nginx Upper:x
tag nginx a@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
tag nginx
rmi nginx:1.27
rmi -f --no-prune nginx:1.27
rmi gone
commit web
commit -a me -m text -c 'ENV A=1' -p=false web name:tag
commit web Upper:x
pull nginx
pull nginx:1.27
pull -q nginx
pull -a nginx
pull --platform linux/arm64 host:5000/x/y:z
pull nginx@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
pull ''
pull a:b:c
pull -a x:1
push host:5000/x/y
push -a host:5000/x/y
push -q host:5000/x/y:1
load -i archive.tar
load -q -i archive.tar
load -i nonexistent
save -o nonexistent/x nginx
import archive.tar
import -m text -c 'CMD x' archive.tar name:tag
import nonexistent
network ls
network ls -q
network ls --no-trunc
network ls -f driver=bridge --format '{{.ID}} {{.Name}} {{.Internal}} {{.IPv4}} {{.IPv6}} {{.Labels}} {{.Label "k"}}'
network create x
network create -d overlay --attachable --internal --ipv6 --label a=b -o c=d --scope swarm x
network create --subnet 10.0.0.0/16 --gateway 10.0.0.1 --ip-range 10.0.1.0/24 --aux-address a=10.0.0.9 x
network create --subnet 10.0.0.0/24 --subnet fd00::/64 --gateway fd00::1 --ipv4=false x
network create --ipam-driver x --ipam-opt a=b x
network create --config-only --config-from y x
network create --gateway 10.0.0.1 x
network create --subnet 10.0.0.0/24 --subnet 10.0.0.0/25 x
network create --subnet 10.0.0.0/24 --gateway 10.0.1.1 x
network connect net10 web
network connect --alias a --ip 1.2.3.4 --ip6 fd00::1 --link x:y --link-local-ip 169.254.0.1 --driver-opt a=b --gw-priority 3 net10 web
network disconnect -f net10 web
network rm net10
network rm gone
volume ls
volume ls -q
volume ls -f dangling=true --format '{{.Name}} {{.Driver}} {{.Mountpoint}} {{.Labels}} {{.Scope}} {{.Size}} {{.Links}}'
volume create
volume create -d x -o a=b --label c=d name
volume rm vol10
volume rm -f vol10
volume rm gone
container prune -f
container prune -f --filter until=24h
image prune -f
image prune -af --filter label=x
network prune -f
volume prune -f
volume prune -af
system prune -f
system prune -af --volumes
search nginx
search --no-trunc --limit 5 -f is-official=true nginx
cp a b
cp web:/a web:/b
cp nonexistent web:/x
info --format '{{.ServerVersion}} {{.Name}}'
context show
context ls -q
context use nonexistent
context rm default
login -u me -p secret host:5000
nope
container nope
--nope
-H foo://x ps
--context nonexistent ps
""".strip().split("\n")
