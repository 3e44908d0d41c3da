"""Mixed models and structural equation models of regional brain age."""
