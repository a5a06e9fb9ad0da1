"""Run every package's console script and put what it found on one self-contained page, `tour/index.html`.

A flagship is asked with `--json --plot tour/<dist>.png` and answers on stdout with one JSON object. Known keys, all
optional: `title`, `summary`, `rows` (a list of flat objects), `figures` (paths). Any other flat value becomes a row of
a second table, so that a package which says more loses nothing.
"""

import argparse
import base64
import html
import json
import pathlib
import shutil
import subprocess
import sys
import time
import tomllib
from typing import Any


ROOT = pathlib.Path(__file__).parent.parent.resolve()
TOUR = ROOT / "tour"
STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 3rem; border-top: 1px solid var(--line); padding-top: 1.5rem; }
img { max-width: 100%; background: white; border-radius: 4px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; margin: 1rem 0; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: left; }
td.short, td.number { white-space: nowrap; }
th { background: var(--soft); } th.number, td.number { text-align: right; }
code { background: var(--soft); padding: .1rem .3rem; } .failed { color: #c00; }
footer { margin-top: 3rem; opacity: .7; font-size: .9rem; }
"""


def flagships() -> dict[str, str]:
    """Map each distribution that has a console script of its own name to its one-line description."""
    found = {}
    for path in sorted(ROOT.glob("packages/*/pyproject.toml")):
        project = tomllib.loads(path.read_text())["project"]
        if project["name"] in project.get("scripts", {}):
            found[project["name"]] = project["description"]
    return found


def run(name: str) -> dict[str, Any]:
    """Run one flagship, its progress going straight to the terminal; return its answer, plus `seconds`."""
    script = shutil.which(name, path=str(pathlib.Path(sys.executable).parent)) or name
    start = time.perf_counter()
    command = [script, "--json", "--plot", str(TOUR / f"{name}.png")]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        return {"failed": f"`{name}` ended with exit code {done.returncode}", "seconds": seconds}
    try:
        answer = json.loads(done.stdout)
    except json.JSONDecodeError:
        return {"failed": f"`{name} --json` printed something that is not JSON", "seconds": seconds}
    return {**(answer if isinstance(answer, dict) else {"rows": answer}), "seconds": seconds}


def cell(value: Any) -> str:
    """Write one value as a person reads it."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def columns(rows: list[dict[str, Any]]) -> list[str]:
    """List the keys of all rows, in the order of first appearance."""
    return list(dict.fromkeys(key for row in rows for key in row))


def text_table(rows: list[dict[str, Any]]) -> str:
    """Lay rows out for a terminal."""
    names = columns(rows)
    cells = [names, *([cell(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def html_table(rows: list[dict[str, Any]]) -> str:
    """Lay rows out for the page."""
    names = columns(rows)
    numeric = {name for name in names if all(type(row.get(name)) in (int, float, type(None)) for row in rows)}
    short = {name for name in names if all(len(cell(row.get(name))) <= 30 for row in rows)}
    align = {name: " class=number" if name in numeric else " class=short" if name in short else "" for name in names}
    head = "".join(f"<th{align[name]}>{html.escape(name)}</th>" for name in names)
    body = ""
    for row in rows:
        body += f"<tr>{''.join(f'<td{align[name]}>{html.escape(cell(row.get(name)))}</td>' for name in names)}</tr>"
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def tables(answer: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Return the tables of an answer: its rows, and the facts beside them."""
    known = {"title", "summary", "rows", "figures", "seconds", "failed"}
    rows = [row if isinstance(row, dict) else {"value": row} for row in answer.get("rows") or []]
    facts = {key: value for key, value in answer.items() if key not in known and not isinstance(value, list | dict)}
    return [table for table in (rows, [{"": key, "value": value} for key, value in facts.items()]) if table]


def pictures(name: str, answer: dict[str, Any]) -> list[pathlib.Path]:
    """List the pictures that exist: those named in the answer, and the one that was asked for."""
    named = [pathlib.Path(figure) for figure in answer.get("figures") or [] if isinstance(figure, str)]
    resolved = [path if path.is_absolute() else ROOT / path for path in named]
    return [path for path in dict.fromkeys([*resolved, TOUR / f"{name}.png"]) if path.is_file()]


def section(name: str, description: str, answer: dict[str, Any]) -> str:
    """Write one package's part of the page."""
    parts = [f"<h2 id={name}>{html.escape(str(answer.get('title') or name))}</h2>"]
    parts.append(f"<p>{html.escape(str(answer.get('summary') or description))}</p>")
    if "failed" in answer:
        parts.append(f"<p class=failed>{html.escape(answer['failed'])}</p>")
    for path in pictures(name, answer):
        data = base64.b64encode(path.read_bytes()).decode()
        kind = "svg+xml" if path.suffix == ".svg" else path.suffix.removeprefix(".")
        alt = html.escape(f"Result of {name}")
        parts.append(f'<p><img alt="{alt}" src="data:image/{kind};base64,{data}"></p>')
    parts += [html_table(table) for table in tables(answer)]
    parts.append(f"<p>Again: <code>uv run {name}</code> ({answer['seconds']:.1f} s here)</p>")
    return "\n".join(parts)


def main() -> int:
    """Run the tour; return 1 if a flagship failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="*", help="only these distributions")
    wanted = parser.parse_args().packages
    known = flagships()
    unknown = set(wanted) - set(known)
    if unknown:
        parser.error(f"no such package: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    chosen = {name: text for name, text in known.items() if not wanted or name in wanted}
    TOUR.mkdir(exist_ok=True)
    answers = {}
    for number, name in enumerate(chosen, start=1):
        (TOUR / f"{name}.png").unlink(missing_ok=True)  # a picture of an earlier run must not pass for this one's
        print(f"[{number}/{len(chosen)}] {name} ...", file=sys.stderr, flush=True)
        answers[name] = run(name)
        print(f"[{number}/{len(chosen)}] {name}: {answers[name]['seconds']:.1f} s", file=sys.stderr, flush=True)
    body = "\n".join(section(name, chosen[name], answer) for name, answer in answers.items())
    page = (
        f'<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">'
        f"<title>Stationary, the tour</title><style>{STYLE}</style><h1>Stationary, the tour</h1>"
        f"<p>The flagship of every package, run on this machine just now.</p>{body}"
        f"<footer>Made by <code>uv run nox -s tour</code> on {time.strftime('%Y-%m-%d %H:%M')}.</footer></html>\n"
    )
    (TOUR / "index.html").write_text(page, encoding="utf-8")
    for name, answer in answers.items():
        print(f"\n{answer.get('title') or name}")
        print("\n\n".join(text_table(table) for table in tables(answer)) or answer.get("failed", "no table"))
    overview = [
        {"package": n, "outcome": a.get("failed", "ok"), "seconds": round(a["seconds"], 1)} for n, a in answers.items()
    ]
    print(f"\n{text_table(overview)}\n\n{(TOUR / 'index.html').relative_to(ROOT)} holds the pictures.")
    return int(any("failed" in answer for answer in answers.values()))


if __name__ == "__main__":
    sys.exit(main())
