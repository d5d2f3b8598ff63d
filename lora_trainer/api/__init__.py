"""The routes under /lora-trainer/v1: what the tab's JavaScript, scripts and tests use (routes.mount adds them to an app).

What starts runs and grids and makes plans is here too, without fastapi: launch, grids, plans.
"""
