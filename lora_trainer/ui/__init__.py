"""The tab: Gradio provides the frame, javascript/ draws it from the API's routes. gradio is imported only here."""
