"""Bring a cluster up on Kubernetes: ``python -m deploy.kubernetes up --overlay gpu-8``."""

import argparse
import sys

from deploy.kubernetes.manifests import (
    DOCTOR,
    OVERLAYS,
    SMOKE,
    overlays,
    parse,
    problems,
    render,
)
from deploy.kubernetes.rollout import KEPT, REMOVED, Options, Rollout, commit
from realloc.core.errors import ReallocError


def main() -> int:
    arguments = _parser().parse_args()
    try:
        return int(arguments.verb(arguments))
    except ReallocError as error:
        print(f"kubernetes: {error}", file=sys.stderr)
        return 1


def up(arguments: argparse.Namespace) -> int:
    """Everything from building the images to the smoke job; a dry run prints the manifests."""
    options = _options(arguments)
    rollout = Rollout(options, _say)
    if arguments.dry_run:
        print(rollout.rendered(), end="")
    else:
        rollout.up()
    return 0


def down(arguments: argparse.Namespace) -> int:
    """Remove what runs."""
    if arguments.dry_run:
        _say(f"would delete {REMOVED} with the label part-of=realloc, and keep {KEPT}")
    else:
        Rollout(_options(arguments), _say).down()
    return 0


def check(arguments: argparse.Namespace) -> int:
    """Render every overlay and the jobs, and validate them strictly."""
    found = 0
    for folder in (*(OVERLAYS / name for name in overlays()), SMOKE, DOCTOR):
        for problem in problems(parse(render(folder))):
            print(f"kubernetes: {folder.name}: {problem}", file=sys.stderr)
            found += 1
    return 1 if found else 0


def _options(arguments: argparse.Namespace) -> Options:
    return Options(
        overlay=arguments.overlay,
        registry=arguments.registry,
        tag=arguments.tag or commit(),
        context=arguments.context,
        build=arguments.build == "1",
        smoke=arguments.smoke == "1",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="verb")
    for name, verb in (("up", up), ("down", down)):
        one = verbs.add_parser(name, help=verb.__doc__)
        one.set_defaults(verb=verb)
        one.add_argument("--overlay", default="gpu-8", help=f"{', '.join(overlays())}")
        one.add_argument("--registry", default="", help="prefix of image names; pushes there")
        one.add_argument("--tag", default="", help="tag of images (default: the commit)")
        one.add_argument("--context", default="", help="context of kubectl")
        one.add_argument("--build", choices="01", default="1", help="0: images are there already")
        one.add_argument("--smoke", choices="01", default="1", help="0: run no job at the end")
        one.add_argument("--dry-run", action="store_true", help="only print the manifests")
    checking = verbs.add_parser("check", help=check.__doc__)
    checking.set_defaults(verb=check)
    return parser


def _say(text: str) -> None:
    print(f"kubernetes: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
