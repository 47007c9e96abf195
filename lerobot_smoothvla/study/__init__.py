"""Several arms from one warm start, several seeds each, compared on the same starts; see docs/study.md."""
