"""Sphinx's settings for the site; `python -m tools.site` runs it with `DIFFPOSE_SITE` naming the folder of pages."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(os.environ["DIFFPOSE_ROOT"])))
from tools.site.convert import HOST, SETTINGS

project = SETTINGS["title"]
author = SETTINGS["author"]
copyright = SETTINGS["copyright"]
version = release = SETTINGS["version"]
extensions = ["myst_nb", "sphinx_design", "sphinxcontrib.bibtex", "sphinx.ext.mathjax"]
exclude_patterns = ["_static/**", "extra/**"]

nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath", "attrs_block", "attrs_inline", "colon_fence", "deflist", "html_image"]
myst_heading_anchors = 4
myst_heading_slug_func = "tools.site.convert.slug"
bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "plain"
bibtex_reference_style = "author_year"

html_theme = "pydata_sphinx_theme"
html_title = "diffpose"
html_static_path = ["_static"]
html_extra_path = ["extra"]
html_css_files = ["katex/katex.min.css", "site.css"]
html_js_files = ["katex/katex.min.js", "site.js"]
mathjax_path = "math.js"  # Sphinx writes the TeX, KaTeX draws it
html_favicon = "_static/favicon.svg"
html_baseurl = HOST + "/"
html_copy_source = False
html_show_sourcelink = False
html_sidebars = {page: [] for page in ("index", "search", "notebooks/install", "notebooks/benchmarks", "experiments/README")}  # no section, no sidebar
html_use_index = False
html_theme_options = {
    "logo": {"text": "diffpose", "image_light": "_static/logo-light.svg", "image_dark": "_static/logo-dark.svg"},
    "github_url": SETTINGS["git_url"],
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "back_to_top_button": True,
    "use_edit_page_button": False,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
suppress_warnings = ["mystnb.unknown_mime_type", "myst.header"]
html_context = {"default_mode": "auto"}
