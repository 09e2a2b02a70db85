"""The command line. No flow imports it."""
