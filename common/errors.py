"""Every error that a caller may catch. A message names the field, the rule and the value."""


class PlatformError(Exception):
    """Base of all errors raised on purpose; its message is fit for a user to read."""


class BadRecord(PlatformError, ValueError):
    """A record breaks its schema."""


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


class MissingExtra(PlatformError, ImportError):
    """A system needs packages that are not installed; the message says which extra brings them."""
