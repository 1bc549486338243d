"""Jobs that last: rows, results, locks, estimates. Knows no GPU and no HTTP."""
