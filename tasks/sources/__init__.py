"""Where CT-RATE comes from: a local folder in its layout now; both sides hand over the same `Catalogue`."""
