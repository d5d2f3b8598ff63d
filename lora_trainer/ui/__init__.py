"""The tab: Gradio holds its frame, javascript/ draws it from the routes. gradio is named only here."""
