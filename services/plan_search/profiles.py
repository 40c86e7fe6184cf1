"""Profiles of devices by name, in the store."""

import re

from realloc.coordination.store import Store
from realloc.core.errors import InvalidInput, NotFound
from realloc.cost.profile_file import profile_from_json
from realloc.cost.profile_fit import fit_profile

_PREFIX = "/realloc/profiles/"
_NAME = re.compile(r"profiles/([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)")


class Profiles:
    """Texts of profile files; what is kept can be read as a profile."""

    def __init__(self, store: Store, default: str = "") -> None:
        """``default``: the text for requests that name no profile; empty for presets."""
        self._store = store
        self._default = default

    async def chosen(self, name: str) -> str:
        """The text of the profile that a request names, or the default.

        Raises:
            NotFound: there is none of that name.
        """
        return await self.get(name) if name else self._default

    async def names(self) -> tuple[str, ...]:
        """All names, in order: ``profiles/a100-lab``."""
        listing = await self._store.list(_PREFIX)
        return tuple("profiles/" + entry.key.removeprefix(_PREFIX) for entry in listing)

    async def get(self, name: str) -> str:
        """The text of a profile.

        Raises:
            NotFound: there is none of that name.
        """
        entry = await self._store.get(_key(name))
        if entry is None:
            raise NotFound(f"{name} does not exist; PutProfile makes it")
        return entry.value.decode()

    async def put(self, name: str, text: str) -> None:
        """Keep a profile, in place of one of the same name.

        Raises:
            InvalidInput: the name, or a text that is no profile or too long for the store.
        """
        key = _key(name)
        fit_profile(profile_from_json(text, where="profile.content"))
        await self._store.put(key, text.encode())

    async def delete(self, name: str) -> None:
        """Forget a profile.

        Raises:
            NotFound: there is none of that name.
        """
        await self.get(name)
        await self._store.delete(_key(name))


def _key(name: str) -> str:
    match = _NAME.fullmatch(name)
    if match is None:
        raise InvalidInput.at(
            "name", f"{name!r} is not of the form profiles/a100-lab (a-z, 0-9, -; at most 63)"
        )
    return _PREFIX + match[1]
