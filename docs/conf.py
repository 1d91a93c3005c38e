"""Sphinx settings: MyST pages, the furo theme, and tables that are made from the code at build time."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

from gnnscale import __version__  # noqa: E402

project = "gnnscale"
author = "the gnnscale developers"
copyright = f"2026, {author}"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "tables_from_code"]
exclude_patterns = ["_build", "studies"]
source_suffix = {".md": "markdown"}

myst_enable_extensions = ["attrs_block", "attrs_inline", "colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100

smartquotes = False  # `--yes` in running text is not a dash

html_theme = "furo"
html_title = "gnnscale"
html_static_path = ["_static"]
html_css_files = ["gnnscale.css"]
html_copy_source = False
html_theme_options = {
    "source_repository": "https://github.com/gnnscale/gnnscale/",
    "source_branch": "main",
    "source_directory": "docs/",
    "light_css_variables": {"color-brand-primary": "#0b5c8a", "color-brand-content": "#0b5c8a"},
    "dark_css_variables": {"color-brand-primary": "#6cb8e6", "color-brand-content": "#6cb8e6"},
}
