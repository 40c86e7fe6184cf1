#!/bin/sh
# Debian and Ubuntu ship Python without venv; install it as root, else say what to do.
set -e
version=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
	apt-get install -y -q "python$version-venv" || {
		apt-get update -q
		apt-get install -y -q "python$version-venv"
	}
else
	echo "Python has no venv module here. Ask for it: apt-get install python$version-venv" >&2
	exit 1
fi
