"""carrel completion bash: a script made from the command and flag tables"""

from __future__ import annotations

import sys

from .command import Command
from .errors import CliError
from .index import COMMANDS as INDEX
from .index import GROUPS, load, members, top_level

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .app import App
    from .flags import Options

_CONTAINERS = ("attach", "commit", "cp", "diff", "exec", "explain", "export", "kill", "logs",
               "pause", "port", "rename", "restart", "rm", "start", "stats", "stop", "top",
               "unpause", "update", "wait", "container inspect")
_IMAGES = ("create", "history", "image inspect", "push", "rmi", "run", "save", "tag")
_NETWORKS = ("network connect", "network disconnect", "network inspect", "network rm")
_VOLUMES = ("volume inspect", "volume rm")

_FUNCTIONS = r"""
_carrel_names() {
    case $1 in
    containers) carrel ps -a --format '{{.Names}}' 2>/dev/null ;;
    images) carrel images --format '{{.Repository}}:{{.Tag}}' 2>/dev/null | grep -v '<none>' ;;
    networks) carrel network ls --format '{{.Name}}' 2>/dev/null ;;
    volumes) carrel volume ls -q 2>/dev/null ;;
    contexts) carrel context ls -q 2>/dev/null ;;
    esac
}

_carrel() {
    local current=${COMP_WORDS[COMP_CWORD]} command= word i=1
    while (( i < COMP_CWORD )); do
        word=${COMP_WORDS[i]}
        case $word in
        -H|--host|-c|--context|--config|-l|--log-level) (( i++ )) ;;
        -*) ;;
        *)  if [[ -z $command ]]; then
                command=$word
                [[ " $_carrel_groups " == *" $word "* ]] || break
            else
                command="$command $word"
                break
            fi ;;
        esac
        (( i++ ))
    done
    COMPREPLY=()
    if [[ -z $command ]]; then
        COMPREPLY=($(compgen -W "$_carrel_commands $_carrel_groups" -- "$current"))
    elif [[ $current == -* ]]; then
        COMPREPLY=($(compgen -W "$(_carrel_flags "$command")" -- "$current"))
    elif [[ " $_carrel_groups " == *" $command "* ]]; then
        COMPREPLY=($(compgen -W "$(_carrel_members "$command")" -- "$current"))
    else
        local kind=$(_carrel_kind "$command")
        [[ -n $kind ]] && COMPREPLY=($(compgen -W "$(_carrel_names "$kind")" -- "$current"))
    fi
    # a colon splits words in bash: what stands before it is on the line already
    if [[ $current == *:* && $COMP_WORDBREAKS == *:* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${current%"${current##*:}"}"}")
    fi
}
complete -o default -F _carrel carrel
"""


def _kind(key: str) -> str:
    for name, keys in (("containers", _CONTAINERS), ("images", _IMAGES),
                       ("networks", _NETWORKS), ("volumes", _VOLUMES)):
        if key in keys:
            return name
    return "contexts" if key.startswith("context ") else ""


def _case(function: str, rows: list[tuple[str, str]]) -> str:
    lines = [f"{function}() {{", "    case $1 in"]
    lines += [f"    {pattern}) echo '{text}' ;;" for pattern, text in rows if text]
    return "\n".join([*lines, "    esac", "}"])


def bash() -> str:
    """The script for bash."""
    flags = []
    kinds = []
    for key, (_, _, paths) in INDEX.items():
        command = load(key, paths[0])
        names = sorted(f"--{f.name}" for f in command.flags if not f.hidden)
        pattern = "|".join(f'"{p}"' for p in paths)
        flags.append((pattern, " ".join([*names, "--help"])))
        kinds.append((pattern, _kind(key)))
    groups = [(g, " ".join(name for name, _ in members(g))) for g in sorted(GROUPS)]
    return "\n".join([
        "# bash completion for carrel: source <(carrel completion bash)",
        f"_carrel_commands='{' '.join(name for name, _ in top_level())}'",
        f"_carrel_groups='{' '.join(sorted(GROUPS))}'",
        _case("_carrel_flags", flags), _case("_carrel_members", groups),
        _case("_carrel_kind", kinds),
    ]) + "\n" + _FUNCTIONS


def _run(app: App, options: Options, args: list[str]) -> None:
    if args[0] != "bash":
        raise CliError(f"completion for {args[0]!r} is not built yet: only bash is")
    sys.stdout.write(bash())


COMMANDS = {"completion": Command(_run, "SHELL", 1, 1)}
