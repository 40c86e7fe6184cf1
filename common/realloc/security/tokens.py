"""Bearer tokens of people, of which the cluster keeps hashes only.

    {"tokens": [{"name": "ada", "role": "user", "sha256": "…", "expires": "2027-01-31"}]}

A token is 256 random bits, so one round of SHA-256 is enough: there is nothing to guess.
"""

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from realloc.core.errors import Conflict, InvalidInput, NotFound, Problem, Unauthenticated
from realloc.plain_data import ConfigError, read
from realloc.security.roles import PEOPLE, Caller, Role

PREFIX = "realloc_"
"""Lets people and secret scanners recognise a token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """What the cluster knows of a token."""

    name: str
    """Whom it was given to."""
    role: Role
    """viewer, user or operator."""
    sha256: str
    """Of the token's text, in hexadecimal."""
    expires: str = ""
    """Last day on which it is valid (UTC), YYYY-MM-DD; empty for no end."""

    def __post_init__(self) -> None:
        if self.role not in PEOPLE:
            raise ValueError(f"{self.role} is no role of a token; use {', '.join(PEOPLE)}")
        if self.expires:
            date.fromisoformat(self.expires)

    def is_valid(self, day: date) -> bool:
        """Whether it has not expired on that day."""
        return not self.expires or day <= date.fromisoformat(self.expires)


@dataclass(frozen=True, slots=True, kw_only=True)
class _TokenList:
    tokens: tuple[Token, ...] = ()


class TokenFile:
    """The tokens of a cluster; the file is read again when it changes."""

    def __init__(self, path: Path, today: Callable[[], date] | None = None) -> None:
        """
        Raises:
            InvalidInput: the file cannot be read, or holds something else.
        """
        self.path = path
        self._today = today or (lambda: datetime.now(UTC).date())
        self._modified = _modified(path)
        self._tokens = load_tokens(path)

    def caller(self, text: str) -> Caller:
        """Who shows this token.

        Raises:
            Unauthenticated: nobody, or its day has passed.
        """
        self._read_again()
        digest = _digest(text)
        found: Token | None = None
        for token in self._tokens:  # all of them: the time tells nothing
            if hmac.compare_digest(token.sha256, digest):
                found = token
        if found is None:
            raise Unauthenticated("the token is not known here; ask the cluster's operator for one")
        if not found.is_valid(self._today()):
            raise Unauthenticated(f"the token of {found.name} expired on {found.expires}")
        return Caller(name=found.name, role=found.role)

    def _read_again(self) -> None:
        modified = _modified(self.path)
        if modified == self._modified:
            return
        try:
            self._tokens = load_tokens(self.path)
            self._modified = modified
        except InvalidInput:
            pass  # being written: the next call looks again


def load_tokens(path: Path) -> tuple[Token, ...]:
    """The tokens of a file.

    Raises:
        InvalidInput: it cannot be read, or holds something else.
    """
    try:
        return read(_TokenList, json.loads(path.read_text())).tokens
    except ConfigError as error:
        raise InvalidInput(
            *(Problem(f"{path}: {each.path}", each.reason) for each in error.problems)
        ) from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InvalidInput.at("tokens_file", f"{path} cannot be read: {error}") from error


def create_token(path: Path, name: str, role: Role, expires: date | None = None) -> str:
    """Add a token to a file, which is made where there is none; its text, shown only now.

    Raises:
        Conflict: the name has a token already.
    """
    tokens = load_tokens(path) if path.exists() else ()
    if any(token.name == name for token in tokens):
        raise Conflict(f"{name} has a token in {path}; revoke it first")
    text = PREFIX + secrets.token_urlsafe(32)
    token = Token(
        name=name,
        role=role,
        sha256=_digest(text),
        expires=expires.isoformat() if expires else "",
    )
    _save(path, (*tokens, token))
    return text


def revoke_token(path: Path, name: str) -> None:
    """Remove a token; running schedulers refuse it from the next call on.

    Raises:
        NotFound: nobody of that name has one.
    """
    tokens = load_tokens(path)
    left = tuple(token for token in tokens if token.name != name)
    if left == tokens:
        raise NotFound(f"{name} has no token in {path}")
    _save(path, left)


def _save(path: Path, tokens: Sequence[Token]) -> None:
    """Replace the file at once, so that nobody reads half of it."""
    fresh = path.with_name(f".{path.name}.new")
    text = json.dumps({"tokens": [asdict(token) for token in tokens]}, indent=2) + "\n"
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    fresh.replace(path)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _modified(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns
