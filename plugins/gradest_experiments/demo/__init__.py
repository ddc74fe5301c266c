"""The demo: a story in four scenes, on the terminal and as a page with pictures."""
