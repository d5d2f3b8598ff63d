"""Starting, planning and resuming runs, the same from the routes and from the command line (no fastapi)."""
