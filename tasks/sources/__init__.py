"""Sources: CT-RATE in a folder or on the Hub, RAD-ChestCT, phantoms; their tables, their changes."""
