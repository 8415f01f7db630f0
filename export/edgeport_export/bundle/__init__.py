"""What the host writes to disk: the bundle's folder, its golden cases and the facts about the machine; and what two bundles do not share."""
