"""``realloc tokens``: the bearer tokens of a cluster's people."""

import argparse
import json
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

from realloc.core.errors import InvalidInput
from realloc.security.roles import Role
from realloc.security.tokens import create_token, load_tokens, revoke_token


def create(arguments: argparse.Namespace) -> int:
    """Add a token and print it, this once."""
    if arguments.days < 0:
        raise InvalidInput.at("--days", f"is {arguments.days} and must not be negative")
    expires = None
    if arguments.days:
        expires = datetime.now(UTC).date() + timedelta(days=arguments.days)
    text = create_token(arguments.file, arguments.name, Role(arguments.role), expires)
    if arguments.json:
        print(json.dumps({"name": arguments.name, "role": arguments.role, "token": text}))
    else:
        print(text)
    return 0


def revoke(arguments: argparse.Namespace) -> int:
    """Remove a token."""
    revoke_token(arguments.file, arguments.name)
    print(
        json.dumps({"revoked": arguments.name}) if arguments.json else f"revoked {arguments.name}"
    )
    return 0


def list_tokens(arguments: argparse.Namespace) -> int:
    """Whose tokens there are."""
    tokens = load_tokens(arguments.file)
    if arguments.json:
        kept = [{key: value for key, value in asdict(t).items() if key != "sha256"} for t in tokens]
        print(json.dumps(kept))
        return 0
    for token in tokens:
        print(f"{token.name}  {token.role}  until {token.expires or 'revoked'}")
    return 0
