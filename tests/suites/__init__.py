"""The originals' own suites, run against Carrel (not part of make test)."""
