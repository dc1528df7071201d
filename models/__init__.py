"""Networks that users can name, and where their weights come from."""
