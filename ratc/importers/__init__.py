"""Reads other tools' configurations into a spec, and lists the settings that it could not carry over."""
