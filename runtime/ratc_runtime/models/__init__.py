"""The model: imported and built from the lock, with RAT's attention in less memory."""
