"""Small parts of views. Whatever the service says is set as text, never as HTML."""
