"""The routes under /lora-trainer/v1: what the tab's JavaScript, scripts and tests use (routes.mount adds them to an app).

`runs/` starts, resumes and plans runs and grids without fastapi, so that the command line uses it too.
"""
