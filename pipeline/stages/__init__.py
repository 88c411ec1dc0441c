"""The Ray Data graph: read, route, shuffle, generate, commit; window by window, with resume.

Nothing is imported here: tasks that read and write run in processes that need no torch, and would pay seconds for it.
"""
