"""From a finished run to something that others use: serving and job files."""
