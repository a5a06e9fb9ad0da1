"""Print, as JSON for a CI matrix, the packages that a diff can break. `affected.py BASE`, or nothing for all.

A change in the core, the test kit, the tools or the workflows can break everything; a change inside one package only
that package, because no package imports another.
"""

import json
import pathlib
import subprocess
import sys
import tomllib


ROOT = pathlib.Path(__file__).resolve().parent.parent
# Prose and pages that no package's tests read.
HARMLESS = ("docs/", "README.md", "CONTRIBUTING.md", "CITATION.cff", "mkdocs.yml", ".gitignore")


def folders() -> dict[str, str]:
    """Map each member's folder to its distribution name."""
    paths = [ROOT / "shared" / "pyproject.toml", *sorted(ROOT.glob("packages/*/pyproject.toml"))]
    return {f"{p.parent.relative_to(ROOT)}/": tomllib.loads(p.read_text())["project"]["name"] for p in paths}


def affected(changed: list[str]) -> list[str]:
    """Name the distributions whose tests must run."""
    known = folders()
    hit = set()
    for path in changed:
        folder = next((f for f in known if path.startswith(f) and f != "shared/"), None)
        if folder:
            hit.add(known[folder])
        elif not path.startswith(HARMLESS):
            return list(known.values())
    return [name for name in known.values() if name in hit]


def main() -> None:
    """Read the diff against the commit named on the command line."""
    if len(sys.argv) < 2 or not sys.argv[1].strip("0"):
        names = list(folders().values())
    else:
        diff = ["git", "diff", "--name-only", f"{sys.argv[1]}...HEAD"]
        names = affected(subprocess.run(diff, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split())
    print(json.dumps(names))


if __name__ == "__main__":
    main()
