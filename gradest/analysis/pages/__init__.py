"""Pages of plugins in Markdown, for the site of gradest and of every other package: `gradest docs` writes them.

plugins     the pages
examples    the program that each page shows
pictures    their pictures
prose       docstrings as Markdown
"""
