"""Processed notebooks and Markdown pages, from Quarto's dialect to what Sphinx reads.

nbdev has run before: hidden cells are gone, exported ones are replaced by what `Members` shows. Pictures keep their
captions; animations become files, and 3D scenes pages of their own, shown in a frame.
"""

import base64
import configparser
import hashlib
import html
import json
import posixpath
import re
from pathlib import Path

from tools.notebook import ROOT, body, directives
from tools.site.turning import MARK, write_turning

SETTINGS = configparser.ConfigParser(delimiters=["="], interpolation=None)
SETTINGS.read(ROOT / "settings.ini", encoding="utf-8")
SETTINGS = SETTINGS["DEFAULT"]
HOST = SETTINGS["doc_host"] + SETTINGS["doc_baseurl"]
MADE = ("reports/example.html",)  # by the build itself, once the pages are there
REPOSITORY = f"{SETTINGS['git_url']}/blob/{SETTINGS['branch']}"


FENCES = re.compile(r"^[ \t]*(`{3,}|~{3,}).*?^[ \t]*\1", flags=re.M | re.S)
VERBATIM = re.compile(FENCES.pattern + r"|(?<!`)(`+)(?!`).+?(?<!`)\2(?!`)|\$\$.+?\$\$|(?<![\\$])\$[^$\n]+\$", flags=re.M | re.S)


def slug(heading):
    "The anchor of a heading: as nbdev's links have it, `drr.jacobian`."
    return re.sub(r"[^\w\-. ]", "", heading.lower()).strip().replace(" ", "-")


def page_of(source):
    "`notebooks/api/082_drr.ipynb` is the page `notebooks/api/drr`, as with nbdev's Quarto."
    return re.sub(r"(^|/)\d+[a-z]?_", r"\1", re.sub(r"\.(ipynb|md|qmd)$", "", source))


def unnested(text):
    "A link whose text nbdev has made a link of, as it was."
    return re.sub(r"\[\[(`[^`\n]+`)\]\([^)\s]*\)\]\(", r"[\1](", text)


class Pages:
    "All pages of the site by their source, so that a link can be checked as it is rewritten."

    def __init__(self, folder, sources, citations):
        self.folder, self.found = folder, {}
        self.by_source = {source: page_of(source) for source in sources}
        self.pages = {page: source for source, page in self.by_source.items()}
        self.citations = citations
        self.problems, self.pictures = [], set()

    def anchors(self, source):
        "Of a page's headings."
        if source not in self.found:
            self.found[source] = self._anchors(source)
        return self.found[source]

    def _anchors(self, source):
        path = self.folder / source
        texts = [path.read_text(encoding="utf-8")]
        if path.suffix == ".ipynb":
            cells = json.loads(texts[0])["cells"]
            texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
            texts += ["".join(o.get("data", {}).get("text/markdown", "")) for cell in cells for o in cell.get("outputs", [])]
        return {slug(heading) for text in texts for heading in re.findall(r"^#+ +(.*)$", re.sub(FENCES, "", text), flags=re.M)}

    def target(self, link, here):
        "A link as Sphinx wants it: to a page, to a file of the repository, or outwards as it is."
        made = link.startswith(HOST)  # by nbdev, for private functions too
        link = link.removeprefix(HOST + "/") if made else link
        path, hash_, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link) or not path:
            return link
        if path in MADE:
            return f"{HOST}/{link}"
        inside = path if path in self.by_source else posixpath.normpath(posixpath.join(posixpath.dirname(here), path))
        for source in (inside, path):
            page = self.by_source.get(source) or (page_of(source[:-5]) if source.endswith(".html") and page_of(source[:-5]) in self.pages else None)
            if page:
                known = anchor in self.anchors(self.pages[page])
                if anchor and not known and not made:
                    self.problems.append(f"{here}: no heading for the link {link}")
                return f"/{page}{Path(self.pages[page]).suffix}" + (f"#{anchor}" if known else "")
        if (ROOT / inside).exists():
            return f"{REPOSITORY}/{inside}"
        self.problems.append(f"{here}: no page and no file for the link {link}")
        return link

    def picture(self, link, here):
        "The link of a picture that is a file beside the pages; it is noted, so that it goes along."
        inside = posixpath.normpath(posixpath.join(posixpath.dirname(here), link))
        if re.match(r"[a-z]+:", link) or not (ROOT / inside).is_file():
            return self.target(link, here)
        self.pictures.add(inside)
        return f"/{inside}"

    def rewrite(self, text, here):
        "Citations and links of Markdown; code is left alone."
        code = []

        def aside(match):
            code.append(match[0])
            return f"\0{len(code) - 1}\0"

        text = self._prose(re.sub(VERBATIM, aside, unnested(text)), here)
        return re.sub("\0(\\d+)\0", lambda match: code[int(match[1])], text)

    def _prose(self, text, here):
        def cite(match):
            parts = [re.fullmatch(r"(?s)(.*?)(-?)@([\w:.-]*\w)(.*)", part.strip()) for part in match[1].split(";")]
            unknown = [part[3] for part in parts if part[3] not in self.citations]
            if unknown:
                self.problems.append(f"{here}: no entry {', '.join(unknown)} in references.bib")
            if not any(part[1] or part[2] or part[4] for part in parts):
                return f"{{cite:p}}`{','.join(part[3] for part in parts)}`"
            shown = [f"{part[1]}{{cite:{'year' if part[2] else 't'}}}`{part[3]}`{part[4]}" for part in parts]
            return f"({'; '.join(shown)})"

        key = r"(?:[^\[\]@;]*[\s-])?@[\w:.-]*\w[^\[\]@;]*"
        text = re.sub(rf"\[({key}(?:;{key})*)\](?!\()", cite, text)
        text = re.sub(r"(\]\([^)\s]+\))\{[^}]*\}", r"\1", text)  # attributes of links
        return re.sub(r"(!\[[^\]]*)?(\]\()([^)\s]+)(\))", lambda m: (m[1] or "") + m[2] + (self.picture if m[1] else self.target)(m[3], here) + m[4], text)


def header(cell):
    "Title and description of a page, from nbdev's front matter."
    import yaml

    front = next(yaml.safe_load_all("".join(cell["source"]).strip().strip("-")), None) or {}
    title, lead = front.get("title", ""), front.get("description", "")
    return f"# {title}" + (f"\n\n{{.lead}}\n{lead}" if lead else "")


def caption_of(flags):
    return flags.get("fig-cap", "").strip().strip("\"'")


def sources_last(cells):
    "Folded sources after what `Members` shows of them."
    out, held = [], []
    for cell in cells:
        flags = directives(cell)
        if flags.get("code-summary", "").strip('"').startswith("source"):
            held.append(cell)
            continue
        if flags.get("output") != "asis":
            out += held
            held = []
        out.append(cell)
    return out + held


class Converter:
    "Writes pages for Sphinx into a folder, with the files that belong to them."

    def __init__(self, source, target, pages, extra=None):
        self.source, self.target, self.pages, self.extra = source, target, pages, extra or target
        self.scenes = []

    def markdown(self, here):
        text = self.pages.rewrite((self.source / here).read_text(encoding="utf-8"), here)
        text = re.sub(r"^::: \{#refs\}\s*:::", "```{bibliography}\n:all:\n```", text, flags=re.M)
        self._write(here, text)

    def notebook(self, here):
        nb = json.loads((self.source / here).read_text(encoding="utf-8"))
        cells = []
        for number, cell in enumerate(sources_last(nb["cells"])):
            text = "".join(cell["source"])
            if cell["cell_type"] == "raw":
                cells.append(self._prose(header(cell) if text.lstrip().startswith("---") else text))
            elif MARK in text:
                cells.append(self._turning())
            elif cell["cell_type"] == "markdown" and "WARNING: THIS FILE WAS AUTOGENERATED" not in text:
                cells.append(self._prose(self.pages.rewrite(text, here)))
            elif cell["cell_type"] == "code":
                cells += self._code(cell, here, number)
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}, "language_info": {"name": "python"}}
        self._write(here, json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 4}))

    def outputs_only(self, path):
        "For Quarto: animations and scenes of a processed notebook become files, the rest stays."
        here = path.relative_to(self.source).as_posix()
        nb = json.loads(path.read_text(encoding="utf-8"))
        nb["cells"] = [self._turning() if MARK in "".join(cell["source"]) else cell for cell in nb["cells"]]
        for number, cell in enumerate(nb["cells"]):
            if cell["cell_type"] == "markdown":
                cell["source"] = unnested("".join(cell["source"]))
            if cell["cell_type"] == "code":
                caption = caption_of(directives(cell))
                cell["outputs"] = [self._output(o, here, f"{number}-{k}", caption) for k, o in enumerate(cell["outputs"])]
        path.write_text(json.dumps(nb), encoding="utf-8")

    def _write(self, here, text):
        path = self.target / (page_of(here) + Path(here).suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def _turning(self):
        "The C-arm to turn, as a cell."
        shown = self._html(write_turning(self.extra))
        return {"cell_type": "code", "metadata": {"tags": ["remove-input"]}, "execution_count": None, "source": "# a C-arm to turn", "outputs": [shown]}

    def _prose(self, text):
        return {"cell_type": "markdown", "metadata": {}, "source": text}

    def _code(self, cell, here, number):
        flags = directives(cell)
        if flags.get("include") == "false":
            return []
        if flags.get("output") == "asis":
            shown = ["".join(o.get("data", {}).get("text/markdown", o.get("text", ""))) for o in cell["outputs"]]
            return [self._prose(self.pages.rewrite("\n\n".join(shown), here))]
        source = body(cell)
        caption = caption_of(flags)
        outputs = [] if flags.get("output") == "false" else [self._output(o, here, f"{number}-{k}", caption) for k, o in enumerate(cell["outputs"])]
        tags = ["remove-input"] if flags.get("echo") == "false" else ["hide-input"] if flags.get("code-fold") in ("true", "True") else []
        notes = [self._prose("".join(o["data"]["text/markdown"])) for o in outputs if "text/markdown" in o.get("data", {})]  # tables and all
        outputs = [o for o in outputs if "text/markdown" not in o.get("data", {})]
        if not source and not outputs:
            return notes
        metadata = {"tags": tags}
        summary = flags.get("code-summary", "").strip('"')
        if summary:
            metadata["mystnb"] = {"code_prompt_show": summary, "code_prompt_hide": summary}
        if caption and any("image/png" in o.get("data", {}) for o in outputs):
            shown = {"image": {"alt": caption.replace("`", "")}, "figure": {"caption": self.pages.rewrite(caption, here)}}
            metadata["mystnb"] = metadata.get("mystnb", {}) | shown
        return [{"cell_type": "code", "metadata": metadata, "execution_count": None, "source": source, "outputs": outputs}, *notes]

    def _output(self, output, here, name, caption):
        data = output.get("data", {})
        up = "../" * page_of(here).count("/")
        if "model/gltf-binary" in data:
            file = f"scenes/{page_of(here).replace('/', '-')}-{name}.html"
            title = caption or "3D scene"
            self.scenes.append((file, base64.b64decode("".join(data["model/gltf-binary"])), title))
            frame = f'<iframe src="{up}{file}" title="{html.escape(title)}" loading="lazy" allowfullscreen style="width: 100%; aspect-ratio: 4 / 3; border: 0"></iframe>'
            link = f'<a href="{up}{file}" target="_blank">open the scene by itself</a>'
            return self._html(f'<figure class="scene">{frame}<figcaption>{html.escape(caption)} {link}</figcaption></figure>')
        if "image/webp" in data:
            raw = base64.b64decode("".join(data["image/webp"]))
            file = f"media/{hashlib.sha256(raw).hexdigest()[:16]}.webp"
            path = self.extra / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(raw)
            return self._html(
                f'<figure><img src="{up}{file}" alt="{html.escape(caption or "animation")}"><figcaption>{html.escape(caption)}</figcaption></figure>'
            )
        if "text/markdown" in data and self.pages:
            return {**output, "data": {**data, "text/markdown": self.pages.rewrite("".join(data["text/markdown"]), here)}}
        return output

    def _html(self, text):
        return {"output_type": "display_data", "metadata": {}, "data": {"text/html": text, "text/plain": ""}}
