"""Run every example, of `docs/examples/` and of a package, and write what it says, does and shows to `docs/gallery/`.

A page is a plain script. Comment blocks that start a line are prose (Markdown); everything else is code, shown and run.
What the code prints, and the figures it makes, follow it.
"""

import contextlib
import io
import pathlib
import sys
import time

import jax
import matplotlib


matplotlib.use("Agg")
import matplotlib.pyplot as plt


HERE = pathlib.Path(__file__).parent.resolve()
EXAMPLES = sorted([*HERE.glob("examples/*.py"), *HERE.parent.glob("packages/*/examples/*.py")])
GALLERY = HERE / "gallery"


def split(source: str) -> list[tuple[str, str]]:
    """Split a script into ("prose" | "code", text) blocks, in order."""
    blocks: list[tuple[str, list[str]]] = []
    for line in source.splitlines():
        if line.startswith("#!"):
            continue
        # A comment belongs to the code if code stands directly above it; a blank line ends the code block.
        in_code = bool(blocks) and blocks[-1][0] == "code" and blocks[-1][1][-1].strip() != ""
        kind = "prose" if line.startswith("#") and not in_code else "code"
        if blocks and (blocks[-1][0] == kind or (kind == "code" and not line.strip())):
            blocks[-1][1].append(line)
        elif line.strip():
            blocks.append((kind, [line]))
    return [(kind, "\n".join(lines).strip()) for kind, lines in blocks]


def render(path: pathlib.Path) -> str:
    """Run one script block by block; return its page."""
    page: list[str] = []
    # A page may switch double precision on; the next one begins as a fresh program does.
    jax.config.update("jax_enable_x64", False)
    names: dict = {"__name__": "__main__", "__file__": str(path)}
    for number, (kind, text) in enumerate(split(path.read_text())):
        if kind == "prose":
            page.append("\n".join(line.removeprefix("#").removeprefix(" ") for line in text.splitlines()))
            continue
        page.append(f"```python\n{text}\n```")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(text, f"{path.name}, block {number}", "exec"), names)
        if printed.getvalue().strip():
            page.append(f"```text\n{printed.getvalue().rstrip()}\n```")
        for figure in plt.get_fignums():
            image = f"{path.stem}-{number}-{figure}.png"
            plt.figure(figure).savefig(GALLERY / image, dpi=120, bbox_inches="tight")
            page.append(f"![{path.stem}, figure {figure}]({image})")
        plt.close("all")
    return "\n\n".join(page) + "\n"


def main() -> None:
    """Render every example, or those named on the command line."""
    GALLERY.mkdir(exist_ok=True)
    names = {name.removesuffix(".py") for name in sys.argv[1:]}
    unknown = names - {path.stem for path in EXAMPLES}
    if unknown:
        sys.exit(f"render_examples: there is no example {', '.join(sorted(unknown))}")
    wanted = [path for path in EXAMPLES if not names or path.stem in names]
    index = ["# Gallery", "", "Every page here is a script that ran when this site was built.", ""]
    for path in wanted:
        start = time.perf_counter()
        page = render(path)
        (GALLERY / f"{path.stem}.md").write_text(page)
        title = next((line[2:] for line in page.splitlines() if line.startswith("# ")), path.stem)
        index.append(f"- [{title}]({path.stem}.md)")
        print(f"{path.name}: {time.perf_counter() - start:.1f} s", file=sys.stderr)
    (GALLERY / "index.md").write_text("\n".join(index) + "\n")


if __name__ == "__main__":
    main()
