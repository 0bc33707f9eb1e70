"""Why a job ended: what it left behind and what its scheduler says, brought down to one cause with its evidence."""
