"""The documents as a site: ``make docs``.

The project's root is Sphinx's source folder, so that links among all documents work in the site as
they do in the files.
"""

project = "sandboxworker"
author = "the sandboxworker developers"

extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4

root_doc = "docs/index"
include_patterns = [
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "docs/**.md",
    "images/README.md",
    "seccomp/README.md",
    "examples/README.md",
    "examples/**/README.md",
    "benchmarks/README.md",
]

html_theme = "furo"
html_title = "sandboxworker"
# Blocks of output and of shell with ellipses are no programs.
suppress_warnings = ["misc.highlighting_failure"]
