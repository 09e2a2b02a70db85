"""Checks, from the files of an output folder alone, that its outputs are complete and consistent."""
