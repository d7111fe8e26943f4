"""Where the checkpoints lie on the Hub. Written by `weights/record_commits.py`."""

# (variant, name): (repository, commit, files), a file being (name, sha256, size).
PUBLISHED: dict = {}
