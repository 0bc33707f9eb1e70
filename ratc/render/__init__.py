"""How results look: one small file a form."""
