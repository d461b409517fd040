"""Making an image general: offline, in an appliance, inside the running guest, in place."""
