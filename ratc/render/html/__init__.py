"""One page of HTML for a spec or for a comparison: a module for each part, and `page` to put them together.

The page is complete in itself: style and script stand in it, and its policy forbids it to load or to send anything.
"""
