"""Steps that make the product faster, and what each does to accuracy: docs/bench.md, Variants."""
