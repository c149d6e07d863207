"""Code that a user wrote: where it lies, what it is, and what it may raise."""
