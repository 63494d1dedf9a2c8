"""Real systemd hosts on one machine, to try the toolkit on. See README.md."""
