"""The studio: a Gradio page over the REST interface. The form is Gradio's; what lives is drawn by ``assets``. Imports
server."""
