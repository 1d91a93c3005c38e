"""The files that stages and the login node share, as checked records: settings, specs, results, errors."""
