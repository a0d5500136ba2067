"""One module and one SQL file a revision, in order."""
