"""Every error that a caller may catch. A message names the field, the rule and the value."""


class PlatformError(Exception):
    """Base of all errors raised on purpose; its message is fit for a user to read."""


class BadRecord(PlatformError, ValueError):
    """A record breaks its schema."""


class BadData(PlatformError, ValueError):
    """A file of a user's own data cannot be read or breaks its layout."""


class BadDefinition(PlatformError, ValueError):
    """A feature view, a gate or a system is declared in a way that cannot work."""


class BadSetting(PlatformError, ValueError):
    """A setting or a command-line value is out of its range."""


class NotFound(PlatformError, LookupError):
    """No such system, version, alias, table or data set."""


class OutOfOrder(PlatformError, ValueError):
    """Events are appended or pushed with times that run backwards."""


class Conflict(PlatformError, RuntimeError):
    """Somebody else changed the same thing first; read it again, then retry."""


class GateFailed(PlatformError):
    """A candidate missed what it must clear to be promoted."""


class BadBundle(PlatformError):
    """A model on disk is not what was published; nothing of it was parsed."""


class Unavailable(PlatformError):
    """A backend cannot be reached or written now; nothing of this call was kept; retry."""


class Stale(PlatformError):
    """Online features are behind the log, or lost; catch up, or answer degraded."""


class Damaged(PlatformError):
    """State on disk is not what was written; none of it is used, and nothing of it is dropped in silence."""


class TooLarge(PlatformError, ValueError):
    """More was sent than is taken at once."""


class Unauthenticated(PlatformError):
    """Nobody is known by the key that came with a request, or none came."""


class Forbidden(PlatformError):
    """Somebody is known, but may not do this."""


class Overloaded(PlatformError):
    """More is asked than can be answered in time; `retry_after` is in seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineExceeded(PlatformError):
    """The time that a caller gave is over; whether its events were kept is not known: a retry is harmless."""


class MissingExtra(PlatformError, ImportError):
    """A system needs packages that are not installed; the message says which extra brings them."""
