"""Programs that run inside a namespace: started by path, so they import the standard library alone."""
