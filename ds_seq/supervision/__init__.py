"""Start a command again after a crash or a hang, from what it has saved."""
