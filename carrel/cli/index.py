"""The command table: which module has a command.  Nothing here imports a command."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .command import Command

#: key -> (module, one line of help, the paths it is called by; the first in a group's help)
COMMANDS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "attach": ("attach", "Attach to a running container's input and output",
               ("container attach", "attach")),
    "commit": ("images_make", "Create an image from what a container changed",
               ("container commit", "commit")),
    "cp": ("copy", "Copy files between a container and this machine",
           ("container cp", "cp")),
    "create": ("run", "Create a container without starting it", ("container create", "create")),
    "diff": ("containers_look", "Show what a container changed in its file system",
             ("container diff", "diff")),
    "exec": ("exec", "Run a command in a running container", ("container exec", "exec")),
    "explain": ("explain", "Show what was really done to start a container",
                ("container explain", "explain")),
    "export": ("images_make", "Write a container's file system as a tar archive",
               ("container export", "export")),
    "container inspect": ("inspect", "Show all that is known of containers",
                          ("container inspect",)),
    "kill": ("containers", "Send a signal to running containers", ("container kill", "kill")),
    "logs": ("logs", "Show what a container printed", ("container logs", "logs")),
    "ps": ("ps", "List containers",
           ("container ls", "container list", "container ps", "ps")),
    "pause": ("containers", "Freeze all processes of containers", ("container pause", "pause")),
    "port": ("containers_look", "Show a container's published ports", ("container port", "port")),
    "container prune": ("prune", "Remove all stopped containers", ("container prune",)),
    "rename": ("containers", "Rename a container", ("container rename", "rename")),
    "restart": ("containers", "Restart containers", ("container restart", "restart")),
    "rm": ("containers", "Remove containers", ("container rm", "container remove", "rm")),
    "run": ("run", "Create a container from an image and start it", ("container run", "run")),
    "start": ("start", "Start stopped containers", ("container start", "start")),
    "stats": ("stats", "Show what containers use, live", ("container stats", "stats")),
    "stop": ("containers", "Stop running containers", ("container stop", "stop")),
    "top": ("containers_look", "Show a container's processes", ("container top", "top")),
    "unpause": ("containers", "Let paused containers go on", ("container unpause", "unpause")),
    "update": ("update", "Change the limits of containers", ("container update", "update")),
    "wait": ("containers", "Wait until containers stop, then print their exit codes",
             ("container wait", "wait")),

    "build": ("images_make", "Build an image from a Dockerfile",
              ("image build", "build", "builder build")),
    "history": ("history", "Show the steps an image was made of", ("image history", "history")),
    "import": ("images_make", "Make an image from a tar archive of a file system",
               ("image import", "import")),
    "image inspect": ("inspect", "Show all that is known of images", ("image inspect",)),
    "load": ("images_move", "Load images from a tar archive or stdin", ("image load", "load")),
    "images": ("images", "List images", ("image ls", "image list", "images")),
    "image prune": ("prune", "Remove images that nothing uses", ("image prune",)),
    "pull": ("images_move", "Download an image from a registry", ("image pull", "pull")),
    "push": ("images_move", "Upload an image to a registry", ("image push", "push")),
    "rmi": ("images_make", "Remove images", ("image rm", "image remove", "rmi")),
    "save": ("images_move", "Write images to a tar archive (stdout by default)",
             ("image save", "save")),
    "tag": ("images_make", "Give an image one more name", ("image tag", "tag")),

    "inspect": ("inspect", "Show all that is known of containers, images, networks, volumes",
                ("inspect",)),
    "network connect": ("networks", "Connect a container to a network", ("network connect",)),
    "network create": ("networks", "Create a network", ("network create",)),
    "network disconnect": ("networks", "Disconnect a container from a network",
                           ("network disconnect",)),
    "network inspect": ("inspect", "Show all that is known of networks", ("network inspect",)),
    "network ls": ("networks", "List networks", ("network ls", "network list")),
    "network prune": ("prune", "Remove networks that nothing uses", ("network prune",)),
    "network rm": ("networks", "Remove networks", ("network rm", "network remove")),

    "volume create": ("volumes", "Create a volume", ("volume create",)),
    "volume inspect": ("inspect", "Show all that is known of volumes", ("volume inspect",)),
    "volume ls": ("volumes", "List volumes", ("volume ls", "volume list")),
    "volume prune": ("prune", "Remove local volumes that nothing uses", ("volume prune",)),
    "volume rm": ("volumes", "Remove volumes that no container uses",
                  ("volume rm", "volume remove")),

    "context create": ("contexts", "Create a context", ("context create",)),
    "context inspect": ("contexts", "Show all that is known of contexts", ("context inspect",)),
    "context ls": ("contexts", "List contexts", ("context ls", "context list")),
    "context rm": ("contexts", "Remove contexts", ("context rm", "context remove")),
    "context show": ("contexts", "Print the name of the context in use", ("context show",)),
    "context use": ("contexts", "Choose the context to use", ("context use",)),

    "df": ("system_df", "Show the disk space that is used", ("system df",)),
    "events": ("events", "Show what happens, as it happens", ("system events", "events")),
    "info": ("system", "Show the state of the engine", ("system info", "info")),
    "system prune": ("prune", "Remove all that is unused", ("system prune",)),
    "version": ("system", "Show the versions of client and engine", ("version",)),
    "login": ("login", "Log in to a registry", ("login",)),
    "logout": ("login", "Log out from a registry", ("logout",)),
    "search": ("system", "Search for images on Docker Hub", ("search",)),
    "completion": ("completion", "Print a shell completion script", ("completion",)),
}

GROUPS = {
    "builder": "Manage builds",
    "container": "Manage containers",
    "context": "Manage contexts",
    "image": "Manage images",
    "network": "Manage networks",
    "system": "Manage the engine",
    "volume": "Manage volumes",
}

#: what Docker has and we have not, so that the error can say so
NOT_BUILT = frozenset((
    "buildx", "bake", "checkpoint", "compose", "config", "manifest", "model", "node", "plugin",
    "scout", "secret", "service", "stack", "swarm", "trust",
))

#: the first lines of the help
COMMON = ("run", "exec", "ps", "build", "pull", "push", "images", "login", "logout", "search",
          "version", "info")


def key_of(path: str) -> str:
    """The key of the command that is called by ``path``, or ""."""
    if path in COMMANDS and path in COMMANDS[path][2]:
        return path
    for key, (_, _, paths) in COMMANDS.items():
        if path in paths:
            return key
    return ""


def canonical(path: str, key: str) -> str:
    """How the help calls a command: "container list" is "container ls"."""
    paths = COMMANDS[key][2]
    if " " not in path:
        return path
    group = path.partition(" ")[0]
    return next(p for p in paths if p.startswith(group + " "))


def load(key: str, path: str) -> Command:
    """Import the command's module; the only place that does."""
    name = f"{__package__}.cmd_{COMMANDS[key][0]}"
    from sys import modules
    __import__(name)
    commands: dict[str, Command] = modules[name].COMMANDS
    command = commands[key]
    command.path = canonical(path, key)
    return command


def members(group: str) -> list[tuple[str, str]]:
    """(name, help) of the commands in a group."""
    found = []
    for _, summary, paths in COMMANDS.values():
        names = [p.partition(" ")[2] for p in paths if p.startswith(group + " ")]
        if names:
            found.append((names[0], summary))
    return sorted(found)


def top_level() -> list[tuple[str, str]]:
    """(name, help) of the commands without a group."""
    return sorted((p, summary) for _, summary, paths in COMMANDS.values() for p in paths
                  if " " not in p)
