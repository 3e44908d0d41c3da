"""ComBat and ComBat-GAM: differences between sites taken out, those between people kept."""
