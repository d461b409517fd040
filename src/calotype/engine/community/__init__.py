"""The community: public galleries, shown to everybody and followed from elsewhere."""
