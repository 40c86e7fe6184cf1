"""Options of ``realloc certs`` and ``realloc tokens``."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

AddVerb = Callable[[Any, str, str, str], argparse.ArgumentParser]
"""Adds a verb to its siblings: name, command, sentence."""

DEFAULT_FILE = Path("tokens.json")


def add_certs(verbs: Any, add_verb: AddVerb) -> None:
    """The verbs of ``realloc certs``."""
    init = add_verb(verbs, "init", "certs.init", "an authority and a certificate for every role")
    renew = add_verb(verbs, "renew", "certs.renew", "fresh certificates of the same authority")
    for parser in (init, renew):
        parser.add_argument("folder", type=Path, metavar="DIR")
        parser.add_argument(
            "--host",
            action="append",
            default=[],
            help="DNS name or IP address of a host that runs etcd or a scheduler; repeatable",
        )
        parser.add_argument("--days", type=int, default=365, help="validity (default 365)")
    show = add_verb(verbs, "show", "certs.show", "holders, names and dates")
    show.add_argument("folder", type=Path, metavar="DIR")


def add_tokens(verbs: Any, add_verb: AddVerb) -> None:
    """The verbs of ``realloc tokens``."""
    create = add_verb(verbs, "create", "tokens.create", "let somebody in; prints the token once")
    create.add_argument("name", help="whom it is for")
    create.add_argument("--role", choices=("viewer", "user", "operator"), default="user")
    create.add_argument("--days", type=int, default=0, help="validity (default: until revoked)")
    revoke = add_verb(verbs, "revoke", "tokens.revoke", "let somebody in no longer")
    revoke.add_argument("name")
    listed = add_verb(verbs, "list", "tokens.list_tokens", "who is let in")
    for parser in (create, revoke, listed):
        parser.add_argument(
            "--file", type=Path, default=DEFAULT_FILE, help=f"default {DEFAULT_FILE}"
        )
