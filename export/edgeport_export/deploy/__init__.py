"""Folders for other engines, made of a bundle: each target is one module, and each folder carries golden cases, by which the engine can be proved."""
