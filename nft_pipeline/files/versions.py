"""How a file format grows: its version, what files of newer and older versions hold, and where migrations stand.

A file says `format_version`, a whole number, and may say `format_minor`, which is 0 where it is missing.

    A field with a default is added      This makes a new minor version: the field gets a row in `Format.added`. Older
                                         files take the default. Readers since minor versions exist keep the field,
                                         name it and go on; the first released one refuses it as an unknown key.
    Anything else changes                This makes a new version, with a function in `Format.migrations` that makes
                                         the values of the version before into values of this one. Older readers
                                         refuse the file and say that they are too old for it.

A file is written with the lowest minor version that its values need, so that a file without new fields stays the same
bytes and every older version reads it. Standard library only.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from ..checks import Check, own_checks

if TYPE_CHECKING:
    from typing_extensions import Self

VERSION_KEY = "format_version"
MINOR_KEY = "format_minor"
UPDATE = "update diffusion-nft with pip install -U diffusion-nft"

Migration = Callable[[dict[str, Any]], dict[str, Any]]


class VersionError(ValueError):
    """A file of a version that this one cannot read."""


@dataclass(frozen=True)
class Format:
    """A file format and the versions it has had.

    Args:
        version: the version that this code writes, from 1.
        added: the minor version, from 1, that each field came with; fields of minor version 0 have no row.
        inside: the same for fields of parts inside the file, by their path, "dial.maps.goes_on", each with its default:
            (minor version, default).
        migrations: for each older version, the function from its values to those of the next version.
    """

    version: int
    added: Mapping[str, int] = field(default_factory=dict)
    inside: Mapping[str, tuple[int, Any]] = field(default_factory=dict)
    migrations: Mapping[int, Migration] = field(default_factory=dict)

    @property
    def minor(self) -> int:
        """The newest minor version that this code knows."""
        return max([0, *self.added.values(), *(minor for minor, _ in self.inside.values())])

    @property
    def check(self) -> Check:
        """What `format_version` may be after `migrated`."""
        return Check(lambda value: type(value) is int and value == self.version, f"the whole number {self.version}")

    def migrated(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values of a file as this version writes them; unchanged if the version is no whole number.

        Raises:
            VersionError: the file is of a newer version, or of one that there has never been.
        """
        version, current = values.get(VERSION_KEY), dict(values)
        if type(version) is not int:
            return current
        if version > self.version:
            raise VersionError(
                f"{VERSION_KEY} is {version}, this version of diffusion-nft reads {self.version}: the file was made by "
                f"a newer version; {UPDATE}"
            )
        for older in range(version, self.version):
            if older not in self.migrations:
                raise VersionError(
                    f"{VERSION_KEY} is {version}, expected 1 to {self.version}: no version of diffusion-nft writes "
                    "that, the file is damaged; download or write it again"
                )
            current = {**self.migrations[older](current), VERSION_KEY: older + 1}
            current.pop(MINOR_KEY, None)
        return current

    def is_newer(self, values: Mapping[str, Any]) -> bool:
        """Whether values of this version come from a newer minor version, whose fields are not all known here."""
        minor = values.get(MINOR_KEY, 0)
        return type(minor) is int and minor > self.minor

    def warn(self, source: str, names: Iterable[str], values: Mapping[str, Any]) -> None:
        """One warning that names what a newer minor version wrote and this one does not know; none for no names."""
        unknown = ", ".join(dict.fromkeys(names))
        if unknown:
            warnings.warn(
                f"{source} was made by a newer version of diffusion-nft (format {self.version}.{values[MINOR_KEY]}, "
                f"this version reads {self.version}.{self.minor}). It does not know {unknown}: that is kept, but not "
                f"used. To use it, {UPDATE}",
                stacklevel=3,
            )

    def with_version(self, values: Mapping[str, Any], at_default: Iterable[str] = ()) -> dict[str, Any]:
        """The values as they are written: without added fields at their defaults, with the minor version they need.

        Args:
            values: as `plain` has made them, with `format_version`, and with the minor version of the file they were
                read from; fields `inside` that are at their defaults are taken out of them.
            at_default: names of fields that have their default value.
        """
        left_out = {*at_default} & {*self.added}
        written = {name: value for name, value in values.items() if name not in left_out and name != MINOR_KEY}
        needed = [self.added[name] for name in written if name in self.added]
        for path, (minor, default) in self.inside.items():
            *way, name = path.split(".")
            for holder in _holders(written, way):
                if name in holder and holder[name] == default:
                    del holder[name]
                needed += [minor] if name in holder else []
        minor = max([values.get(MINOR_KEY, 0), *needed])
        return written if minor == 0 else written | {MINOR_KEY: minor}


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a file. It keeps what a newer minor version wrote into it.

    A subclass has its checks at its fields, `rank: Annotated[int, whole(1)]`, and has them in `checks` by name.

    Args:
        extra: the fields that this version does not know, as plain JSON values by name.

    Raises:
        TypeError: where a subclass is made, a field has no check.
    """

    checks: ClassVar[Mapping[str, Check]] = {}
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False, repr=False)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.checks = own_checks(cls, "field")

    @classmethod
    def names(cls) -> list[str]:
        """The fields that this version knows, in order."""
        return [entry.name for entry in fields(cls) if entry.name != "extra"]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """From the values of a file, checked before; the unknown ones become `extra`."""
        names = cls.names()
        own = {name: value for name, value in values.items() if name in names}
        return cls(**own, extra={name: value for name, value in values.items() if name not in names})


def _holders(values: Any, way: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The objects that a way of names leads to, through every entry of a list."""
    if isinstance(values, list):
        for entry in values:
            yield from _holders(entry, way)
    elif isinstance(values, dict):
        if way:
            yield from _holders(values.get(way[0]), way[1:])
        else:
            yield values


def plain(value: Any) -> Any:
    """Parts, and what they hold, as the values that JSON has, each part's `extra` after its own fields."""
    if isinstance(value, Part):
        return {name: plain(getattr(value, name)) for name in value.names()} | dict(value.extra)
    if isinstance(value, Mapping):
        return {name: plain(entry) for name, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def unknown_names(part: Part, where: str = "") -> Iterator[str]:
    """The names in `extra` of a part and of the parts inside it, such as "base_model.licence"."""
    yield from (f"{where}{name}" for name in part.extra)
    for name in part.names():
        value = getattr(part, name)
        for inner in value if isinstance(value, tuple) else (value,):
            if isinstance(inner, Part):
                yield from unknown_names(inner, f"{where}{name}.")


def known_keys(values: Mapping[str, Any], known: Iterable[str], newer: bool) -> list[str]:
    """The keys of a file that are to be checked: all of them, or the known ones if a newer minor version wrote it."""
    names = set(known)
    return [key for key in values if not newer or key in names]
