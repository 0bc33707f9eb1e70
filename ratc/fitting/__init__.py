"""What fits on a card: predictions for a spec, as a number, a table or a report."""
