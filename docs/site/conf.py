"""The settings of Sphinx. `build.py` runs it."""

from __future__ import annotations

from pathlib import Path

import gradest

project = "gradest"
author = "The gradest authors"
copyright = "2026, the gradest authors"
version = release = gradest.__version__
language = "en-GB"

extensions = ["myst_nb", "sphinx.ext.viewcode", "extension"]
source_suffix = {".md": "myst-nb"}
exclude_patterns = ["files/**"]
root_doc = "index"
nitpicky = False  # types of torch have no page here; links in text are checked in any case

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 4
myst_dmath_double_inline = True

nb_execution_timeout = 300  # seconds, of a cell
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_execution_show_tb = True
nb_render_markdown_format = "gfm"
nb_merge_streams = True
nb_output_stderr = "remove"  # a kernel's notice that it is still being compiled depends on the machine

smartquotes = False  # quotation marks in prose may be those of code
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
add_module_names = False

html_theme = "furo"
html_favicon = str(Path(__file__).parents[2] / "service/gradest_service/page/icon.svg")
html_math_renderer = "katex"
html_title = f"gradest {release}"
html_css_files = ["katex.min.css", "site.css"]
html_js_files = ["katex.min.js", "maths.js"]
html_show_sourcelink = False
html_copy_source = False
html_show_search_summary = False  # it would be fetched, which a browser forbids for pages from disk
html_theme_options = {"top_of_page_buttons": []}
