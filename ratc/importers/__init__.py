"""Reads other tools' configurations into a spec, and keeps account of what it could not carry over."""
