"""README.md from index.ipynb: `python -m tools.readme`.

Prose as it stands, code in fences, printed output below it, pictures beside it in `index_files/`.
"""

import base64
import sys

from tools.notebook import ROOT, body, directives, load

NOTE = "<!-- Made from index.ipynb by `make readme`: edit the notebook. -->"


def render(root=ROOT):
    "All files of the README as `{path relative to root: bytes}`."
    files, parts = {}, [NOTE]
    for cell in load(root / "index.ipynb")["cells"]:
        flags = directives(cell)
        if cell["cell_type"] == "markdown":
            parts.append("".join(cell["source"]).strip())
        if cell["cell_type"] != "code" or "hide" in flags:
            continue
        code = body(cell)
        if code and flags.get("echo") != "false":
            parts.append(f"```python\n{code}\n```")
        for number, output in enumerate(cell["outputs"]):
            data = output.get("data", {})
            text = "".join(output.get("text") or data.get("text/plain", ""))
            picture = next((kind for kind in ("image/webp", "image/png") if kind in data), None)
            if picture:
                name = f"index_files/{cell['id']}-{number}.{picture.partition('/')[2]}"
                files[name] = base64.b64decode("".join(data[picture]))
                parts.append(f"![{flags.get('fig-cap', '').strip(chr(34))}]({name})")
            elif "text/markdown" in data:
                parts.append("".join(data["text/markdown"]).strip())
            elif text.strip():
                parts.append("```text\n" + text.strip("\n") + "\n```")
    return {"README.md": ("\n\n".join(parts) + "\n").encode(), **files}


def stale(root=ROOT):
    "Pictures of an earlier README."
    return sorted(p for p in (root / "index_files").glob("*.*") if p.relative_to(root).as_posix() not in render(root))


def main():
    for name, content in render().items():
        path = ROOT / name
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)
            print("wrote", name)
    for path in stale():
        path.unlink()
        print("removed", path.relative_to(ROOT).as_posix())


if __name__ == "__main__":
    sys.exit(main())
