"""Predictions of the micro-batch that fits on a card, as a number, a table or a report."""
