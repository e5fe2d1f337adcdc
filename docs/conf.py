"""Settings of the documentation's pages: make site. Every link and every anchor is checked (-W)."""

project = "Bitwright"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
autodoc_typehints = "none"  # the texts say what goes in
root_doc = "contents"
html_theme = "furo"
html_title = "Bitwright"
html_show_copyright = False
myst_heading_anchors = 3
