"""The store: what is where, done marks, and the views that people read it through."""
