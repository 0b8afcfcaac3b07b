"""What does an error say? Name, value, rule, remedy: on one line, to the person who can mend it."""

from __future__ import annotations


class FedretinaError(Exception):
    """An input that somebody outside this code can mend.

    Args:
        name: what was looked at, in the words of its owner (``train.lr``, a file, a column).
        rule: what must hold.
        value: what was found; left out where there is nothing to show. Never a patient's value.
        remedy: what to do about it.
    """

    def __init__(self, name: str, rule: str, *, value: object = None, remedy: str = "") -> None:
        self.name, self.rule, self.value, self.remedy = name, rule, value, remedy
        found = "" if value is None else f", got {value!r}"
        hint = f". {remedy}" if remedy else ""
        super().__init__(f"{name} {rule}{found}{hint}")

    def for_others(self) -> str:
        """What may leave a site: the whole, but where values may name patients."""
        return str(self)

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process borders in a simulation; keyword arguments would be lost by default.
        return _rebuild, (type(self), self.name, self.rule, self.value, self.remedy)


class ConfigError(FedretinaError):
    """A study or simulation that cannot be composed or run."""


class SiteError(FedretinaError):
    """A site folder that breaks the contract."""


class OwnDataError(SiteError):
    """What a site's data lacks: others learn what must hold, and not what was found."""

    def for_others(self) -> str:
        return str(OwnDataError(self.name, self.rule, remedy=self.remedy))


class MessageError(FedretinaError):
    """A task or an update that is not what the protocol says."""


class KeyFileError(FedretinaError):
    """A key, certificate or kit that cannot be used."""


class CheckpointError(FedretinaError):
    """A checkpoint that is damaged or belongs to another study."""


def _rebuild(kind: type[FedretinaError], name: str, rule: str, value: object, remedy: str) -> FedretinaError:
    return kind(name, rule, value=value, remedy=remedy)
