"""What a bundle holds, for people who did not make it: a page to look at, and a model card. Everything on them comes from manifest, evidence and files."""
