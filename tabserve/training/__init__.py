"""From a table to an artifact: needs the `training` extra, and is never imported by serving."""
