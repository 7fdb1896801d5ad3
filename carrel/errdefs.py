"""Errors by meaning; only the edges map them to HTTP, gRPC or exit codes.

    CarrelError
    +-- InvalidParameter     400  INVALID_ARGUMENT     the request is wrong
    |   +-- OutOfRange       400  OUT_OF_RANGE         ... as it goes beyond the end
    +-- Unauthorized         401  UNAUTHENTICATED
    +-- Forbidden            403  PERMISSION_DENIED
    +-- NotFound             404  NOT_FOUND
    +-- Conflict             409  FAILED_PRECONDITION  state does not allow it
    |   +-- AlreadyExists    409  ALREADY_EXISTS
    +-- NotModified          304  -                    already so
    +-- NotImplementedYet    501  UNIMPLEMENTED
    +-- Unavailable          503  UNAVAILABLE
    +-- SystemFailure        500  INTERNAL
    +-- Cancelled            499  CANCELLED
    +-- DeadlineExceeded     504  DEADLINE_EXCEEDED

Stdlib-free: every layer imports this module, the runtime too.
"""

from __future__ import annotations


class CarrelError(Exception):
    """``str(error)`` is the one line that a person sees; ``hint`` is the way out."""

    http_status = 500
    grpc_code = 13  # INTERNAL

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InvalidParameter(CarrelError):
    http_status = 400
    grpc_code = 3


class OutOfRange(InvalidParameter):
    grpc_code = 11


class Unauthorized(CarrelError):
    http_status = 401
    grpc_code = 16


class Forbidden(CarrelError):
    http_status = 403
    grpc_code = 7


class NotFound(CarrelError):
    http_status = 404
    grpc_code = 5


class Conflict(CarrelError):
    http_status = 409
    grpc_code = 9


class AlreadyExists(Conflict):
    grpc_code = 6


class NotModified(CarrelError):
    http_status = 304
    grpc_code = 9


class NotImplementedYet(CarrelError):
    http_status = 501
    grpc_code = 12


class Unavailable(CarrelError):
    http_status = 503
    grpc_code = 14


class SystemFailure(CarrelError):
    http_status = 500
    grpc_code = 13


class Cancelled(CarrelError):
    http_status = 499
    grpc_code = 1


class DeadlineExceeded(CarrelError):
    http_status = 504
    grpc_code = 4


BY_GRPC_CODE: dict[int, type[CarrelError]] = {
    1: Cancelled, 3: InvalidParameter, 4: DeadlineExceeded, 5: NotFound, 6: AlreadyExists,
    7: Forbidden, 9: Conflict, 11: OutOfRange, 12: NotImplementedYet, 13: SystemFailure,
    14: Unavailable, 16: Unauthorized,
}
