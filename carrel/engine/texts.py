"""Every text that clients match on, in one place: Docker's wording, kept on purpose.

The docker CLI, compose and docker-py look into error messages for some of
these; people paste them into search engines.  Change none without looking at
what the clients do with it.
"""

from __future__ import annotations

PAGE_NOT_FOUND = "page not found"


def no_such_container(ref: str) -> str:
    return f"No such container: {ref}"


def no_such_image(ref: str) -> str:
    return f"No such image: {ref}"


def no_such_exec(ref: str) -> str:
    return f"No such exec instance: {ref}"


def multiple_ids(ref: str) -> str:
    return f"Multiple IDs found with provided prefix: {ref}"


def name_in_use(name: str, owner: str) -> str:
    return (f'Conflict. The container name "/{name}" is already in use by container "{owner}". '
            "You have to remove (or rename) that container to be able to reuse that name.")


def invalid_name(name: str) -> str:
    return (f"Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")


def version_too_new(version: str, maximum: str) -> str:
    return f"client version {version} is too new. Maximum supported API version is {maximum}"


def version_too_old(version: str, minimum: str) -> str:
    return (f"client version {version} is too old. Minimum supported API version is {minimum}, "
            "please upgrade your client to a newer version")


def not_running(ident: str) -> str:
    return f"container {ident} is not running"


def paused(ident: str) -> str:
    return f"container {ident} is paused, unpause the container before exec"


def start_paused() -> str:
    return "cannot start a paused container, try unpause instead"


def restarting(ident: str) -> str:
    return f"Container {ident} is restarting, wait until the container is running"


def already_paused(ident: str) -> str:
    return f"container {ident} is already paused"


def not_paused(ident: str) -> str:
    return f"container {ident} is not paused"


def cannot_kill(ref: str, why: str) -> str:
    return f"cannot kill container: {ref}: {why}"


def remove_running(name: str, ident: str, state: str) -> str:
    return (f'cannot remove container "{name}": container is {state}: '
            "stop the container before removing or force remove")


def removal_in_progress(ident: str) -> str:
    return f"removal of container {ident} is already in progress"


def no_command() -> str:
    return "no command specified"


def start_failed(why: str) -> str:
    """The frame in which Docker reports what the runtime said."""
    return f"failed to create task for container: {why}"


def log_driver_cannot_read() -> str:
    return "configured logging driver does not support reading"


def not_implemented(what: str) -> str:
    return f"{what} is not implemented in Carrel"
