"""What turns the Markdown pages, the code and stored rows into the documentation site."""
