"""The store: where everything is, done marks, and the views through which people read it."""
