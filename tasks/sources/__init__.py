"""Sources: CT-RATE in a folder or on the Hub, RAD-ChestCT and phantoms. Their tables and their changes."""
