"""Support for code written by users: finding it, identifying its version, and explaining its errors."""
