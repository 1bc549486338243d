"""The queue over HTTP: the REST interface and the studio, behind one guard."""
