"""What developers run on this repository. Not part of the package."""
