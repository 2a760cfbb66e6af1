"""The engine for programs: OpenAI's API, Gradio's endpoint, and who may use them."""
