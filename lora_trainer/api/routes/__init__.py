"""The routes, a module a subject; mount puts them on an app."""
